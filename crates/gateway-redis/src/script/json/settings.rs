//! What scripts may set of `cjson`. In Redis a setting outlives the script; here it ends with the script, as
//! all that a script leaves behind.

use mlua::{Lua, MultiValue, Value};

/// Nesting of tables that is encoded and decoded at most, whatever the settings say: both recurse.
const DEPTH_MAX: usize = 128;
const INTEGER_MAX: i64 = i32::MAX as i64;

/// How numbers that JSON does not have are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::script) enum InvalidNumbers {
    Refuse,
    Write,
    Null,
}

/// The settings, with Redis's defaults.
#[derive(Debug, Clone)]
pub(in crate::script) struct Settings {
    /// Whether a sparse list is encoded as an object.
    pub(super) sparse_converts: bool,
    /// A list is sparse if it is this many times as long as it has items; never if it is zero.
    pub(super) sparse_ratio: usize,
    /// No list up to this length is sparse.
    pub(super) sparse_safe: usize,
    encode_depth: usize,
    decode_depth: usize,
    /// Significant digits of numbers.
    pub(super) precision: usize,
    /// Has no effect, because nothing is kept.
    keeps_buffer: bool,
    pub(super) encode_invalid_numbers: InvalidNumbers,
    pub(super) decode_invalid_numbers: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sparse_converts: false,
            sparse_ratio: 2,
            sparse_safe: 10,
            encode_depth: 1_000,
            decode_depth: 1_000,
            precision: 14,
            keeps_buffer: true,
            encode_invalid_numbers: InvalidNumbers::Refuse,
            decode_invalid_numbers: true,
        }
    }
}

/// The functions that show and change a setting.
#[derive(Debug, Clone, Copy)]
pub(in crate::script) enum Function {
    SparseArray,
    EncodeDepth,
    DecodeDepth,
    Precision,
    KeepBuffer,
    EncodeInvalidNumbers,
    DecodeInvalidNumbers,
}

impl Function {
    pub(in crate::script) const ALL: [Self; 7] = [
        Self::SparseArray,
        Self::EncodeDepth,
        Self::DecodeDepth,
        Self::Precision,
        Self::KeepBuffer,
        Self::EncodeInvalidNumbers,
        Self::DecodeInvalidNumbers,
    ];

    pub(in crate::script) fn name(self) -> &'static str {
        match self {
            Self::SparseArray => "encode_sparse_array",
            Self::EncodeDepth => "encode_max_depth",
            Self::DecodeDepth => "decode_max_depth",
            Self::Precision => "encode_number_precision",
            Self::KeepBuffer => "encode_keep_buffer",
            Self::EncodeInvalidNumbers => "encode_invalid_numbers",
            Self::DecodeInvalidNumbers => "decode_invalid_numbers",
        }
    }

    /// Changes what the arguments say, and returns what holds.
    pub(in crate::script) fn call(
        self,
        lua: &Lua,
        arguments: &[Value],
        settings: &mut Settings,
    ) -> mlua::Result<MultiValue> {
        let arguments = Arguments { lua, function: self.name(), values: arguments };
        arguments.at_most(if matches!(self, Self::SparseArray) { 3 } else { 1 })?;
        let shown = match self {
            Self::SparseArray => {
                arguments.flag(0, &mut settings.sparse_converts)?;
                arguments.integer(1, 0, INTEGER_MAX, &mut settings.sparse_ratio)?;
                arguments.integer(2, 0, INTEGER_MAX, &mut settings.sparse_safe)?;
                let counts = [settings.sparse_ratio, settings.sparse_safe].map(|count| Value::Integer(count as i64));
                return Ok([Value::Boolean(settings.sparse_converts)].into_iter().chain(counts).collect());
            }
            Self::EncodeDepth => arguments.integer(0, 1, INTEGER_MAX, &mut settings.encode_depth)?,
            Self::DecodeDepth => arguments.integer(0, 1, INTEGER_MAX, &mut settings.decode_depth)?,
            Self::Precision => arguments.integer(0, 1, 14, &mut settings.precision)?,
            Self::KeepBuffer => arguments.flag(0, &mut settings.keeps_buffer)?,
            Self::DecodeInvalidNumbers => arguments.flag(0, &mut settings.decode_invalid_numbers)?,
            Self::EncodeInvalidNumbers => {
                let how = &mut settings.encode_invalid_numbers;
                match arguments.option(0, &["off", "on", "null"])? {
                    Some(0) => *how = InvalidNumbers::Refuse,
                    Some(1) => *how = InvalidNumbers::Write,
                    Some(_) => *how = InvalidNumbers::Null,
                    None => {}
                }
                match how {
                    InvalidNumbers::Null => Value::String(lua.create_string("null")?),
                    other => Value::Boolean(*other == InvalidNumbers::Write),
                }
            }
        };
        Ok(MultiValue::from_iter([shown]))
    }
}

impl Settings {
    pub(super) fn encode_depth(&self) -> usize {
        self.encode_depth.min(DEPTH_MAX)
    }

    pub(super) fn decode_depth(&self) -> usize {
        self.decode_depth.min(DEPTH_MAX)
    }
}

struct Arguments<'a> {
    lua: &'a Lua,
    function: &'static str,
    values: &'a [Value],
}

impl Arguments<'_> {
    fn bad(&self, number: usize, why: impl std::fmt::Display) -> mlua::Error {
        mlua::Error::runtime(format_args!("bad argument #{number} to '{}' ({why})", self.function))
    }

    fn at_most(&self, count: usize) -> mlua::Result<()> {
        if self.values.len() > count { Err(self.bad(count + 1, "found too many arguments")) } else { Ok(()) }
    }

    fn get(&self, at: usize) -> Option<&Value> {
        self.values.get(at).filter(|value| !value.is_nil())
    }

    fn integer(&self, at: usize, min: i64, max: i64, setting: &mut usize) -> mlua::Result<Value> {
        if let Some(value) = self.get(at) {
            let number = self.lua.coerce_number(value.clone())?;
            let wrong = || self.bad(at + 1, format_args!("number expected, got {}", value.type_name()));
            let number = number.ok_or_else(wrong)? as i64;
            if !(min..=max).contains(&number) {
                return Err(self.bad(1, format_args!("expected integer between {min} and {max}")));
            }
            *setting = number as usize;
        }
        Ok(Value::Integer(*setting as i64))
    }

    fn flag(&self, at: usize, setting: &mut bool) -> mlua::Result<Value> {
        if let Some(chosen) = self.option(at, &["off", "on"])? {
            *setting = chosen == 1;
        }
        Ok(Value::Boolean(*setting))
    }

    /// The position of an option; true and false are the first two.
    fn option(&self, at: usize, options: &[&str]) -> mlua::Result<Option<usize>> {
        let Some(value) = self.get(at) else { return Ok(None) };
        if let Value::Boolean(on) = value {
            return Ok(Some(usize::from(*on)));
        }
        let text = self.lua.coerce_string(value.clone())?;
        let wrong = || self.bad(at + 1, format_args!("string expected, got {}", value.type_name()));
        let text = text.ok_or_else(wrong)?;
        let chosen = options.iter().position(|option| *text.as_bytes() == *option.as_bytes());
        let unknown = || self.bad(at + 1, format_args!("invalid option '{}'", text.to_string_lossy()));
        chosen.map(Some).ok_or_else(unknown)
    }
}
