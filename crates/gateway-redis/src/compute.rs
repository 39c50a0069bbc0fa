//! Commands whose reply or writes are computed from whole values, as plain types.

use bytes::Bytes;

use crate::{Database, Float, SetExpiry, TimeUnit};

/// A command that is evaluated on the records of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compute {
    /// `GETRANGE` and `SUBSTR`: a part of a value; negative positions count from its end.
    GetRange {
        /// The key.
        key: Bytes,
        /// First position.
        start: i64,
        /// Last position.
        end: i64,
    },
    /// `SETRANGE key offset value`.
    SetRange {
        /// The key.
        key: Bytes,
        /// Where to write.
        offset: u64,
        /// What to write.
        value: Bytes,
    },
    /// `INCRBYFLOAT key increment`.
    AddFloat {
        /// The key.
        key: Bytes,
        /// What to add.
        delta: Float,
    },
    /// `MSETNX key value …`: all or none.
    MSetNx(Vec<(Bytes, Bytes)>),
    /// `LCS`.
    Lcs(Lcs),
    /// `SETBIT key offset value`.
    SetBit {
        /// The key.
        key: Bytes,
        /// Position of the bit; 0 is the highest of the first byte.
        at: u64,
        /// Its new value.
        bit: bool,
    },
    /// `GETBIT key offset`.
    GetBit {
        /// The key.
        key: Bytes,
        /// Position of the bit.
        at: u64,
    },
    /// `BITCOUNT key [start end [BYTE|BIT]]`.
    BitCount {
        /// The key.
        key: Bytes,
        /// First and last position; all when absent.
        range: Option<(i64, i64)>,
        /// What the positions count.
        unit: BitUnit,
    },
    /// `BITPOS key bit [start [end [BYTE|BIT]]]`.
    BitPos {
        /// The key.
        key: Bytes,
        /// The bit to find.
        bit: bool,
        /// First position.
        start: Option<i64>,
        /// Last position.
        end: Option<i64>,
        /// What the positions count.
        unit: BitUnit,
    },
    /// `BITOP operation destination key …`.
    BitOp {
        /// The operation.
        operation: BitOperation,
        /// The key to store the result.
        to: Bytes,
        /// The keys to read.
        from: Vec<Bytes>,
    },
    /// `BITFIELD` and `BITFIELD_RO`.
    BitField {
        /// The key.
        key: Bytes,
        /// What to do, in order.
        steps: Vec<BitFieldStep>,
    },
    /// `RENAME` and `RENAMENX`.
    Rename {
        /// The key.
        from: Bytes,
        /// Its new name.
        to: Bytes,
        /// `RENAMENX`: only if there is no record of the new name.
        if_absent: bool,
    },
    /// `COPY source destination [DB number] [REPLACE]`.
    Copy {
        /// The key.
        from: Bytes,
        /// The key of the copy.
        to: Bytes,
        /// Whether an existing record is replaced.
        replace: bool,
        /// The database of the copy, if one is named.
        to_database: Option<Database>,
    },
    /// `EXPIRETIME` and `PEXPIRETIME`: the Unix time of the expiry; -2 for no key, -1 for no expiry.
    ExpireTime {
        /// The key.
        key: Bytes,
        /// The unit of the reply.
        unit: TimeUnit,
    },
    /// `OBJECT subcommand key`.
    Object(ObjectQuery, Bytes),
    /// `DUMP key`: the value in Redis's own format.
    Dump(Bytes),
    /// `RESTORE key ttl payload [REPLACE] [ABSTTL]`.
    Restore {
        /// The key.
        key: Bytes,
        /// The value of the payload.
        value: Bytes,
        /// Its expiry.
        expiry: SetExpiry,
        /// Whether an existing record is replaced.
        replace: bool,
    },
    /// `MEMORY USAGE key`: bytes of key, value and header.
    MemoryUsage(Bytes),
}

/// `LCS key1 key2 [LEN] [IDX] [MINMATCHLEN length] [WITHMATCHLEN]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lcs {
    /// The keys of the two texts.
    pub keys: [Bytes; 2],
    /// What to reply.
    pub reply: LcsReply,
}

/// What `LCS` replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LcsReply {
    /// The common text.
    Text,
    /// Its length.
    Length,
    /// The ranges that match.
    Ranges {
        /// Shortest range to include.
        length_min: u64,
        /// Whether to include the length of each.
        with_lengths: bool,
    },
}

/// What positions in a value count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BitUnit {
    /// Bytes.
    #[default]
    Byte,
    /// Bits.
    Bit,
}

/// The operation of `BITOP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitOperation {
    /// `AND`.
    And,
    /// `OR`.
    Or,
    /// `XOR`.
    Xor,
    /// `NOT`, of one value.
    Not,
}

/// One subcommand of `BITFIELD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitFieldStep {
    /// The position of the integer's first bit.
    pub at: u64,
    /// Its bits: 1 to 64, or 63 if it is unsigned.
    pub bits: u32,
    /// Whether it is signed.
    pub signed: bool,
    /// What to do with it.
    pub action: BitFieldAction,
    /// What to do when a result does not fit.
    pub overflow: BitFieldOverflow,
}

/// What a step of `BITFIELD` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitFieldAction {
    /// Reads the integer.
    Get,
    /// Sets it; replies with the old one.
    Set(i64),
    /// Adds to it; replies with the new one.
    Add(i64),
}

/// What `BITFIELD` does when a result does not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BitFieldOverflow {
    /// `WRAP`: keeps the low bits.
    #[default]
    Wrap,
    /// `SAT`: takes the nearest integer that fits.
    Saturate,
    /// `FAIL`: changes nothing and replies null.
    Fail,
}

/// What `OBJECT` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectQuery {
    /// How Redis would store the value.
    Encoding,
    /// How often it was accessed, which is not counted here.
    Frequency,
    /// Seconds since it was last written; reads are not recorded.
    IdleTime,
    /// Always 1.
    ReferenceCount,
}

impl Compute {
    /// The keys that it reads or writes.
    pub(crate) fn keys(&self) -> Vec<Bytes> {
        match self {
            Self::GetRange { key, .. }
            | Self::SetRange { key, .. }
            | Self::AddFloat { key, .. }
            | Self::SetBit { key, .. }
            | Self::GetBit { key, .. }
            | Self::BitCount { key, .. }
            | Self::BitPos { key, .. }
            | Self::BitField { key, .. }
            | Self::ExpireTime { key, .. }
            | Self::Object(_, key)
            | Self::Dump(key)
            | Self::Restore { key, .. }
            | Self::MemoryUsage(key) => vec![key.clone()],
            Self::MSetNx(pairs) => pairs.iter().map(|(key, _)| key.clone()).collect(),
            Self::Lcs(Lcs { keys, .. }) => keys.to_vec(),
            Self::BitOp { to, from, .. } => std::iter::once(to).chain(from).cloned().collect(),
            Self::Rename { from, to, .. } | Self::Copy { from, to, .. } => vec![from.clone(), to.clone()],
        }
    }

    /// Whether it never writes.
    pub(crate) fn only_reads(&self) -> bool {
        match self {
            Self::GetRange { .. }
            | Self::GetBit { .. }
            | Self::BitCount { .. }
            | Self::BitPos { .. }
            | Self::Lcs(_)
            | Self::ExpireTime { .. }
            | Self::Object(..)
            | Self::Dump(_)
            | Self::MemoryUsage(_) => true,
            Self::BitField { steps, .. } => steps.iter().all(|step| step.action == BitFieldAction::Get),
            _ => false,
        }
    }

    /// Whether it needs values, rather than only their lengths and expiries.
    pub(crate) fn needs_values(&self) -> bool {
        let encoding = matches!(self, Self::Object(ObjectQuery::Encoding, _));
        let attributes_only =
            matches!(self, Self::ExpireTime { .. } | Self::Object(..) | Self::MemoryUsage(_) | Self::MSetNx(_));
        encoding || !attributes_only
    }
}
