//! Scripts: `EVAL`, `EVALSHA` and `SCRIPT`, in Lua 5.1.
//!
//! A script is one command of a transaction: it runs on the view of the keys that it names, and only what it
//! wrote is committed, on the condition that none of the keys has changed. So replicas never run scripts, and
//! a script need not be deterministic. A script that fails writes nothing.
//!
//! Invariants: each run has a Lua state of its own, which nothing outlives; instructions, time and memory are
//! bounded, and a script cannot catch the end of its budget; a script reaches no file, no clock, no process,
//! and no code other than its own text.

mod bit;
mod convert;
mod json;
mod libraries;
mod library;
mod msgpack;
mod structs;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mlua::{Function, HookTriggers, Lua, LuaOptions, StdLib, Table, Value, VmState, chunk::ChunkMode};
use parking_lot::Mutex;

use crate::{Reply, view::View};
use convert::{reply_of, reply_table};

/// Bytes of one script's memory.
const MEMORY_BYTES_MAX: usize = 32 << 20;
/// Instructions between two checks of the budget.
const STEP_INSTRUCTIONS: u32 = 1_000;
/// Work that one instruction counts for, in the bytes of [`crate::view::WORK_BYTES_MAX`]: about 16 million
/// instructions in all.
const INSTRUCTION_WORK: usize = 4;
/// How long a script may run. Functions of the library count as one instruction, however long they take.
const RUN_TIME_MAX: Duration = Duration::from_millis(500);
/// Work that a caught error counts for: its traceback is costly.
const ERROR_WORK: usize = 100_000;
/// Scripts that a node remembers, and their bytes; the oldest are forgotten first.
const SCRIPTS_MAX: usize = 4_096;
const SCRIPTS_BYTES_MAX: usize = 16 << 20;

const PRELUDE: &str = include_str!("prelude.lua");
const TOO_LONG: &str = "ERR the script runs too long or uses too much memory; nothing was written";
const NOT_LUA: &str = "ERR the script cannot run";

/// `EVAL` and its variants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eval {
    /// The script.
    pub script: Script,
    /// The keys that it may use.
    pub keys: Vec<Bytes>,
    /// Its other arguments.
    pub arguments: Vec<Bytes>,
    /// `EVAL_RO` and `EVALSHA_RO`: it may not write.
    pub only_reads: bool,
}

/// How a request names a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// By its text.
    Text(Bytes),
    /// By the SHA-1 of its text, in hexadecimal digits.
    Digest(Bytes),
}

/// The scripts that this node has seen.
#[derive(Debug, Default)]
pub(crate) struct Scripts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    texts: BTreeMap<String, Bytes>,
    /// From the oldest on.
    order: VecDeque<String>,
    bytes: usize,
}

/// The digest by which a script is called.
pub(crate) fn digest_of(text: &[u8]) -> String {
    sha1_smol::Sha1::from(text).digest().to_string()
}

impl Scripts {
    /// Remembers a script; returns its digest.
    pub(crate) fn insert(&self, text: &Bytes) -> String {
        let digest = digest_of(text);
        let mut known = self.0.lock();
        if !known.texts.contains_key(&digest) && text.len() <= SCRIPTS_BYTES_MAX {
            known.bytes += text.len();
            // Copied, because it is a slice of an input buffer.
            known.texts.insert(digest.clone(), Bytes::copy_from_slice(text));
            known.order.push_back(digest.clone());
            while known.order.len() > SCRIPTS_MAX || known.bytes > SCRIPTS_BYTES_MAX {
                let Some(oldest) = known.order.pop_front() else { break };
                known.bytes -= known.texts.remove(&oldest).map_or(0, |text| text.len());
            }
        }
        digest
    }

    /// The text of a script with this digest, in any case.
    pub(crate) fn find(&self, digest: &[u8]) -> Option<Bytes> {
        let digest = String::from_utf8_lossy(digest).to_ascii_lowercase();
        self.0.lock().texts.get(&digest).cloned()
    }

    pub(crate) fn clear(&self) {
        *self.0.lock() = Known::default();
    }
}

/// Whether a text is a script, or the reply that says why not.
pub(crate) fn check(text: &[u8]) -> Result<(), Reply> {
    let lua = state().map_err(|_| Reply::Error(NOT_LUA.into()))?;
    match lua.load(text).set_name("@user_script").set_mode(ChunkMode::Text).into_function() {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Reply::error(format_args!("ERR Error compiling script (new function): {}", first_line(&error))))
        }
    }
}

fn state() -> mlua::Result<Lua> {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::MATH, LuaOptions::new())?;
    lua.set_memory_limit(MEMORY_BYTES_MAX)?;
    Ok(lua)
}

/// The first line of an error; the others are a traceback.
fn first_line(error: &mlua::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Runs a script on a view of its keys. When it fails, the view is as before.
pub(crate) fn run(eval: &Eval, view: &mut View) -> Result<Reply, Reply> {
    let Script::Text(text) = &eval.script else {
        return Err(Reply::Error("NOSCRIPT No matching script. Please use EVAL.".into()));
    };
    let until = Instant::now() + RUN_TIME_MAX;
    let budget = Rc::new(Budget { left: Cell::new(view.work_left()), until, exceeded: Cell::new(false) });
    let before = view.clone();
    let ended = run_in(text, eval, view, &budget);
    let used = view.work_left().saturating_sub(budget.left.get());
    let reply = match ended {
        _ if budget.exceeded.get() => Reply::Error(TOO_LONG.into()),
        Ok(reply) => reply,
        Err(mlua::Error::MemoryError(_)) => Reply::Error(TOO_LONG.into()),
        Err(error) => Reply::error(format_args!("ERR {}", first_line(&error))),
    };
    if let Reply::Error(_) = reply {
        *view = before;
        return Err(reply);
    }
    view.spend(used)?;
    Ok(reply)
}

/// Work that a script may still do.
struct Budget {
    left: Cell<usize>,
    until: Instant,
    exceeded: Cell<bool>,
}

impl Budget {
    fn spend(&self, work: usize) -> mlua::Result<()> {
        match self.left.get().checked_sub(work) {
            Some(left) if Instant::now() < self.until => {
                self.left.set(left);
                Ok(())
            }
            _ => {
                self.exceeded.set(true);
                Err(mlua::Error::runtime(TOO_LONG))
            }
        }
    }
}

fn run_in(text: &Bytes, eval: &Eval, view: &mut View, budget: &Rc<Budget>) -> mlua::Result<Reply> {
    let lua = state()?;
    let script = match lua.load(&text[..]).set_name("@user_script").set_mode(ChunkMode::Text).into_function() {
        Ok(script) => script,
        Err(error) => {
            let text = format!("ERR Error compiling script (new function): {}", first_line(&error));
            return Ok(Reply::Error(text.into()));
        }
    };
    let hooked = budget.clone();
    let every = HookTriggers::new().every_nth_instruction(STEP_INSTRUCTIONS);
    lua.set_hook(every, move |_, _| {
        hooked.spend(STEP_INSTRUCTIONS as usize * INSTRUCTION_WORK).map(|()| VmState::Continue)
    })?;
    let list = |items: &[Bytes]| -> mlua::Result<Table> {
        let table = lua.create_table()?;
        for item in items {
            table.raw_push(lua.create_string(&item[..])?)?;
        }
        Ok(table)
    };
    let (keys, arguments) = (list(&eval.keys)?, list(&eval.arguments)?);
    let view = RefCell::new(view);
    lua.scope(|scope| {
        let call = scope.create_function(|lua, words: mlua::Variadic<Value>| {
            let reply = match view.try_borrow_mut() {
                Ok(mut view) => library::call(&words, eval, &mut view),
                Err(_) => Reply::Error("ERR a command is running already".into()),
            };
            reply_table(lua, reply)
        })?;
        let charged = budget.clone();
        let caught = scope.create_function(move |_, ()| charged.spend(ERROR_WORK))?;
        let exceeded = budget.clone();
        let is_over = scope.create_function(move |_, ()| Ok(exceeded.exceeded.get()))?;
        let sha1hex =
            scope.create_function(|lua, text: mlua::LuaString| lua.create_string(digest_of(&text.as_bytes())))?;
        let natives = libraries::natives(&lua, budget)?;
        let prelude: Function = lua.load(PRELUDE).set_name("@prelude").eval()?;
        let result: Value = prelude.call((script, keys, arguments, call, caught, is_over, sha1hex, natives))?;
        reply_of(&result, &mut |work| budget.spend(work))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{absent, found};

    fn eval_on(view: &mut View, text: &str) -> Reply {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let eval = Eval {
            script: Script::Text(bytes(text)),
            keys: vec![bytes("k"), bytes("n")],
            arguments: vec![bytes("v"), bytes("2")],
            only_reads: false,
        };
        run(&eval, view).unwrap_or_else(|refusal| refusal)
    }

    fn view() -> View {
        View::new(
            [found("k", b"5", None), absent("n"), found("other", b"x", None)],
            true,
            flotilla_api::VALUE_BYTES_MAX,
            0,
        )
    }

    fn eval(text: &str) -> Reply {
        eval_on(&mut view(), text)
    }

    fn error(text: &str) -> String {
        match eval(text) {
            Reply::Error(text) => text.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_converted_as_in_redis() {
        for (text, reply) in [
            ("return 3.99", Reply::Integer(3)),
            ("return 'text'", Reply::text("text")),
            ("return true", Reply::Integer(1)),
            ("return false", Reply::Null),
            ("return nil", Reply::Null),
            ("return", Reply::Null),
            ("return {1, 'a', {2}}", {
                Reply::Array(vec![Reply::Integer(1), Reply::text("a"), Reply::Array(vec![Reply::Integer(2)])])
            }),
            ("return {1, nil, 3}", Reply::Array(vec![Reply::Integer(1)])),
            ("return {ok='FINE'}", Reply::Status("FINE".into())),
            ("return redis.status_reply('FINE')", Reply::Status("FINE".into())),
            ("return {KEYS[1], KEYS[2], ARGV[1], #KEYS, #ARGV}", {
                let items = [Reply::text("k"), Reply::text("n"), Reply::text("v")];
                Reply::Array(items.into_iter().chain([Reply::Integer(2), Reply::Integer(2)]).collect())
            }),
            ("return redis.sha1hex('')", Reply::text("da39a3ee5e6b4b0d3255bfef95601890afd80709")),
            ("return tostring(redis.call('GET', KEYS[2]))", Reply::text("false")),
            ("return redis.call('MGET', KEYS[1], KEYS[2])[1]", Reply::text("5")),
            ("return redis.call('SET', KEYS[2], ARGV[1])", Reply::Status("OK".into())),
            ("return type(redis.pcall('INCRBY', KEYS[1], 'x').err)", Reply::text("string")),
            ("return redis.call('INCRBY', KEYS[1], 2)", Reply::Integer(7)),
            (
                "local t = {} for i = 1, 1000 do t[i] = i end return select('#', pcall(unpack, t))",
                Reply::Integer(1_001),
            ),
        ] {
            assert_eq!(eval(text), reply, "{text}");
        }
    }

    #[test]
    fn json_is_written_and_read_as_in_redis() {
        for (text, reply) in [
            ("return cjson.encode({1, 2.5, 'a', true, cjson.null})", "[1,2.5,\"a\",true,null]"),
            ("return cjson.encode({})", "{}"),
            ("return cjson.encode({a = {b = {}}})", "{\"a\":{\"b\":{}}}"),
            ("return cjson.encode({[1] = 1, [3] = 3})", "[1,null,3]"),
            ("return cjson.encode('\"\\\\/\\b\\f\\n\\r\\t\\0\\127')", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u007f\""),
            ("return cjson.encode(2 ^ 53)", "9.007199254741e+15"),
            ("return cjson.encode(1e14 / 10)", "10000000000000"),
            ("return cjson.encode({[1.5] = 1})", "{\"1.5\":1}"),
            ("return cjson.decode('[1,[2,{\"k\":[3,\"x\"]}]]')[2][2].k[2]", "x"),
            ("return type(cjson.decode('null')) .. tostring(cjson.decode('[null]')[1] == cjson.null)", "userdatatrue"),
            ("return cjson.encode(cjson.decode('{\"a\":[0.1,-5e3,\"\\\\u00fc\"]}'))", "{\"a\":[0.1,-5000,\"ü\"]}"),
            ("return tostring(cjson.decode('9007199254740993'))", "9.007199254741e+15"),
        ] {
            assert_eq!(eval(text), Reply::text(reply), "{text}");
        }
        for (text, part) in [
            ("return cjson.encode(0 / 0)", "must not be NaN or Inf"),
            ("return cjson.encode({[100] = 1})", "excessively sparse array"),
            ("return cjson.encode({[true] = 1})", "table key must be a number or string"),
            ("return cjson.encode(print_nothing or tostring)", "nonexistent global"),
            ("return cjson.encode(tostring)", "user_script:1: Cannot serialise function: type not supported"),
            ("local t = {} t[1] = t return cjson.encode(t)", "excessive nesting"),
            ("return cjson.decode('[')", "user_script:1: Expected value but found T_END at character 2"),
            ("return cjson.decode('[1] x')", "Expected the end but found invalid token at character 5"),
            ("return cjson.decode(('['):rep(1000))", "Found too many nested data structures (129) at character 129"),
            ("return cjson.decode('{\"a\" 1}')", "Expected colon but found T_NUMBER at character 6"),
            ("return cjson.decode('{\"a\":1,}')", "Expected object key string but found T_OBJ_END at character 8"),
            ("return cjson.decode('[1 2]')", "Expected comma or array end but found T_NUMBER at character 4"),
            ("return cjson.decode('\"\\\\x\"')", "invalid escape code"),
            ("return cjson.decode('\"\\\\ud800\"')", "invalid unicode escape code"),
            ("return cjson.decode('\"a')", "unexpected end of string"),
            ("cjson.decode_invalid_numbers(false) return cjson.decode('[0x10]')", "invalid number at character 2"),
            ("cjson.decode_invalid_numbers(false) return cjson.decode('[nan]')", "invalid token at character 2"),
            ("cjson.decode_max_depth(1) return cjson.decode('[[]]')", "Found too many nested data structures (2)"),
            ("cjson.encode_max_depth(1) return cjson.encode({{}})", "excessive nesting (2)"),
            ("cjson.encode_max_depth(0)", "bad argument #1 to 'encode_max_depth' (expected integer between 1 and"),
            ("cjson.encode_max_depth('x')", "(number expected, got string)"),
            ("cjson.encode_number_precision(15)", "expected integer between 1 and 14"),
            ("cjson.encode_keep_buffer('maybe')", "bad argument #1 to 'encode_keep_buffer' (invalid option 'maybe')"),
            ("cjson.encode_keep_buffer(true, 1)", "bad argument #2 to 'encode_keep_buffer' (found too many arguments)"),
            ("cjson.encode_sparse_array(false, -1)", "expected integer between 0 and"),
            ("return cjson.decode({})", "bad argument #1 to 'decode' (string expected, got table)"),
            ("return cjson.decode('1', '2')", "bad argument #1 to 'decode' (expected 1 argument)"),
            ("return cjson.encode()", "bad argument #1 to 'encode' (expected 1 argument)"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let caught = "local ok, why = pcall(cjson.decode, '{') return {tostring(ok), type(why)}";
        assert_eq!(eval(caught), Reply::Array(vec![Reply::text("false"), Reply::text("string")]));
    }

    #[test]
    fn the_settings_of_json_hold_until_the_script_ends() {
        let shown = |call: &str| eval(&format!("return cjson.encode({{cjson.{call}}})"));
        for (call, reply) in [
            ("encode_sparse_array()", "[false,2,10]"),
            ("encode_sparse_array(true, 3, 4)", "[true,3,4]"),
            ("encode_sparse_array('on', nil, 4)", "[true,2,4]"),
            ("encode_max_depth()", "[1000]"),
            ("decode_max_depth('7')", "[7]"),
            ("encode_number_precision(3)", "[3]"),
            ("encode_keep_buffer(false)", "[false]"),
            ("encode_invalid_numbers()", "[false]"),
            ("encode_invalid_numbers(true)", "[true]"),
            ("encode_invalid_numbers('null')", "[\"null\"]"),
            ("decode_invalid_numbers()", "[true]"),
        ] {
            assert_eq!(shown(call), Reply::text(reply), "{call}");
        }
        for (text, reply) in [
            ("cjson.encode_sparse_array(true) return cjson.encode({[100] = 1})", "{\"100\":1}"),
            ("cjson.encode_sparse_array(false, 0) return #cjson.encode({[100] = 1})", "498"),
            ("cjson.encode_sparse_array(false, 2, 3) return cjson.encode({[3] = 1})", "[null,null,1]"),
            ("cjson.encode_number_precision(3) return cjson.encode({1/3, 12345, 1e-7, 100, 0})", {
                "[0.333,1.23e+04,1e-07,100,0]"
            }),
            ("cjson.encode_invalid_numbers('null') return cjson.encode({0/0, 1/0})", "[null,null]"),
            ("cjson.encode_invalid_numbers(true) return cjson.encode({0/0, 1/0, -1/0})", "[nan,inf,-inf]"),
            ("return cjson.encode(cjson.decode('[0x1F,007,-0x2,1.,+4,1e2]'))", "[31,7,-2,1,4,100]"),
            ("return tostring(cjson.decode('[-Infinity]')[1]) .. tostring(cjson.decode('[inf]')[1])", "-infinf"),
            ("return cjson.decode('\"\\\\ud83d\\\\ude00\\255\\\\/\"')", "\u{1f600}\\255/"),
        ] {
            let reply = match reply.parse() {
                Ok(number) => Reply::Integer(number),
                Err(_) if reply.contains("\\255") => Reply::Bulk(Bytes::from_static(b"\xf0\x9f\x98\x80\xff/")),
                Err(_) => Reply::text(reply),
            };
            assert_eq!(eval(text), reply, "{text}");
        }
    }

    #[test]
    fn structures_are_written_and_read_as_in_redis() {
        let hex = |call: &str| {
            eval(&format!("return (struct.pack({call}):gsub('.', function(c) return ('%02x'):format(c:byte()) end))"))
        };
        for (call, packed) in [
            ("'bBhH', -1, 255, -2, 65535", "ff ff feff ffff"),
            ("'>hH<iI', 1, 2, 3, 4", "0001 0002 03000000 04000000"),
            ("'lL', -1, 2^53", "ffffffffffffffff 0000000000002000"),
            ("'>T', 258", "0000000000000102"),
            ("'i3>i3', -2, 66051", "feffff 010203"),
            ("'I16', 1", "01000000000000000000000000000000"),
            ("'!4bi', 1, 2", "01000000 02000000"),
            ("'!bd', 1, 0.5", "0100000000000000 000000000000e03f"),
            ("'>fd', 0.5, -2", "3f000000 c000000000000000"),
            ("'xc3c0s', 'abcd', 'ef', 'g'", "00 616263 6566 6700"),
            ("' b b ', '1', 2", "0102"),
        ] {
            assert_eq!(hex(call), Reply::text(packed.replace(' ', "")), "{call}");
        }
        for (text, reply) in [
            ("return cjson.encode({struct.unpack('bBhHi3', struct.pack('bBhHi3', -1, 255, -2, 65535, -3))})", {
                "[-1,255,-2,65535,-3,10]"
            }),
            ("return cjson.encode({struct.unpack('>I2fd', struct.pack('>I2fd', 7, 0.5, 0.1))})", "[7,0.5,0.1,15]"),
            ("return cjson.encode({struct.unpack('Bc0s', struct.pack('Bc0s', 3, 'abc', 'de'))})", "[\"abc\",\"de\",8]"),
            ("return cjson.encode({struct.unpack('b', 'abc', 3)})", "[99,4]"),
            ("return cjson.encode({struct.unpack('!4bi', struct.pack('!4bi', 1, 2))})", "[1,2,9]"),
            (
                "return cjson.encode({struct.size('bhi'), struct.size('!bhi'), struct.size('!8 bd'), struct.size('c5x')})",
                { "[7,8,16,6]" },
            ),
        ] {
            assert_eq!(eval(text), Reply::text(reply), "{text}");
        }
        for (text, part) in [
            ("struct.pack('i33', 1)", "user_script:1: integral size 33 is larger than limit of 32"),
            ("struct.pack('i99999999999', 1)", "integral size overflow"),
            ("struct.pack('!3')", "alignment 3 is not a power of 2"),
            ("struct.pack('q', 1)", "bad argument #1 to 'pack' (invalid format option 'q')"),
            ("struct.pack('i')", "bad argument #2 to 'pack' (number expected, got nil)"),
            ("struct.pack('i', {})", "bad argument #2 to 'pack' (number expected, got table)"),
            ("struct.pack('c5', 'abc')", "bad argument #3 to 'pack' (string too short)"),
            ("struct.unpack('i', 'abc')", "bad argument #2 to 'unpack' (data string too short)"),
            ("struct.unpack('i', 'abcd', 2)", "data string too short"),
            ("struct.unpack('i', 'abcd', 0)", "bad argument #3 to 'unpack' (offset must be 1 or greater)"),
            ("struct.unpack('b', 'abcd', 1e300)", "data string too short"),
            ("struct.unpack('Bc0', '\\9abc')", "data string too short"),
            ("struct.unpack('c0', 'abc')", "format 'c0' needs a previous size"),
            ("struct.unpack('s', 'abc')", "unfinished string in data"),
            ("struct.size('s')", "bad argument #1 to 'size' (option 's' has no fixed size)"),
            ("struct.unpack('i')", "bad argument #2 to 'unpack' (string expected, got no value)"),
            ("struct.size('c0')", "option 'c0' has no fixed size"),
            ("struct.pack(('c2147483647'):rep(9), 'a')", "string too short"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn message_pack_is_written_and_read_as_in_redis() {
        let hex = |call: &str| {
            eval(&format!("return (cmsgpack.pack({call}):gsub('.', function(c) return ('%02x'):format(c:byte()) end))"))
        };
        for (call, packed) in [
            ("0, 127, 128, 255, 256, 65535, 65536", "007fcc80ccffcd0100cdffffce00010000"),
            ("4294967295, 4294967296", "ceffffffffcf0000000100000000"),
            ("-1, -32, -33, -128, -129, -32768, -32769", "ffe0d0dfd080d1ff7fd18000d2ffff7fff"),
            ("-2147483648, -2147483649", "d280000000d3ffffffff7fffffff"),
            ("0.5, 0.1", "ca3f000000cb3fb999999999999a"),
            ("nil, true, false", "c0c3c2"),
            ("'abc', ('x'):rep(32):sub(1, 0)", "a3616263a0"),
            ("{}, {1, 2}, {a = 1}", "90920102 81a16101"),
        ] {
            assert_eq!(hex(call), Reply::text(packed.replace(' ', "")), "{call}");
        }
        for (text, reply) in [
            ("local t = {1, -5, 'x', {a = {b = 0.1}}, true} return cjson.encode(cmsgpack.unpack(cmsgpack.pack(t)))", {
                "[1,-5,\"x\",{\"a\":{\"b\":0.1}},true]"
            }),
            ("return cjson.encode({cmsgpack.unpack(cmsgpack.pack(1, 'b', {3}))})", "[1,\"b\",[3]]"),
            ("return cjson.encode({cmsgpack.unpack_one(cmsgpack.pack(1, 2, 3), 1)})", "[2,2]"),
            ("return cjson.encode({cmsgpack.unpack_limit(cmsgpack.pack(1, 2, 3), 9, 1)})", "[-1,2,3]"),
            ("return cmsgpack.unpack(cmsgpack.pack(('y'):rep(300)))", &"y".repeat(300)),
            ("return tostring(cmsgpack.unpack(cmsgpack.pack(2 ^ 53 + 2)) == 2 ^ 53 + 2)", "true"),
            ("local t = {} t[1] = t return type(cmsgpack.pack(t))", "string"),
        ] {
            assert_eq!(eval(text), Reply::text(reply), "{text}");
        }
        for (text, part) in [
            ("return cmsgpack.unpack('\\145')", "Missing bytes in input."),
            ("return cmsgpack.unpack('\\145\\193')", "Bad data format in input."),
            ("return cmsgpack.unpack('\\145\\199')", "Bad data format in input."),
            ("return cmsgpack.unpack('\\145\\221\\255\\255\\255\\255')", "Missing bytes in input."),
            ("return cmsgpack.unpack('\\129\\192\\1')", "Bad data format in input."),
            ("return cmsgpack.unpack(('\\145'):rep(1000))", "Bad data format in input."),
            ("return cmsgpack.unpack_one('\\1', 5)", "Start offset 5 greater than input length 1."),
            ("return cmsgpack.unpack_limit('\\1', -1)", "Invalid request to unpack with offset of 0 and limit of -1."),
            ("return cmsgpack.pack()", "MessagePack pack needs input."),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn hostile_structures_are_read_or_refused_within_the_budget() {
        use flotilla_hostile::{attack, mutated};
        use proptest::sample::select;

        let documents: &[&[u8]] = &[
            b"{\"a\":[1,-2.5e3,\"\\u00fc\",null,true,{\"b\":{}}]}",
            b"[[[[[[[[[[]]]]]]]]]]",
            b"!8>bBhHi3I16lLT<fdc0c5sx i32",
            b"\x94\x01\xa3abc\x82\xa1k\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a\x01\xc0\xd2\xff\xff\xff\x00",
            b"\xdd\x00\x00\x00\x02\xdb\x00\x00\x00\x01x\xdf\x00\x00\x00\x01\x01\x02",
        ];
        let text = "local ok = {pcall(cjson.decode, ARGV[1])} local also = {pcall(cmsgpack.unpack, ARGV[1])} \
                    cjson.encode_invalid_numbers(true) pcall(struct.size, ARGV[1]) \
                    pcall(struct.unpack, ARGV[1], ARGV[1]) pcall(struct.pack, ARGV[1], ARGV[1], 1, ARGV[1]) \
                    if ok[1] then cjson.encode(ok[2]) end return #cmsgpack.pack(also)";
        attack(500, mutated(select(documents)), |bytes| {
            let length = bytes.len();
            let script = Script::Text(Bytes::from_static(text.as_bytes()));
            let eval = Eval { script, keys: Vec::new(), arguments: vec![bytes.into()], only_reads: true };
            match run(&eval, &mut view()) {
                Ok(Reply::Integer(_)) => {}
                // Each byte may be a value, and the memory of a script is bounded.
                Err(Reply::Error(error)) if error == TOO_LONG => assert!(length > 64 << 10, "{length} bytes"),
                // What was decoded from nested lists may be too sparse or too deep to be encoded again.
                Err(Reply::Error(error)) => assert!(error.contains("Cannot serialise"), "{error}"),
                other => panic!("{other:?}"),
            }
        });
    }

    #[test]
    fn bits_are_combined_as_in_redis() {
        for (text, reply) in [
            ("return bit.band(0xff0, 0x0ff)", "240"),
            ("return bit.bor(1, 2, '4')", "7"),
            ("return bit.bxor(0xffffffff, 0)", "-1"),
            ("return bit.bnot(0)", "-1"),
            ("return bit.lshift(1, 31)", "-2147483648"),
            ("return bit.lshift(1, 33)", "2"),
            ("return bit.rshift(-1, 28)", "15"),
            ("return bit.arshift(-256, 8)", "-1"),
            ("return bit.tobit(0xffffffff + 2)", "1"),
            ("return bit.bswap(0x12345678)", "2018915346"),
            ("return bit.rol(0x12345678, 12) == bit.ror(0x12345678, 20) and 1 or 0", "1"),
        ] {
            assert_eq!(
                eval(&format!("{} .. ''", text.replace("return ", "return (").trim_end().to_owned() + ")")),
                { Reply::text(reply) },
                "{text}"
            );
        }
        assert_eq!(
            eval("return bit.tohex(-1) .. bit.tohex(255, 4) .. bit.tohex(255, -2)"),
            Reply::text("ffffffff00ffFF")
        );
    }

    #[test]
    fn a_script_sees_its_own_writes_and_one_that_fails_writes_nothing() {
        let mut view = view();
        let key = Bytes::from_static(b"n");
        assert_eq!(
            eval_on(&mut view, "redis.call('SET', KEYS[2], 1); return redis.call('INCR', KEYS[2])"),
            Reply::Integer(2)
        );
        assert_eq!(view.value(&key), b"2");
        let failed = eval_on(&mut view, "redis.call('SET', KEYS[2], 9); error('no')");
        assert!(matches!(failed, Reply::Error(_)));
        assert_eq!(view.value(&key), b"2");
    }

    #[test]
    fn what_a_script_may_not_do_is_refused() {
        for (text, part) in [
            ("return redis.call('GET', 'other')", "not among its KEYS"),
            ("return redis.call('SCAN', 0)", "not allowed from script"),
            ("return redis.call('EVAL', 'return 1', 0)", "not allowed from script"),
            ("return redis.call('NOPE')", "Unknown Redis command called from script"),
            ("return redis.call('GET')", "Wrong number of args"),
            ("return redis.call()", "at least one argument"),
            ("return redis.call('GET', {})", "must be strings or integers"),
            ("return redis.call('INCR', KEYS[1], 1, 2)", "Wrong number of args"),
            ("return {err='MINE text'}", "MINE text"),
            ("return redis.error_reply('MINE text')", "MINE text"),
            ("error('mine')", "mine"),
            ("error({err='MINE table'})", "MINE table"),
            ("return undefined", "nonexistent global variable 'undefined'"),
            ("x = 1", "readonly"),
            ("return )", "Error compiling script"),
            ("\x1bLua", "Error compiling script"),
            ("return load('return 1')", "nonexistent global variable 'load'"),
            ("return os.time()", "nonexistent global variable 'os'"),
            ("return io.open('x')", "nonexistent global variable 'io'"),
            ("return require('x')", "nonexistent global variable 'require'"),
            ("return getfenv(0)", "nonexistent global variable 'getfenv'"),
            ("return ('').dump(function() end)", "nil"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn no_script_escapes_its_budget() {
        for text in [
            "while true do end",
            "while true do pcall(function() while true do end end) end",
            "local function f() return pcall(f) or f() end f()",
            "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(1000) end",
            "local t = {} while true do pcall(function() for i = 1, 1e9 do t[#t + 1] = ('x'):rep(1000) end end) end",
            "local t = {} t[1] = t return t",
            "for i = 1, 1e9 do redis.call('APPEND', KEYS[1], ('x'):rep(100000)) end",
            "return ('x'):rep(1e9)",
            "local t = {} for i = 1, 1e5 do t[i] = 'abcdefgh' end while true do cjson.encode(t) end",
            "local t = {} for i = 1, 1e5 do t[i] = 'abcdefgh' end while true do cmsgpack.pack(t) end",
            "local s = '[' .. ('[],'):rep(1e5) .. '1]' local t = {} while true do t[#t + 1] = cjson.decode(s) end",
            "local s = cmsgpack.pack({('x'):rep(1e6)}) while true do pcall(cmsgpack.unpack, s) end",
        ] {
            let mut view = view();
            let reply = eval_on(&mut view, text);
            assert!(matches!(reply, Reply::Error(_)), "{text}: {reply:?}");
            assert_eq!(view.value(&Bytes::from_static(b"k")), b"5", "{text}");
        }
    }

    #[test]
    fn scripts_are_found_by_their_digest_and_the_oldest_is_forgotten_first() {
        let scripts = Scripts::default();
        let first = scripts.insert(&Bytes::from_static(b"return 1"));
        assert_eq!(scripts.find(first.to_uppercase().as_bytes()).as_deref(), Some(&b"return 1"[..]));
        for number in 0..SCRIPTS_MAX {
            scripts.insert(&format!("return {number} + 1").into());
        }
        assert!(scripts.find(first.as_bytes()).is_none());
        scripts.clear();
        assert!(scripts.0.lock().texts.is_empty() && scripts.0.lock().bytes == 0);
    }
}
