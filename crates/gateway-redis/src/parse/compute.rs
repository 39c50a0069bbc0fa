//! Commands that are computed from whole values.

use bytes::Bytes;
use flotilla_api::VALUE_BYTES_MAX;

use super::{Arguments, database, integer};
use crate::{
    BitFieldAction, BitFieldOverflow, BitFieldStep, BitOperation, BitUnit, Command, CommandError, Compute, Deadline,
    Float, Lcs, LcsReply, ObjectQuery, SetExpiry, TimeUnit, command::SAME_OBJECT,
};

const BIT_OFFSET: CommandError = CommandError::Invalid("ERR bit offset is not an integer or out of range");
const NOT_A_FLOAT: CommandError = CommandError::Invalid("ERR value is not a valid float");
const BIT_FIELD_TYPE: CommandError = CommandError::Invalid(
    "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
);

fn of(compute: Compute) -> Result<Command, CommandError> {
    Ok(Command::Compute(compute))
}

pub(crate) fn get_range(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let (start, end) = (integer(&arguments.required()?)?, integer(&arguments.required()?)?);
    of(Compute::GetRange { key, start, end })
}

pub(crate) fn set_range(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let offset = integer(&arguments.required()?)?;
    let offset = u64::try_from(offset).map_err(|_| CommandError::Invalid("ERR offset is out of range"))?;
    of(Compute::SetRange { key, offset, value: arguments.required()? })
}

pub(crate) fn incr_by_float(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let delta = Float::parse(&arguments.required()?).ok_or(NOT_A_FLOAT)?;
    of(Compute::AddFloat { key, delta })
}

pub(crate) fn mset_nx(arguments: Arguments) -> Result<Command, CommandError> {
    of(Compute::MSetNx(super::data::pairs(arguments)?))
}

pub(crate) fn lcs(mut arguments: Arguments) -> Result<Command, CommandError> {
    let keys = [arguments.required()?, arguments.required()?];
    let (mut length, mut ranges, mut with_lengths, mut length_min) = (false, false, false, 0);
    while let Some(option) = arguments.next() {
        match option.to_ascii_lowercase().as_slice() {
            b"len" => length = true,
            b"idx" => ranges = true,
            b"withmatchlen" => with_lengths = true,
            b"minmatchlen" => length_min = u64::try_from(integer(&arguments.option_value()?)?).unwrap_or(0),
            _ => return Err(CommandError::Syntax),
        }
    }
    let reply = match (length, ranges) {
        (true, true) => {
            return Err(CommandError::Invalid("ERR If you want both the length and indexes, please just use IDX."));
        }
        (true, false) => LcsReply::Length,
        (false, true) => LcsReply::Ranges { length_min, with_lengths },
        (false, false) => LcsReply::Text,
    };
    of(Compute::Lcs(Lcs { keys, reply }))
}

/// The position of a bit, in units of `scale` bits.
fn bit_offset(text: &[u8], scale: u32) -> Result<u64, CommandError> {
    let (text, scale) = text.strip_prefix(b"#").filter(|_| scale > 1).map_or((text, 1), |rest| (rest, scale));
    let at = integer(text).ok().and_then(|at| u64::try_from(at).ok()).and_then(|at| at.checked_mul(scale.into()));
    at.filter(|at| at / 8 < VALUE_BYTES_MAX as u64).ok_or(BIT_OFFSET)
}

pub(crate) fn set_bit(mut arguments: Arguments) -> Result<Command, CommandError> {
    let (key, at) = (arguments.required()?, bit_offset(&arguments.required()?, 1)?);
    let bit = match &arguments.required()?[..] {
        b"0" => false,
        b"1" => true,
        _ => return Err(CommandError::Invalid("ERR bit is not an integer or out of range")),
    };
    of(Compute::SetBit { key, at, bit })
}

pub(crate) fn get_bit(mut arguments: Arguments) -> Result<Command, CommandError> {
    let (key, at) = (arguments.required()?, bit_offset(&arguments.required()?, 1)?);
    of(Compute::GetBit { key, at })
}

fn bit_unit(arguments: &mut Arguments) -> Result<BitUnit, CommandError> {
    let unit = match arguments.next().map(|unit| unit.to_ascii_lowercase()).as_deref() {
        None | Some(b"byte") => BitUnit::Byte,
        Some(b"bit") => BitUnit::Bit,
        Some(_) => return Err(CommandError::Syntax),
    };
    if arguments.len() > 0 { Err(CommandError::Syntax) } else { Ok(unit) }
}

pub(crate) fn bit_count(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let range = match arguments.len() {
        0 => None,
        1 => return Err(CommandError::Syntax),
        _ => Some((integer(&arguments.required()?)?, integer(&arguments.required()?)?)),
    };
    of(Compute::BitCount { key, range, unit: bit_unit(&mut arguments)? })
}

pub(crate) fn bit_pos(mut arguments: Arguments) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let bit = match integer(&arguments.required()?)? {
        0 => false,
        1 => true,
        _ => return Err(CommandError::Invalid("ERR The bit argument must be 1 or 0.")),
    };
    let start = arguments.next().map(|start| integer(&start)).transpose()?;
    let end = arguments.next().map(|end| integer(&end)).transpose()?;
    of(Compute::BitPos { key, bit, start, end, unit: bit_unit(&mut arguments)? })
}

pub(crate) fn bit_op(mut arguments: Arguments) -> Result<Command, CommandError> {
    let operation = match arguments.required()?.to_ascii_lowercase().as_slice() {
        b"and" => BitOperation::And,
        b"or" => BitOperation::Or,
        b"xor" => BitOperation::Xor,
        b"not" => BitOperation::Not,
        _ => return Err(CommandError::Syntax),
    };
    let to = arguments.required()?;
    if operation == BitOperation::Not && arguments.len() != 1 {
        return Err(CommandError::Invalid("ERR BITOP NOT must be called with a single source key."));
    }
    of(Compute::BitOp { operation, to, from: arguments.remaining() })
}

pub(crate) fn bit_field(arguments: Arguments) -> Result<Command, CommandError> {
    bit_field_steps(arguments, false)
}

pub(crate) fn bit_field_ro(arguments: Arguments) -> Result<Command, CommandError> {
    bit_field_steps(arguments, true)
}

fn bit_field_steps(mut arguments: Arguments, only_reads: bool) -> Result<Command, CommandError> {
    let key = arguments.required()?;
    let (mut steps, mut overflow) = (Vec::new(), BitFieldOverflow::default());
    while let Some(name) = arguments.next() {
        let name = name.to_ascii_lowercase();
        if name == b"overflow" {
            overflow = match arguments.option_value()?.to_ascii_lowercase().as_slice() {
                b"wrap" => BitFieldOverflow::Wrap,
                b"sat" => BitFieldOverflow::Saturate,
                b"fail" => BitFieldOverflow::Fail,
                _ => return Err(CommandError::Invalid("ERR Invalid OVERFLOW type specified")),
            };
            continue;
        }
        let action: Option<fn(i64) -> BitFieldAction> = match &name[..] {
            b"get" => None,
            b"set" => Some(BitFieldAction::Set),
            b"incrby" => Some(BitFieldAction::Add),
            _ => return Err(CommandError::Syntax),
        };
        let (kind, offset) = (arguments.option_value()?, arguments.option_value()?);
        let value = action.map(|action| Ok((action, arguments.option_value()?))).transpose()?;
        let (signed, bits) = bit_field_type(&kind)?;
        let at = bit_offset(&offset, bits)?;
        let action = match value {
            None => BitFieldAction::Get,
            Some(_) if only_reads => {
                return Err(CommandError::Invalid("ERR BITFIELD_RO only supports the GET subcommand"));
            }
            Some((action, value)) => action(integer(&value)?),
        };
        steps.push(BitFieldStep { at, bits, signed, action, overflow });
    }
    of(Compute::BitField { key, steps })
}

fn bit_field_type(text: &[u8]) -> Result<(bool, u32), CommandError> {
    let (signed, bits) = match text {
        [b'i', bits @ ..] => (true, bits),
        [b'u', bits @ ..] => (false, bits),
        _ => return Err(BIT_FIELD_TYPE),
    };
    let bits = integer(bits).ok().and_then(|bits| u32::try_from(bits).ok());
    let bits_max = if signed { 64 } else { 63 };
    bits.filter(|bits| (1..=bits_max).contains(bits)).map(|bits| (signed, bits)).ok_or(BIT_FIELD_TYPE)
}

pub(crate) fn rename(arguments: Arguments) -> Result<Command, CommandError> {
    rename_to(arguments, false)
}

pub(crate) fn rename_nx(arguments: Arguments) -> Result<Command, CommandError> {
    rename_to(arguments, true)
}

fn rename_to(mut arguments: Arguments, if_absent: bool) -> Result<Command, CommandError> {
    of(Compute::Rename { from: arguments.required()?, to: arguments.required()?, if_absent })
}

pub(crate) fn copy(mut arguments: Arguments) -> Result<Command, CommandError> {
    let (from, to) = (arguments.required()?, arguments.required()?);
    let (mut replace, mut to_database) = (false, None);
    while let Some(option) = arguments.next() {
        match option.to_ascii_lowercase().as_slice() {
            b"replace" => replace = true,
            b"db" => to_database = Some(database(&arguments.option_value()?)?),
            _ => return Err(CommandError::Syntax),
        }
    }
    // With a database named, only its connection knows whether it is another one.
    if from == to && to_database.is_none() {
        return Err(CommandError::Invalid(SAME_OBJECT));
    }
    of(Compute::Copy { from, to, replace, to_database })
}

pub(crate) fn expire_time(mut arguments: Arguments) -> Result<Command, CommandError> {
    of(Compute::ExpireTime { key: arguments.required()?, unit: TimeUnit::Seconds })
}

pub(crate) fn pexpire_time(mut arguments: Arguments) -> Result<Command, CommandError> {
    of(Compute::ExpireTime { key: arguments.required()?, unit: TimeUnit::Milliseconds })
}

pub(crate) fn dump(mut arguments: Arguments) -> Result<Command, CommandError> {
    of(Compute::Dump(arguments.required()?))
}

pub(crate) fn restore(mut arguments: Arguments) -> Result<Command, CommandError> {
    let (key, expiry, payload) = (arguments.required()?, arguments.required()?, arguments.required()?);
    let (mut replace, mut absolute) = (false, false);
    while let Some(option) = arguments.next() {
        match option.to_ascii_lowercase().as_slice() {
            b"replace" => replace = true,
            b"absttl" => absolute = true,
            // Neither is recorded here.
            b"idletime" | b"freq" => drop(integer(&arguments.option_value()?)?),
            _ => return Err(CommandError::Syntax),
        }
    }
    let expiry = match u64::try_from(integer(&expiry)?) {
        Ok(0) => SetExpiry::Never,
        Ok(at_ms) if absolute => SetExpiry::At(Deadline::At(at_ms)),
        Ok(after_ms) => SetExpiry::At(Deadline::After(after_ms)),
        Err(_) => return Err(CommandError::Invalid("ERR Invalid TTL value, must be >= 0")),
    };
    let value = crate::dump::restore(&payload).map_err(CommandError::Payload)?;
    of(Compute::Restore { key, value, expiry, replace })
}

pub(crate) fn object(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
    let (query, command) = match name.to_ascii_lowercase().as_slice() {
        b"help" => return arguments.exactly(0, "object|help").map(|()| Command::Help("object")),
        b"encoding" => (ObjectQuery::Encoding, "object|encoding"),
        b"freq" => (ObjectQuery::Frequency, "object|freq"),
        b"idletime" => (ObjectQuery::IdleTime, "object|idletime"),
        b"refcount" => (ObjectQuery::ReferenceCount, "object|refcount"),
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    };
    arguments.exactly(1, command)?;
    of(Compute::Object(query, arguments.required()?))
}

pub(crate) fn memory(mut arguments: Arguments) -> Result<Command, CommandError> {
    let name = arguments.required()?;
    match name.to_ascii_lowercase().as_slice() {
        b"help" => return arguments.exactly(0, "memory|help").map(|()| Command::Help("memory")),
        b"usage" if arguments.len() == 0 => return Err(CommandError::Arity { command: "memory|usage" }),
        b"usage" => {}
        _ => return Err(CommandError::UnknownSubcommand { command: arguments.command, name }),
    }
    let key: Bytes = arguments.required()?;
    while let Some(option) = arguments.next() {
        if !option.eq_ignore_ascii_case(b"samples") {
            return Err(CommandError::Syntax);
        }
        integer(&arguments.option_value()?)?;
    }
    of(Compute::MemoryUsage(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::testing::{error, parsed};

    #[test]
    fn errors_have_the_texts_of_redis() {
        for (line, text) in [
            ("GETRANGE k a 1", "ERR value is not an integer or out of range"),
            ("SETRANGE k -1 v", "ERR offset is out of range"),
            ("INCRBYFLOAT k x", "ERR value is not a valid float"),
            ("MSETNX k v l", "ERR wrong number of arguments for 'msetnx' command"),
            ("LCS a b LEN IDX", "ERR If you want both the length and indexes, please just use IDX."),
            ("LCS a b MINMATCHLEN", "ERR syntax error"),
            ("SETBIT k -1 1", "ERR bit offset is not an integer or out of range"),
            ("SETBIT k 33554432 1", "ERR bit offset is not an integer or out of range"),
            ("SETBIT k 1 2", "ERR bit is not an integer or out of range"),
            ("GETBIT k #1", "ERR bit offset is not an integer or out of range"),
            ("BITCOUNT k 1", "ERR syntax error"),
            ("BITCOUNT k 1 2 NIBBLE", "ERR syntax error"),
            ("BITPOS k 2", "ERR The bit argument must be 1 or 0."),
            ("BITOP NOT d a b", "ERR BITOP NOT must be called with a single source key."),
            ("BITOP NAND d a", "ERR syntax error"),
            ("BITFIELD k GET u64 0", &BIT_FIELD_TYPE.to_string()),
            ("BITFIELD k SET u8 0", "ERR syntax error"),
            ("BITFIELD k GET i8 #9223372036854775807", "ERR bit offset is not an integer or out of range"),
            ("BITFIELD k OVERFLOW up", "ERR Invalid OVERFLOW type specified"),
            ("BITFIELD_RO k SET u8 0 1", "ERR BITFIELD_RO only supports the GET subcommand"),
            ("COPY k k", "ERR source and destination objects are the same"),
            ("COPY k l DB 16", "ERR DB index is out of range"),
            ("OBJECT NOPE k", "ERR unknown subcommand 'NOPE'. Try OBJECT HELP."),
            ("OBJECT FREQ", "ERR wrong number of arguments for 'object|freq' command"),
            ("MEMORY USAGE", "ERR wrong number of arguments for 'memory|usage' command"),
        ] {
            assert_eq!(error(line), text, "{line}");
        }
    }

    #[test]
    fn numbers_of_a_bit_field_scale_with_their_type() {
        let Ok(Command::Compute(Compute::BitField { steps, .. })) = parsed("BITFIELD k OVERFLOW FAIL INCRBY i5 #3 -1")
        else {
            panic!("not a bit field");
        };
        let step = BitFieldStep {
            at: 15,
            bits: 5,
            signed: true,
            action: BitFieldAction::Add(-1),
            overflow: BitFieldOverflow::Fail,
        };
        assert_eq!(steps, [step]);
    }
}
