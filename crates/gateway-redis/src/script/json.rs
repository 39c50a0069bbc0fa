//! The library `cjson` of scripts, with the settings and defaults that Redis has.
//!
//! Encoding spends its bytes from the script's budget, and is bounded in depth, because it recurses.

mod decode;
mod settings;

use mlua::{Lua, Table, Value};

pub(super) use decode::decode;
pub(super) use settings::{Function, Settings};

use super::Budget;
use settings::InvalidNumbers;

/// The JSON text of a value.
pub(super) fn encode(lua: &Lua, value: &Value, settings: &Settings, budget: &Budget) -> mlua::Result<Value> {
    let mut text = Vec::new();
    Encoder { lua, settings, budget, text: &mut text }.value(value, 0)?;
    lua.create_string(text).map(Value::String)
}

struct Encoder<'a> {
    lua: &'a Lua,
    settings: &'a Settings,
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
            Value::Table(_) if depth >= self.settings.encode_depth() => {
                return Err(mlua::Error::runtime(format_args!("Cannot serialise, excessive nesting ({})", depth + 1)));
            }
            Value::Table(table) => return self.table(table, depth),
            value if value.is_nil() || value.is_null() => self.text.extend_from_slice(b"null"),
            other => return Err(cannot(other.type_name(), "type not supported")),
        }
        self.budget.spend(self.text.len() - before + 1)
    }

    fn number(&mut self, number: &Value) -> mlua::Result<()> {
        let number = self.lua.coerce_number(number.clone())?.ok_or_else(|| cannot("number", "type not supported"))?;
        match self.settings.encode_invalid_numbers {
            InvalidNumbers::Refuse if !number.is_finite() => return Err(cannot("number", "must not be NaN or Inf")),
            InvalidNumbers::Null if !number.is_finite() => self.text.extend_from_slice(b"null"),
            _ => self.text.extend_from_slice(general(number, self.settings.precision).as_bytes()),
        }
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
        match self.list_length(table)? {
            Some(length) if length > 0 => self.list(table, length, depth),
            _ => self.object(table, depth),
        }
    }

    /// The length of a table whose keys are all positions of a list.
    fn list_length(&self, table: &Table) -> mlua::Result<Option<usize>> {
        let (mut length, mut items) = (0, 0_usize);
        for pair in table.pairs::<Value, Value>() {
            self.budget.spend(1)?;
            let Some(at) = position(&pair?.0) else { return Ok(None) };
            length = length.max(at);
            items += 1;
        }
        let Settings { sparse_ratio, sparse_safe, sparse_converts, .. } = *self.settings;
        let is_sparse = sparse_ratio > 0 && length > sparse_safe && length > items.saturating_mul(sparse_ratio);
        match (is_sparse, sparse_converts) {
            (false, _) => Ok(Some(length)),
            (true, true) => Ok(None),
            (true, false) => Err(cannot("table", "excessively sparse array")),
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

/// The position in a list that a key is.
pub(super) fn position(key: &Value) -> Option<usize> {
    match key {
        Value::Integer(at) => usize::try_from(*at).ok().filter(|at| *at > 0),
        Value::Number(at) if *at >= 1.0 && at.fract() == 0.0 && *at < 9e15 => Some(*at as usize),
        _ => None,
    }
}

/// A number as C's `%.Ng` prints it.
fn general(number: f64, digits: usize) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.unsigned_abs());
    }
    trimmed(&format!("{number:.*}", (digits as i32 - 1 - exponent).max(0) as usize))
}
