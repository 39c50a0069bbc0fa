//! The libraries of scripts besides Lua's own: `cjson`, `cmsgpack` and `bit`.
//!
//! What they refuse is an error with the place in the script in front, as Lua itself writes it. Scripts see
//! the text of an error (see [`describe`]); only the end of the budget stays an error that no script catches.

use std::rc::Rc;

use mlua::{Lua, LuaString, MultiValue, Table, Value, Variadic};

use super::{Budget, bit, json, msgpack};

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
    let cjson = lua.create_table()?;
    cjson.raw_set("null", Value::NULL)?;
    set(&cjson, "encode", |lua, arguments, budget| {
        json::encode(lua, arguments.first().unwrap_or(&Value::Nil), budget).map(one)
    })?;
    set(&cjson, "decode", |lua, arguments, budget| json::decode(lua, &text(arguments)?.as_bytes(), budget).map(one))?;
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
    let natives = lua.create_table()?;
    natives.raw_set("cjson", cjson)?;
    natives.raw_set("cmsgpack", cmsgpack)?;
    natives.raw_set("bit", bit::library(lua)?)?;
    natives.raw_set("describe", lua.create_function(describe)?)?;
    Ok(natives)
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
