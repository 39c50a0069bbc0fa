//! Conversions between replies and Lua values, as Redis defines them for RESP2.

use bytes::Bytes;
use mlua::{Lua, Table, Value};

use crate::Reply;

/// Nesting of tables in a reply.
const DEPTH_MAX: u32 = 32;

/// The Lua value of a reply: null is `false`, a status is a table with `ok`, an error one with `err`.
pub(super) fn reply_table(lua: &Lua, reply: Reply) -> mlua::Result<Value> {
    let field = |name: &str, text: &str| -> mlua::Result<Value> {
        let table = lua.create_table()?;
        table.raw_set(name, text)?;
        Ok(Value::Table(table))
    };
    Ok(match reply {
        Reply::Simple(text) => field("ok", text)?,
        Reply::Status(text) => field("ok", &text)?,
        Reply::Error(text) => field("err", &text)?,
        Reply::Integer(number) => Value::Number(number as f64),
        Reply::Bulk(bytes) => Value::String(lua.create_string(&bytes[..])?),
        Reply::Verbatim(text) => Value::String(lua.create_string(text)?),
        Reply::Null | Reply::NullArray | Reply::Boolean(false) => Value::Boolean(false),
        Reply::Boolean(true) => Value::Number(1.0),
        Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => Value::Table(list(lua, items)?),
        Reply::Map(pairs) => Value::Table(list(lua, pairs.into_iter().flat_map(|(key, value)| [key, value]))?),
    })
}

fn list(lua: &Lua, items: impl IntoIterator<Item = Reply>) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for item in items {
        table.raw_push(reply_table(lua, item)?)?;
    }
    Ok(table)
}

/// The reply of a Lua value. Lists end at their first `nil`. `spend` bounds their size.
pub(super) fn reply_of(value: &Value, spend: &mut impl FnMut(usize) -> mlua::Result<()>) -> mlua::Result<Reply> {
    nested(value, DEPTH_MAX, spend)
}

fn nested(value: &Value, depth: u32, spend: &mut impl FnMut(usize) -> mlua::Result<()>) -> mlua::Result<Reply> {
    spend(size_of::<Reply>())?;
    Ok(match value {
        Value::Boolean(true) => Reply::Integer(1),
        Value::Integer(number) => Reply::Integer(*number),
        // As in Redis, decimals are cut off. Numbers out of range saturate.
        Value::Number(number) => Reply::Integer(*number as i64),
        Value::String(text) => {
            spend(text.as_bytes().len())?;
            Reply::Bulk(Bytes::copy_from_slice(&text.as_bytes()))
        }
        Value::Table(table) => {
            if let Value::String(text) = table.raw_get::<Value>("err")? {
                return Ok(Reply::Error(text.to_string_lossy().into()));
            }
            if let Value::String(text) = table.raw_get::<Value>("ok")? {
                return Ok(Reply::Status(text.to_string_lossy()));
            }
            if depth == 0 {
                return Err(mlua::Error::runtime("the reply of the script is nested too deeply"));
            }
            let mut items = Vec::new();
            for at in 1.. {
                match table.raw_get::<Value>(at)? {
                    Value::Nil => break,
                    item => items.push(nested(&item, depth - 1, spend)?),
                }
            }
            Reply::Array(items)
        }
        _ => Reply::Null,
    })
}
