//! The library `cmsgpack` of scripts: MessagePack as Redis writes and reads it.
//!
//! Lengths in the input are never trusted: nothing is allocated ahead of the bytes that fill it.

use mlua::{Lua, MultiValue, Table, Value};

use super::{Budget, json::position};

/// Tables that are nested deeper are packed as nil, as in Redis.
const PACK_DEPTH_MAX: u32 = 16;
/// Nesting that is unpacked.
const UNPACK_DEPTH_MAX: u32 = 128;

const MISSING: &str = "Missing bytes in input.";
const BAD: &str = "Bad data format in input.";

/// The bytes of some values, one after the other.
pub(super) fn pack(lua: &Lua, values: &[Value], budget: &Budget) -> mlua::Result<Value> {
    if values.is_empty() {
        return Err(mlua::Error::runtime("bad argument #0 to 'pack' (MessagePack pack needs input.)"));
    }
    let mut bytes = Vec::new();
    for value in values {
        put(&mut bytes, value, 0, budget)?;
    }
    lua.create_string(bytes).map(Value::String)
}

fn put(bytes: &mut Vec<u8>, value: &Value, depth: u32, budget: &Budget) -> mlua::Result<()> {
    let before = bytes.len();
    match value {
        Value::Boolean(false) => bytes.push(0xc2),
        Value::Boolean(true) => bytes.push(0xc3),
        Value::Integer(number) => put_integer(bytes, *number),
        Value::Number(number) => put_number(bytes, *number),
        Value::String(text) => {
            let text = text.as_bytes();
            put_length(bytes, text.len(), (0xa0, 31), Some(0xd9), 0xda);
            bytes.extend_from_slice(&text);
        }
        Value::Table(table) if depth < PACK_DEPTH_MAX => return put_table(bytes, table, depth, budget),
        _ => bytes.push(0xc0),
    }
    budget.spend(bytes.len() - before)
}

fn put_integer(bytes: &mut Vec<u8>, number: i64) {
    match number {
        -32..=127 => bytes.extend((number as i8).to_be_bytes()),
        128..=0xff => bytes.extend([0xcc, number as u8]),
        0x100..=0xffff => put_tagged(bytes, 0xcd, &(number as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => put_tagged(bytes, 0xce, &(number as u32).to_be_bytes()),
        0x1_0000_0000.. => put_tagged(bytes, 0xcf, &number.to_be_bytes()),
        -0x80..=-33 => put_tagged(bytes, 0xd0, &(number as i8).to_be_bytes()),
        -0x8000..=-0x81 => put_tagged(bytes, 0xd1, &(number as i16).to_be_bytes()),
        -0x8000_0000..=-0x8001 => put_tagged(bytes, 0xd2, &(number as i32).to_be_bytes()),
        ..=-0x8000_0001 => put_tagged(bytes, 0xd3, &number.to_be_bytes()),
    }
}

fn put_number(bytes: &mut Vec<u8>, number: f64) {
    // The integers that a double holds; 2^63 itself is none.
    if number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0 {
        return put_integer(bytes, number as i64);
    }
    let short = number as f32;
    if f64::from(short) == number {
        put_tagged(bytes, 0xca, &short.to_be_bytes());
    } else {
        put_tagged(bytes, 0xcb, &number.to_be_bytes());
    }
}

fn put_tagged(bytes: &mut Vec<u8>, tag: u8, rest: &[u8]) {
    bytes.push(tag);
    bytes.extend_from_slice(rest);
}

/// A length in its shortest form: with the tag itself, or after a tag in one byte (if there is one), two or
/// four.
fn put_length(bytes: &mut Vec<u8>, length: usize, (tiny, tiny_max): (u8, u8), one: Option<u8>, two: u8) {
    match (u8::try_from(length), u16::try_from(length), one) {
        (Ok(length), ..) if length <= tiny_max => bytes.push(tiny | length),
        (Ok(length), _, Some(one)) => bytes.extend([one, length]),
        (_, Ok(length), _) => put_tagged(bytes, two, &length.to_be_bytes()),
        // The memory of a script is far below 2^32.
        _ => put_tagged(bytes, two + 1, &(length as u32).to_be_bytes()),
    }
}

fn put_table(bytes: &mut Vec<u8>, table: &Table, depth: u32, budget: &Budget) -> mlua::Result<()> {
    let (mut length, mut items, mut is_list) = (0, 0_usize, true);
    for pair in table.pairs::<Value, Value>() {
        budget.spend(1)?;
        let at = position(&pair?.0);
        is_list &= at.is_some();
        length = length.max(at.unwrap_or(0));
        items += 1;
    }
    if is_list && length == items {
        put_length(bytes, length, (0x90, 15), None, 0xdc);
        return (1..=length).try_for_each(|at| put(bytes, &table.raw_get(at)?, depth + 1, budget));
    }
    put_length(bytes, items, (0x80, 15), None, 0xde);
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        put(bytes, &key, depth + 1, budget)?;
        put(bytes, &value, depth + 1, budget)?;
    }
    Ok(())
}

/// All values of some bytes.
pub(super) fn unpack(lua: &Lua, bytes: &[u8], budget: &Budget) -> mlua::Result<MultiValue> {
    let mut reader = Reader { lua, rest: bytes, budget };
    let mut values = MultiValue::new();
    while !reader.rest.is_empty() {
        values.push_back(reader.value(0)?);
    }
    Ok(values)
}

/// At most `limit` values from an offset on, after the offset at which the next one starts, or -1 at the end.
pub(super) fn unpack_some(
    lua: &Lua,
    bytes: &[u8],
    limit: i64,
    offset: i64,
    budget: &Budget,
) -> mlua::Result<MultiValue> {
    let (Ok(limit), Ok(start)) = (usize::try_from(limit), usize::try_from(offset)) else {
        return Err(mlua::Error::runtime(format_args!(
            "Invalid request to unpack with offset of {offset} and limit of {limit}."
        )));
    };
    let Some(rest) = bytes.get(start..) else {
        let length = bytes.len();
        return Err(mlua::Error::runtime(format_args!("Start offset {start} greater than input length {length}.")));
    };
    let mut reader = Reader { lua, rest, budget };
    let mut values = MultiValue::new();
    while !reader.rest.is_empty() && values.len() < limit {
        values.push_back(reader.value(0)?);
    }
    let next = if reader.rest.is_empty() { -1.0 } else { (bytes.len() - reader.rest.len()) as f64 };
    values.push_front(Value::Number(next));
    Ok(values)
}

struct Reader<'a> {
    lua: &'a Lua,
    rest: &'a [u8],
    budget: &'a Budget,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> mlua::Result<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| mlua::Error::runtime(MISSING))?;
        self.rest = rest;
        self.budget.spend(length)?;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> mlua::Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> mlua::Result<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> mlua::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> mlua::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn value(&mut self, depth: u32) -> mlua::Result<Value> {
        let tag = self.u8()?;
        let number = match tag {
            0x00..=0x7f => f64::from(tag),
            0xe0..=0xff => f64::from(tag as i8),
            0xcc => f64::from(self.u8()?),
            0xcd => f64::from(self.u16()?),
            0xce => f64::from(self.u32()?),
            0xcf => self.array().map(u64::from_be_bytes)? as f64,
            0xd0 => f64::from(self.array().map(i8::from_be_bytes)?),
            0xd1 => f64::from(self.array().map(i16::from_be_bytes)?),
            0xd2 => f64::from(self.array().map(i32::from_be_bytes)?),
            0xd3 => self.array().map(i64::from_be_bytes)? as f64,
            0xca => f64::from(self.array().map(f32::from_be_bytes)?),
            0xcb => self.array().map(f64::from_be_bytes)?,
            0xc0 => return Ok(Value::Nil),
            0xc2 | 0xc3 => return Ok(Value::Boolean(tag == 0xc3)),
            _ => return self.composite(tag, depth),
        };
        Ok(Value::Number(number))
    }

    fn composite(&mut self, tag: u8, depth: u32) -> mlua::Result<Value> {
        match tag {
            0xa0..=0xbf => self.text((tag & 31).into()),
            0xd9 | 0xc4 => {
                let length = self.u8()?;
                self.text(length.into())
            }
            0xda | 0xc5 => {
                let length = self.u16()?;
                self.text(length.into())
            }
            0xdb | 0xc6 => {
                let length = self.u32()?;
                self.text(length as usize)
            }
            _ if depth == UNPACK_DEPTH_MAX => Err(mlua::Error::runtime(BAD)),
            0x90..=0x9f => self.list((tag & 15).into(), depth),
            0xdc => {
                let length = self.u16()?;
                self.list(length.into(), depth)
            }
            0xdd => {
                let length = self.u32()?;
                self.list(length, depth)
            }
            0x80..=0x8f => self.map((tag & 15).into(), depth),
            0xde => {
                let length = self.u16()?;
                self.map(length.into(), depth)
            }
            0xdf => {
                let length = self.u32()?;
                self.map(length, depth)
            }
            _ => Err(mlua::Error::runtime(BAD)),
        }
    }

    fn text(&mut self, length: usize) -> mlua::Result<Value> {
        let lua = self.lua;
        lua.create_string(self.take(length)?).map(Value::String)
    }

    fn list(&mut self, length: u32, depth: u32) -> mlua::Result<Value> {
        let table = self.lua.create_table()?;
        for at in 1..=length {
            table.raw_set(at, self.value(depth + 1)?)?;
        }
        Ok(Value::Table(table))
    }

    fn map(&mut self, length: u32, depth: u32) -> mlua::Result<Value> {
        let table = self.lua.create_table()?;
        for _ in 0..length {
            let (key, value) = (self.value(depth + 1)?, self.value(depth + 1)?);
            match key {
                Value::Nil => return Err(mlua::Error::runtime(BAD)),
                Value::Number(number) if number.is_nan() => return Err(mlua::Error::runtime(BAD)),
                key => table.raw_set(key, value)?,
            }
        }
        Ok(Value::Table(table))
    }
}
