//! The limits of the state machine.
//!
//! Limits affect outcomes, so all nodes of a cluster must run with equal ones, or replicas diverge.
//! `transaction`, `session` and `read` enforce them.

use flotilla_types::RecordKey;

/// Limits of a shard. They must be equal on every node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a user's key, without collection and bucket. 1 to 65,536; larger keys enlarge every index.
    pub key_bytes_max: u32,
    /// Bytes of a value, also after an append. At least 1; one value must fit into a log entry and a peer's
    /// frame.
    pub value_bytes_max: u32,
    /// Bytes of a large value, whose bytes are objects. At least `value_bytes_max`.
    pub large_value_bytes_max: u32,
    /// Operations of a command, and likewise conditions. At least 1; a command is applied without
    /// interruption.
    pub operations_max: u32,
    /// Sessions that a shard remembers. At least 1; one per gateway start and per client with its own
    /// sequence numbers.
    pub sessions_max: u32,
    /// Outcomes remembered for one session. At least 1; not below what a gateway keeps in flight to one
    /// shard.
    pub outcomes_per_session_max: u32,
    /// Outcomes remembered in a shard, up to 700 bytes of memory each. At least `outcomes_per_session_max`.
    pub outcomes_max: u32,
    /// Keys of a [`crate::Query::Get`]. At least 1.
    pub query_keys_max: u32,
    /// Bytes of values in one answer or outcome. At least `value_bytes_max`. A page of a scan may exceed it
    /// by one value, and must still fit into a frame of the transport.
    pub answer_bytes_max: u32,
    /// Records in a page of a scan. 1 to 32,768.
    pub scan_items_max: u32,
    /// Stored records that one scan or count reads, deleted ones included. At least `scan_items_max`; a read
    /// of that many delays other work of the shard.
    pub scan_examined_max: u32,
}

/// The limits are invalid. Nothing was started; correct the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A limit of zero would refuse everything.
    #[error("`{0}` must not be 0")]
    Zero(&'static str),
    /// A limit is above what formats or other limits allow.
    #[error("`{field}` must not be above {max}")]
    Above {
        /// The limit.
        field: &'static str,
        /// Its maximum.
        max: u32,
    },
    /// A limit is below another one that it must reach.
    #[error("`{field}` must not be below `{other}`")]
    Below {
        /// The limit.
        field: &'static str,
        /// The limit that it must reach.
        other: &'static str,
    },
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 << 10,
            value_bytes_max: 4 << 20,
            large_value_bytes_max: 64 << 20,
            operations_max: 1_024,
            sessions_max: 4_096,
            outcomes_per_session_max: 4_096,
            outcomes_max: 65_536,
            query_keys_max: 4_096,
            answer_bytes_max: 6 << 20,
            scan_items_max: 10_000,
            scan_examined_max: 100_000,
        }
    }
}

impl Limits {
    /// Bytes of a whole record key.
    #[must_use]
    pub const fn record_key_bytes_max(&self) -> usize {
        RecordKey::PREFIX_BYTES + self.key_bytes_max as usize
    }

    /// Checks that the limits are valid, each and together.
    ///
    /// # Errors
    /// The first violation.
    pub fn validate(&self) -> Result<(), LimitsError> {
        for (field, value, max) in [
            ("key_bytes_max", self.key_bytes_max, 65_536),
            ("value_bytes_max", self.value_bytes_max, u32::MAX),
            ("large_value_bytes_max", self.large_value_bytes_max, 1 << 30),
            ("operations_max", self.operations_max, crate::ELEMENTS_MAX / 4),
            ("sessions_max", self.sessions_max, u32::MAX),
            ("outcomes_per_session_max", self.outcomes_per_session_max, u32::MAX),
            ("outcomes_max", self.outcomes_max, u32::MAX),
            ("query_keys_max", self.query_keys_max, crate::ELEMENTS_MAX / 2),
            ("answer_bytes_max", self.answer_bytes_max, u32::MAX),
            ("scan_items_max", self.scan_items_max, crate::ELEMENTS_MAX / 2),
            ("scan_examined_max", self.scan_examined_max, u32::MAX),
        ] {
            if value == 0 {
                return Err(LimitsError::Zero(field));
            }
            if value > max {
                return Err(LimitsError::Above { field, max });
            }
        }
        for (field, value, other, least) in [
            ("outcomes_max", self.outcomes_max, "outcomes_per_session_max", self.outcomes_per_session_max),
            ("answer_bytes_max", self.answer_bytes_max, "value_bytes_max", self.value_bytes_max),
            ("large_value_bytes_max", self.large_value_bytes_max, "value_bytes_max", self.value_bytes_max),
            ("scan_examined_max", self.scan_examined_max, "scan_items_max", self.scan_items_max),
        ] {
            if value < least {
                return Err(LimitsError::Below { field, other });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_violations_are_named() {
        assert_eq!(Limits::default().validate(), Ok(()));
        let none = Limits { operations_max: 0, ..Limits::default() };
        assert_eq!(none.validate(), Err(LimitsError::Zero("operations_max")));
        let small = Limits { answer_bytes_max: 1, ..Limits::default() };
        assert!(matches!(small.validate(), Err(LimitsError::Below { field: "answer_bytes_max", .. })));
        let large = Limits { scan_items_max: 1 << 20, ..Limits::default() };
        assert!(matches!(large.validate(), Err(LimitsError::Above { field: "scan_items_max", .. })));
    }
}
