-- Prepares the state of one script and runs it. What it takes away could read files or bytecode, or catch the
-- end of the budget. An error that is a table with `err` is a reply; any other one is described.
return function(script, keys, arguments, call, caught, is_over, sha1hex, natives)
    local native, error, type, tostring, describe = pcall, error, type, tostring, natives.describe
    for _, name in ipairs({ "load", "loadstring", "loadfile", "dofile", "collectgarbage", "print", "newproxy",
        "getfenv", "setfenv", "xpcall", "module", "require", "gcinfo", "package", "coroutine" }) do
        _G[name] = nil
    end
    string.dump = nil

    local function passed(ok, ...)
        if not ok then caught() end
        if is_over() then error("over", 0) end
        if not ok then return ok, describe((...)) end
        return ok, ...
    end
    pcall = function(...) return passed(native(...)) end

    redis = {
        pcall = call,
        call = function(...)
            local reply = call(...)
            if type(reply) == "table" and reply.err then error(reply, 0) end
            return reply
        end,
        status_reply = function(text) return { ok = text } end,
        error_reply = function(text)
            if text:find("^%-?%u+ ") == nil then text = "ERR " .. text end
            return { err = (text:gsub("^%-", "")) }
        end,
        sha1hex = sha1hex,
        log = function() end,
        setresp = function(version) if version ~= 2 then error("RESP version must be 2.", 0) end end,
        replicate_commands = function() return true end,
        LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
    }
    KEYS, ARGV = keys, arguments

    cjson, cmsgpack, struct, bit = natives.cjson, natives.cmsgpack, natives.struct, natives.bit

    setmetatable(_G, {
        __index = function(_, name)
            error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
        end,
        __newindex = function() error("Attempt to modify a readonly table", 2) end,
    })

    local ok, result = native(script)
    if ok then return result end
    if type(result) == "table" and result.err then return result end
    return { err = "ERR " .. tostring(describe(result)) }
end
