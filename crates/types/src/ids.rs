//! Newtypes for ids and numbers, so that a term cannot be passed as an index.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An id or number did not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}")]
pub struct ParseIdError {
    /// What was expected, for example `node id`.
    pub what: &'static str,
    /// The rejected text.
    pub text: String,
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl $name {
            /// The number itself.
            #[must_use]
            pub const fn get(self) -> $repr {
                self.0
            }

            /// The next number. Panics on overflow, which no id space of this size reaches.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl From<$repr> for $name {
            fn from(number: $repr) -> Self {
                Self(number)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Accepts the number with or without its prefix letter.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .unwrap_or(text)
                    .parse()
                    .map(Self)
                    .map_err(|_| ParseIdError { what: $what, text: text.to_owned() })
            }
        }
    };
}

number!(
    /// A node. The metadata group allocates the id once and never reuses it. `0` is no node.
    NodeId, u64, "n", "node id"
);
number!(
    /// The number of starts of a node on its data folder. Incremented and fsynced at every start.
    Incarnation, u64, "i", "incarnation"
);
number!(
    /// A shard and its Raft group. [`ShardId::META`] is the metadata group.
    ShardId, u64, "s", "shard id"
);
number!(
    /// One replica of one shard on one node, never reused. It is the peer id in Raft. `0` is no replica.
    ReplicaId, u64, "r", "replica id"
);
number!(
    /// An operation that the metadata records, such as the move of a replica. Never reused. `0` is none.
    OperationId, u64, "op", "operation id"
);
number!(
    /// A collection of records. [`CollectionId::SYSTEM`] holds the metadata group's own records.
    CollectionId, u32, "c", "collection id"
);
number!(
    /// One start of a gateway in one shard, or one client with its own sequence numbers. Random, never
    /// reused, and different for each shard. `0` is no session.
    SessionId, u64, "x", "session id"
);
number!(
    /// A Raft term.
    Term, u64, "t", "term"
);
number!(
    /// A position in a Raft log. The first entry has index 1.
    LogIndex, u64, "", "log index"
);
number!(
    /// The sequence number of a node's synced log batches. A node that recovers a lower number than its peers
    /// have seen has lost data.
    WalSequence, u64, "w", "log sequence"
);

/// Ids of things that operators name are texts such as `n4` in JSON, as everywhere else. Plain numbers are read as
/// well: earlier versions wrote them.
macro_rules! text_in_json {
    ($($name:ident),*) => {
        $(
            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.collect_str(self)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    deserializer.deserialize_any(IdVisitor).and_then(|id| match id {
                        Id::Number(number) => Ok(Self(number)),
                        Id::Text(text) => text.parse().map_err(de::Error::custom),
                    })
                }
            }
        )*
    };
}

macro_rules! number_in_json {
    ($($name:ident),*) => {
        $(
            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    self.0.serialize(serializer)
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    Deserialize::deserialize(deserializer).map(Self)
                }
            }
        )*
    };
}

text_in_json!(NodeId, ShardId, ReplicaId);
number_in_json!(Incarnation, CollectionId, SessionId, Term, LogIndex, WalSequence);

/// An id as it was read.
enum Id {
    Number(u64),
    Text(String),
}

struct IdVisitor;

impl de::Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an id such as n4, or its number")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
        Ok(Id::Number(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
        Ok(Id::Text(text.to_owned()))
    }
}

impl NodeId {
    /// No node.
    pub const NONE: Self = Self(0);

    /// Whether a text has the form of a node id, `n` and digits, and so can never be the name of a node.
    #[must_use]
    pub fn is_written_as(text: &str) -> bool {
        text.strip_prefix('n').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

impl ShardId {
    /// The metadata group.
    pub const META: Self = Self(0);
}

impl CollectionId {
    /// Reserved for the metadata group's own records.
    pub const SYSTEM: Self = Self(0);
    /// The collection `default`.
    pub const DEFAULT: Self = Self(1);
    /// Reserved for records that a shard keeps beside those of its users. They belong to the shard whatever its
    /// range is.
    pub const INTERNAL: Self = Self(u32::MAX);
}

impl ReplicaId {
    /// No replica.
    pub const NONE: Self = Self(0);
}

/// A cluster: 16 random bytes drawn by the node that bootstrapped it, displayed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let invalid = || ParseIdError { what: "cluster id", text: text.to_owned() };
        let mut bytes = [0; 16];
        // `from_str_radix` would accept a sign, and one id would have several texts.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_parse_with_and_without_their_prefix() {
        assert_eq!("n7".parse(), Ok(NodeId(7)));
        assert_eq!("7".parse(), Ok(NodeId(7)));
        assert!("s7".parse::<NodeId>().is_err());
    }

    #[test]
    fn cluster_id_round_trips_through_text() {
        let id = ClusterId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("00".parse::<ClusterId>().is_err());
        assert!("zz".repeat(16).parse::<ClusterId>().is_err());
    }

    #[test]
    fn a_cluster_id_with_signs_is_refused() {
        assert!("+f".repeat(16).parse::<ClusterId>().is_err());
    }

    #[test]
    fn hostile_texts_are_refused_or_round_trip() {
        use flotilla_hostile::{attack, extreme_u64, mutated};
        use proptest::prelude::*;

        use crate::{Locality, ObjectId};

        let valid = prop_oneof![
            extreme_u64().prop_map(|id| NodeId(id).to_string()),
            any::<[u8; 16]>().prop_map(|id| ClusterId(id).to_string()),
            any::<u8>().prop_map(|byte| ObjectId::of(&[byte]).to_string()),
            Just("region=eu,zone=a".to_owned()),
        ];
        attack(1_000, mutated(valid), |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(id) = text.parse::<NodeId>() {
                assert_eq!(id.to_string().parse(), Ok(id));
            }
            if let Ok(id) = text.parse::<ClusterId>() {
                assert_eq!(id.to_string(), text.to_lowercase());
            }
            if let Ok(id) = text.parse::<ObjectId>() {
                assert_eq!(id.to_string(), text.to_lowercase());
            }
            if let Ok(locality) = text.parse::<Locality>() {
                assert_eq!(locality.to_string().parse(), Ok(locality));
            }
        });
    }
}
