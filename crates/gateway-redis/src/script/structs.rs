//! The library `struct` of scripts: C structures as Redis's own library writes and reads them on a 64-bit
//! little-endian machine.
//!
//! Sizes in a format are never trusted: bytes are spent from the script's budget before they are made.

use mlua::{Lua, LuaString, MultiValue, Value};

use super::Budget;

/// Bytes of an integer.
const INTEGER_BYTES_MAX: usize = 32;
/// The alignment that `!` stands for.
const ALIGNMENT: usize = 8;

/// One option of a format, after its alignment.
struct Item {
    option: u8,
    size: usize,
    /// Bytes that align it.
    padding: usize,
}

struct Format<'a> {
    function: &'static str,
    rest: &'a [u8],
    is_big: bool,
    alignment: usize,
}

impl<'a> Format<'a> {
    /// Ends at the first zero byte, as in C.
    fn new(function: &'static str, text: &'a [u8]) -> Self {
        let rest = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Self { function, rest, is_big: false, alignment: 1 }
    }

    fn bad(&self, argument: usize, why: impl std::fmt::Display) -> mlua::Error {
        bad(self.function, argument, why)
    }

    fn number(&mut self, default: usize) -> mlua::Result<usize> {
        if !self.rest.first().is_some_and(u8::is_ascii_digit) {
            return Ok(default);
        }
        let mut number = 0_usize;
        while let Some(digit) = self.rest.first().filter(|byte| byte.is_ascii_digit()) {
            number = number * 10 + usize::from(digit - b'0');
            if number > i32::MAX as usize {
                return Err(mlua::Error::runtime("integral size overflow"));
            }
            self.rest = &self.rest[1..];
        }
        Ok(number)
    }

    /// The next item at this position. Options that only change how others are written have no size.
    fn next(&mut self, position: usize) -> mlua::Result<Option<Item>> {
        let Some((&option, rest)) = self.rest.split_first() else { return Ok(None) };
        self.rest = rest;
        let size = match option {
            b'b' | b'B' | b'x' => 1,
            b'h' | b'H' => 2,
            b'f' => 4,
            b'l' | b'L' | b'T' | b'd' => 8,
            b'c' => self.number(1)?,
            b'i' | b'I' => {
                let size = self.number(4)?;
                if size > INTEGER_BYTES_MAX {
                    let text = format_args!("integral size {size} is larger than limit of {INTEGER_BYTES_MAX}");
                    return Err(mlua::Error::runtime(text));
                }
                size
            }
            _ => 0,
        };
        let unit = size.min(self.alignment);
        let padding = match option {
            b'c' => 0,
            _ if unit == 0 => 0,
            _ => (unit - (position & (unit - 1))) & (unit - 1),
        };
        match option {
            b'b' | b'B' | b'x' | b'h' | b'H' | b'f' | b'l' | b'L' | b'T' | b'd' | b'c' | b'i' | b'I' | b's' | b' ' => {}
            b'>' => self.is_big = true,
            b'<' => self.is_big = false,
            b'!' => {
                self.alignment = self.number(ALIGNMENT)?;
                if !self.alignment.is_power_of_two() {
                    let text = format_args!("alignment {} is not a power of 2", self.alignment);
                    return Err(mlua::Error::runtime(text));
                }
            }
            other if self.function == "size" && other.is_ascii_alphanumeric() => {}
            other => return Err(self.bad(1, format_args!("invalid format option '{}'", char::from(other)))),
        }
        Ok(Some(Item { option, size, padding }))
    }

    fn ordered<const N: usize>(&self, little: [u8; N]) -> [u8; N] {
        let mut bytes = little;
        if self.is_big {
            bytes.reverse();
        }
        bytes
    }
}

fn bad(function: &str, argument: usize, why: impl std::fmt::Display) -> mlua::Error {
    mlua::Error::runtime(format_args!("bad argument #{argument} to '{function}' ({why})"))
}

fn text(lua: &Lua, function: &str, arguments: &[Value], at: usize) -> mlua::Result<LuaString> {
    let value = arguments.get(at).unwrap_or(&Value::Nil);
    let wrong = || bad(function, at + 1, format_args!("string expected, got {}", type_of(function, arguments, at)));
    lua.coerce_string(value.clone())?.ok_or_else(wrong)
}

fn number(lua: &Lua, function: &str, arguments: &[Value], at: usize) -> mlua::Result<f64> {
    let value = arguments.get(at).unwrap_or(&Value::Nil);
    let wrong = || bad(function, at + 1, format_args!("number expected, got {}", type_of(function, arguments, at)));
    lua.coerce_number(value.clone())?.ok_or_else(wrong)
}

fn type_of(function: &str, arguments: &[Value], at: usize) -> &'static str {
    match arguments.get(at) {
        // As Redis says it.
        None if function == "pack" && at > 0 => "nil",
        None => "no value",
        Some(Value::Integer(_)) => "number",
        Some(value) => value.type_name(),
    }
}

/// `struct.pack(format, values…)`.
pub(super) fn pack(lua: &Lua, arguments: &[Value], budget: &Budget) -> mlua::Result<Value> {
    let format = text(lua, "pack", arguments, 0)?;
    let format = format.as_bytes();
    let mut format = Format::new("pack", &format);
    let (mut bytes, mut at) = (Vec::new(), 1);
    while let Some(Item { option, size, padding }) = format.next(bytes.len())? {
        budget.spend(padding + size.min(INTEGER_BYTES_MAX) + 1)?;
        bytes.resize(bytes.len() + padding, 0);
        match option {
            b'b' | b'B' | b'h' | b'H' | b'l' | b'L' | b'T' | b'i' | b'I' => {
                put_integer(&mut bytes, number(lua, "pack", arguments, at)?, size, format.is_big);
                at += 1;
            }
            b'x' => bytes.push(0),
            b'f' => {
                let value = number(lua, "pack", arguments, at)? as f32;
                bytes.extend_from_slice(&format.ordered(value.to_le_bytes()));
                at += 1;
            }
            b'd' => {
                let value = number(lua, "pack", arguments, at)?;
                bytes.extend_from_slice(&format.ordered(value.to_le_bytes()));
                at += 1;
            }
            b'c' | b's' => {
                let value = text(lua, "pack", arguments, at)?;
                let value = value.as_bytes();
                at += 1;
                let size = if size == 0 { value.len() } else { size };
                let kept = value.get(..size).ok_or_else(|| format.bad(at + 1, "string too short"))?;
                budget.spend(size)?;
                bytes.extend_from_slice(kept);
                if option == b's' {
                    bytes.push(0);
                }
            }
            _ => {}
        }
    }
    lua.create_string(bytes).map(Value::String)
}

/// The low bytes of a number's integer part, of 64 bits; longer ones are filled with zeros.
fn put_integer(bytes: &mut Vec<u8>, number: f64, size: usize, is_big: bool) {
    let value = if number < 0.0 { number as i64 as u64 } else { number as u64 };
    let begin = bytes.len();
    bytes.extend(value.to_le_bytes().into_iter().chain(std::iter::repeat(0)).take(size));
    if is_big {
        bytes[begin..].reverse();
    }
}

/// `struct.unpack(format, data, position)`: the values, and the position after them.
pub(super) fn unpack(lua: &Lua, arguments: &[Value], budget: &Budget) -> mlua::Result<MultiValue> {
    let (format, data) = (text(lua, "unpack", arguments, 0)?, text(lua, "unpack", arguments, 1)?);
    let (format, data) = (format.as_bytes(), data.as_bytes());
    let mut format = Format::new("unpack", &format);
    let begins = match arguments.get(2) {
        None | Some(Value::Nil) => 1.0,
        Some(_) => number(lua, "unpack", arguments, 2)?,
    };
    if begins < 1.0 {
        return Err(format.bad(3, "offset must be 1 or greater"));
    }
    let mut position = begins as usize - 1;
    let mut values: Vec<Value> = Vec::new();
    while let Some(Item { option, size, padding }) = format.next(position)? {
        position = position.saturating_add(padding);
        let field = |size: usize| {
            let end = position.checked_add(size)?;
            data.get(position..end)
        };
        let short = || bad("unpack", 2, "data string too short");
        let bytes = field(size).ok_or_else(short)?;
        budget.spend(size + 1)?;
        let mut read = size;
        match option {
            b'b' | b'B' | b'h' | b'H' | b'l' | b'L' | b'T' | b'i' | b'I' => {
                let number = integer(bytes, format.is_big, option.is_ascii_lowercase());
                values.push(Value::Number(number));
            }
            b'f' => {
                let bytes = bytes.try_into().map_err(|_| short())?;
                values.push(Value::Number(f32::from_le_bytes(format.ordered(bytes)).into()));
            }
            b'd' => {
                let bytes = bytes.try_into().map_err(|_| short())?;
                values.push(Value::Number(f64::from_le_bytes(format.ordered(bytes))));
            }
            b'c' => {
                let mut kept = bytes;
                if size == 0 {
                    let length = values.pop().and_then(|last| lua.coerce_number(last).ok()?);
                    let length = length.ok_or_else(|| mlua::Error::runtime("format 'c0' needs a previous size"))?;
                    read = length as usize;
                    kept = Some(read).filter(|_| length >= 0.0).and_then(field).ok_or_else(short)?;
                    budget.spend(read)?;
                }
                values.push(Value::String(lua.create_string(kept)?));
            }
            b's' => {
                let rest = data.get(position..).ok_or_else(short)?;
                let end = rest.iter().position(|byte| *byte == 0);
                let end = end.ok_or_else(|| mlua::Error::runtime("unfinished string in data"))?;
                budget.spend(end)?;
                values.push(Value::String(lua.create_string(&rest[..end])?));
                read = end + 1;
            }
            _ => {}
        }
        position += read;
    }
    values.push(Value::Number((position + 1) as f64));
    Ok(values.into_iter().collect())
}

/// Only the last eight bytes count, and all of fewer.
fn integer(bytes: &[u8], is_big: bool, is_signed: bool) -> f64 {
    let push = |all: u64, byte: &u8| all << 8 | u64::from(*byte);
    let value = if is_big { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) };
    if !is_signed {
        return value as f64;
    }
    let unused = 64 - 8 * bytes.len().clamp(1, 8) as u32;
    (((value << unused) as i64) >> unused) as f64
}

/// `struct.size(format)`.
pub(super) fn size(lua: &Lua, arguments: &[Value], budget: &Budget) -> mlua::Result<Value> {
    let format = text(lua, "size", arguments, 0)?;
    let format = format.as_bytes();
    let mut format = Format::new("size", &format);
    let mut position = 0_usize;
    while let Some(Item { option, size, padding }) = format.next(position)? {
        budget.spend(1)?;
        match option {
            b's' => return Err(format.bad(1, "option 's' has no fixed size")),
            b'c' if size == 0 => return Err(format.bad(1, "option 'c0' has no fixed size")),
            _ => position = position.saturating_add(padding + size),
        }
    }
    Ok(Value::Number(position as f64))
}
