//! The library `cjson` of scripts, with the defaults that Redis leaves it at.
//!
//! Decoding builds Lua values as it reads, so what it makes counts on the script's memory; encoding spends
//! its bytes from the script's budget. Both are bounded in depth, because they recurse.

use std::{borrow::Cow, cell::RefCell, fmt};

use mlua::{Lua, Table, Value};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Budget;

/// Nesting of tables that are encoded. Decoding has the same limit from its parser.
const DEPTH_MAX: usize = 128;
/// A list may have gaps up to this length.
const SPARSE_LENGTH_MAX: usize = 10;
/// A longer one may be this many times as long as it has items.
const SPARSE_RATIO_MAX: usize = 2;

/// The JSON text of a value.
pub(super) fn encode(lua: &Lua, value: &Value, budget: &Budget) -> mlua::Result<Value> {
    let mut text = Vec::new();
    Encoder { lua, budget, text: &mut text }.value(value, 0)?;
    lua.create_string(text).map(Value::String)
}

struct Encoder<'a> {
    lua: &'a Lua,
    budget: &'a Budget,
    text: &'a mut Vec<u8>,
}

impl Encoder<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> mlua::Result<()> {
        let before = self.text.len();
        match value {
            Value::Boolean(true) => self.text.extend_from_slice(b"true"),
            Value::Boolean(false) => self.text.extend_from_slice(b"false"),
            Value::Integer(_) | Value::Number(_) => self.number(value)?,
            Value::String(text) => self.string(&text.as_bytes()),
            Value::Table(_) if depth == DEPTH_MAX => {
                return Err(mlua::Error::runtime(format_args!("Cannot serialise, excessive depth ({})", depth + 1)));
            }
            Value::Table(table) => return self.table(table, depth),
            value if value.is_nil() || value.is_null() => self.text.extend_from_slice(b"null"),
            other => return Err(cannot(other.type_name(), "type not supported")),
        }
        self.budget.spend(self.text.len() - before + 1)
    }

    /// As Lua prints numbers, with 14 digits.
    fn number(&mut self, number: &Value) -> mlua::Result<()> {
        if matches!(number, Value::Number(number) if !number.is_finite()) {
            return Err(cannot("number", "must not be NaN or Inf"));
        }
        let text = self.lua.coerce_string(number.clone())?.ok_or_else(|| cannot("number", "type not supported"))?;
        self.text.extend_from_slice(&text.as_bytes());
        Ok(())
    }

    fn string(&mut self, bytes: &[u8]) {
        self.text.push(b'"');
        for byte in bytes {
            let short = match byte {
                b'"' | b'\\' | b'/' => *byte,
                0x08 => b'b',
                0x09 => b't',
                0x0a => b'n',
                0x0c => b'f',
                0x0d => b'r',
                0..=0x1f | 0x7f => {
                    self.text.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                    continue;
                }
                _ => {
                    self.text.push(*byte);
                    continue;
                }
            };
            self.text.extend_from_slice(&[b'\\', short]);
        }
        self.text.push(b'"');
    }

    fn table(&mut self, table: &Table, depth: usize) -> mlua::Result<()> {
        self.budget.spend(1)?;
        // An empty table is an object.
        match list_length(table, self.budget)? {
            Some(length) if length > 0 => self.list(table, length, depth),
            _ => self.object(table, depth),
        }
    }

    fn list(&mut self, table: &Table, length: usize, depth: usize) -> mlua::Result<()> {
        self.text.push(b'[');
        for at in 1..=length {
            if at > 1 {
                self.text.push(b',');
            }
            self.value(&table.raw_get(at)?, depth + 1)?;
        }
        self.text.push(b']');
        Ok(())
    }

    fn object(&mut self, table: &Table, depth: usize) -> mlua::Result<()> {
        self.text.push(b'{');
        let mut is_first = true;
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            if !std::mem::take(&mut is_first) {
                self.text.push(b',');
            }
            match &key {
                Value::String(key) => self.string(&key.as_bytes()),
                Value::Integer(_) | Value::Number(_) => {
                    self.text.push(b'"');
                    self.number(&key)?;
                    self.text.push(b'"');
                }
                _ => return Err(cannot(key.type_name(), "table key must be a number or string")),
            }
            self.text.push(b':');
            self.budget.spend(key.as_string().map_or(0, |key| key.as_bytes().len()))?;
            self.value(&value, depth + 1)?;
        }
        self.text.push(b'}');
        Ok(())
    }
}

fn cannot(what: &str, why: &str) -> mlua::Error {
    mlua::Error::runtime(format_args!("Cannot serialise {what}: {why}"))
}

/// The length of a table whose keys are all positions of a list.
fn list_length(table: &Table, budget: &Budget) -> mlua::Result<Option<usize>> {
    let (mut length, mut items) = (0, 0_usize);
    for pair in table.pairs::<Value, Value>() {
        budget.spend(1)?;
        let Some(at) = position(&pair?.0) else { return Ok(None) };
        length = length.max(at);
        items += 1;
    }
    if length > SPARSE_LENGTH_MAX && length > items.saturating_mul(SPARSE_RATIO_MAX) {
        return Err(cannot("table", "excessively sparse array"));
    }
    Ok(Some(length))
}

/// The position in a list that a key is.
pub(super) fn position(key: &Value) -> Option<usize> {
    match key {
        Value::Integer(at) => usize::try_from(*at).ok().filter(|at| *at > 0),
        Value::Number(at) if *at >= 1.0 && at.fract() == 0.0 && *at < 9e15 => Some(*at as usize),
        _ => None,
    }
}

/// The value of a JSON text.
pub(super) fn decode(lua: &Lua, text: &[u8], budget: &Budget) -> mlua::Result<Value> {
    let failed = RefCell::new(None);
    let mut parser = serde_json::Deserializer::from_slice(text);
    let build = Build { lua, budget, failed: &failed };
    let decoded = build.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    decoded.map_err(|error| {
        let failed = failed.borrow_mut().take();
        failed.unwrap_or_else(|| mlua::Error::runtime(format_args!("Expected value but found invalid token: {error}")))
    })
}

/// Builds Lua values from what a parser reads.
#[derive(Clone, Copy)]
struct Build<'a> {
    lua: &'a Lua,
    budget: &'a Budget,
    /// Why the value could not be built, which the parser's errors cannot carry.
    failed: &'a RefCell<Option<mlua::Error>>,
}

impl Build<'_> {
    fn built<T, E: serde::de::Error>(self, built: mlua::Result<T>) -> Result<T, E> {
        built.map_err(|error| {
            *self.failed.borrow_mut() = Some(error);
            E::custom("the value cannot be built")
        })
    }

    fn string<E: serde::de::Error>(self, text: &str) -> Result<mlua::LuaString, E> {
        self.built(self.budget.spend(text.len() + 1))?;
        self.built(self.lua.create_string(text))
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.string(text).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let table: Table = self.built(self.lua.create_table())?;
        let mut length = 0_usize;
        while let Some(item) = items.next_element_seed(self)? {
            length += 1;
            self.built(self.budget.spend(1).and_then(|()| table.raw_set(length, item)))?;
        }
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let table: Table = self.built(self.lua.create_table())?;
        while let Some(key) = pairs.next_key::<Cow<'de, str>>()? {
            let (key, value) = (self.string(&key)?, pairs.next_value_seed(self)?);
            self.built(table.raw_set(key, value))?;
        }
        Ok(Value::Table(table))
    }
}
