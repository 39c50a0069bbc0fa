//! The libraries of scripts besides Lua's own: `cjson`, `cmsgpack`, `struct` and `bit`.
//!
//! What they refuse is an error with the place in the script in front, as Lua itself writes it. Scripts see
//! the text of an error (see [`describe`]); only the end of the budget stays an error that no script catches.

use std::{cell::RefCell, rc::Rc};

use mlua::{Lua, LuaString, MultiValue, Table, Value, Variadic};

use super::{Budget, bit, json, msgpack, structs};

type Call = fn(&Lua, &[Value], &Budget) -> mlua::Result<MultiValue>;

/// The libraries by name, and `describe`.
pub(super) fn natives(lua: &Lua, budget: &Rc<Budget>) -> mlua::Result<Table> {
    let set = |library: &Table, name: &str, call: Call| {
        let budget = budget.clone();
        let placed = move |lua: &Lua, arguments: Variadic<Value>| {
            call(lua, &arguments, &budget).map_err(|error| placed(lua, error))
        };
        library.raw_set(name, lua.create_function(placed)?)
    };
    let cmsgpack = lua.create_table()?;
    set(&cmsgpack, "pack", |lua, arguments, budget| msgpack::pack(lua, arguments, budget).map(one))?;
    set(&cmsgpack, "unpack", |lua, arguments, budget| msgpack::unpack(lua, &text(arguments)?.as_bytes(), budget))?;
    set(&cmsgpack, "unpack_one", |lua, arguments, budget| {
        msgpack::unpack_some(lua, &text(arguments)?.as_bytes(), 1, number(lua, arguments.get(1))?, budget)
    })?;
    set(&cmsgpack, "unpack_limit", |lua, arguments, budget| {
        let (limit, offset) = (number(lua, arguments.get(1))?, number(lua, arguments.get(2))?);
        msgpack::unpack_some(lua, &text(arguments)?.as_bytes(), limit, offset, budget)
    })?;
    let structs = lua.create_table()?;
    set(&structs, "pack", |lua, arguments, budget| structs::pack(lua, arguments, budget).map(one))?;
    set(&structs, "unpack", structs::unpack)?;
    set(&structs, "size", |lua, arguments, budget| structs::size(lua, arguments, budget).map(one))?;
    let natives = lua.create_table()?;
    natives.raw_set("struct", structs)?;
    natives.raw_set("cjson", cjson(lua, budget)?)?;
    natives.raw_set("cmsgpack", cmsgpack)?;
    natives.raw_set("bit", bit::library(lua)?)?;
    natives.raw_set("describe", lua.create_function(describe)?)?;
    Ok(natives)
}

/// The library `cjson`, whose functions share their settings.
fn cjson(lua: &Lua, budget: &Rc<Budget>) -> mlua::Result<Table> {
    let settings = Rc::new(RefCell::new(json::Settings::default()));
    let library = lua.create_table()?;
    library.raw_set("null", Value::NULL)?;
    let (held, charged) = (settings.clone(), budget.clone());
    let encode = move |lua: &Lua, arguments: Variadic<Value>| {
        let encoded = only(&arguments, "encode").and_then(|value| json::encode(lua, value, &held.borrow(), &charged));
        encoded.map_err(|error| placed(lua, error))
    };
    library.raw_set("encode", lua.create_function(encode)?)?;
    let (held, charged) = (settings.clone(), budget.clone());
    let decode = move |lua: &Lua, arguments: Variadic<Value>| {
        let decoded = only(&arguments, "decode").and_then(|value| {
            let wrong = || format!("bad argument #1 to 'decode' (string expected, got {})", value.type_name());
            let text = lua.coerce_string(value.clone())?.ok_or_else(|| mlua::Error::runtime(wrong()))?;
            json::decode(lua, &text.as_bytes(), &held.borrow(), &charged)
        });
        decoded.map_err(|error| placed(lua, error))
    };
    library.raw_set("decode", lua.create_function(decode)?)?;
    for function in json::Function::ALL {
        let held = settings.clone();
        let set = move |lua: &Lua, arguments: Variadic<Value>| {
            function.call(lua, &arguments, &mut held.borrow_mut()).map_err(|error| placed(lua, error))
        };
        library.raw_set(function.name(), lua.create_function(set)?)?;
    }
    Ok(library)
}

/// The only argument of a function of `cjson`.
fn only<'a>(arguments: &'a [Value], function: &str) -> mlua::Result<&'a Value> {
    match arguments {
        [value] => Ok(value),
        _ => Err(mlua::Error::runtime(format_args!("bad argument #1 to '{function}' (expected 1 argument)"))),
    }
}

/// Puts the place of the call in front of a refusal.
fn placed(lua: &Lua, error: mlua::Error) -> mlua::Error {
    let mlua::Error::RuntimeError(text) = &error else { return error };
    let place = lua.inspect_stack(1, |caller| {
        let source = caller.source();
        Some(format!("{}:{}: ", source.short_src.as_deref()?, caller.current_line()?))
    });
    mlua::Error::RuntimeError(place.flatten().unwrap_or_default() + text)
}

/// What a script sees of an error: the text of one of ours, else the value itself.
fn describe(lua: &Lua, error: Value) -> mlua::Result<Value> {
    let Value::Error(error) = &error else { return Ok(error) };
    let mut cause: &mlua::Error = error;
    while let mlua::Error::CallbackError { cause: inner, .. } = cause {
        cause = inner;
    }
    let text = match cause {
        mlua::Error::RuntimeError(text) => text.clone(),
        other => super::first_line(other),
    };
    lua.create_string(text).map(Value::String)
}

fn one(value: Value) -> MultiValue {
    MultiValue::from_iter([value])
}

/// The first argument, which must be a text.
fn text(arguments: &[Value]) -> mlua::Result<LuaString> {
    match arguments.first() {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(mlua::Error::runtime("bad argument #1: it must be a string")),
    }
}

/// A whole number; 0 when absent.
fn number(lua: &Lua, argument: Option<&Value>) -> mlua::Result<i64> {
    match argument {
        None | Some(Value::Nil) => Ok(0),
        Some(value) => {
            let number = lua.coerce_number(value.clone())?;
            number.map(|number| number as i64).ok_or_else(|| mlua::Error::runtime("bad argument: it must be a number"))
        }
    }
}
