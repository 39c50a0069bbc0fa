//! Cluster-wide settings, stored in the metadata so that every node uses the same ones.
//!
//! Invariants: only known keys with values in range are stored; a key that was never set has its default.

use std::{fmt, str::FromStr};

use flotilla_types::ClusterVersion;

use crate::{Field, MetaRefusal};

/// A setting. All are whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// How long a node may be unreachable before its replicas are replaced, in milliseconds (1,000 to 7
    /// days). Shorter restores redundancy sooner; longer saves copying when a node is merely restarting.
    DeadNodeGraceMs,
    /// Voters of the metadata group: 1, 3 or 5. Five survive two failures and make each change slower.
    MetaReplicas,
    /// Balancing starts when two nodes differ by more than one replica plus this many (0 to 1,000).
    BalanceThreshold,
    /// Replicas that one plan may move for balance or spread (0 to 64). 0 turns balancing off.
    BalanceMovesMax,
    /// Bytes of objects that each node receives per second while replicas are moved or replaced, and sends: so
    /// many in each direction (256 KiB to 1 TB). 0 for no bound. A node that was started with a rate of its own
    /// keeps that.
    TransferBytesPerSecond,
    /// Whether shards may be merged (0 or 1).
    ShardMerges,
    /// How long nobody may have used two small neighbours before they are merged, in seconds (up to a year). 0 leaves
    /// them alone.
    ShardMergeAfterS,
}

impl Setting {
    /// Every setting.
    pub const ALL: [Self; 7] = [
        Self::DeadNodeGraceMs,
        Self::MetaReplicas,
        Self::BalanceThreshold,
        Self::BalanceMovesMax,
        Self::TransferBytesPerSecond,
        Self::ShardMerges,
        Self::ShardMergeAfterS,
    ];

    /// Its name.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::DeadNodeGraceMs => "dead_node_grace_ms",
            Self::MetaReplicas => "meta_replicas",
            Self::BalanceThreshold => "balance_threshold",
            Self::BalanceMovesMax => "balance_moves_max",
            Self::TransferBytesPerSecond => "transfer_bytes_per_second",
            Self::ShardMerges => "shard_merges",
            Self::ShardMergeAfterS => "shard_merge_after_s",
        }
    }

    /// The cluster version that introduced it: earlier binaries refuse its key.
    #[must_use]
    pub fn since(self) -> ClusterVersion {
        match self {
            Self::DeadNodeGraceMs | Self::MetaReplicas | Self::BalanceThreshold | Self::BalanceMovesMax => {
                ClusterVersion::FIRST
            }
            Self::TransferBytesPerSecond => ClusterVersion::TRANSFER_RATE,
            Self::ShardMerges | Self::ShardMergeAfterS => ClusterVersion::MERGES,
        }
    }

    /// Its default value.
    #[must_use]
    pub fn default_value(self) -> u64 {
        match self {
            Self::DeadNodeGraceMs => 30_000,
            Self::MetaReplicas => 3,
            Self::BalanceThreshold => 1,
            Self::BalanceMovesMax => 2,
            Self::TransferBytesPerSecond => 0,
            Self::ShardMerges => 1,
            Self::ShardMergeAfterS => 3_600,
        }
    }

    /// Its effect and range in one line, for operators. Ends with the accepted values after a colon.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::DeadNodeGraceMs => {
                "milliseconds that a node may be unreachable before its replicas are replaced: 1000 to 604800000"
            }
            Self::MetaReplicas => "voters of the metadata group, once there are enough nodes: 1, 3 or 5",
            Self::BalanceThreshold => {
                "balancing starts when two nodes differ by more than one replica plus this many: 0 to 1000"
            }
            Self::BalanceMovesMax => "replicas that one plan may move for balance or spread, 0 for none: 0 to 64",
            Self::TransferBytesPerSecond => {
                "bytes per second that each node receives, and sends, while replicas are moved or replaced, 0 for no \
                 bound: 0, or 262144 to 1000000000000"
            }
            Self::ShardMerges => "whether shards may be merged: 0 or 1",
            Self::ShardMergeAfterS => {
                "seconds for which nobody may have used two small neighbours before they are merged, 0 for never: 0 to \
                 31536000"
            }
        }
    }

    /// Whether a value is in its range.
    #[must_use]
    pub fn accepts(self, value: u64) -> bool {
        match self {
            Self::DeadNodeGraceMs => (1_000..=7 * 24 * 3_600_000).contains(&value),
            Self::MetaReplicas => matches!(value, 1 | 3 | 5),
            Self::BalanceThreshold => value <= 1_000,
            Self::BalanceMovesMax => value <= 64,
            Self::ShardMerges => value <= 1,
            Self::ShardMergeAfterS => value <= 365 * 24 * 3_600,
            Self::TransferBytesPerSecond => value == 0 || (256 << 10..=1_000_000_000_000).contains(&value),
        }
    }

    /// Parses a value; refuses one that is not a number or out of range.
    pub fn parse(self, value: &str) -> Result<u64, MetaRefusal> {
        let number = value.parse().ok().filter(|number| self.accepts(*number));
        number.ok_or(MetaRefusal::Invalid(Field::Setting))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

impl FromStr for Setting {
    type Err = MetaRefusal;

    fn from_str(key: &str) -> Result<Self, MetaRefusal> {
        Self::ALL.into_iter().find(|setting| setting.key() == key).ok_or(MetaRefusal::UnknownSetting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_keys_round_trip() {
        for setting in Setting::ALL {
            assert_eq!(setting.key().parse(), Ok(setting));
            assert_eq!(setting.parse(&setting.default_value().to_string()), Ok(setting.default_value()));
            assert!(setting.parse("many").is_err() && setting.parse("-1").is_err());
            assert!(setting.parse(&u64::MAX.to_string()).is_err());
        }
        assert!(Setting::MetaReplicas.parse("2").is_err());
        assert_eq!("no_such_setting".parse::<Setting>(), Err(MetaRefusal::UnknownSetting));
    }

    #[test]
    fn description_ends_with_the_accepted_values() {
        for setting in Setting::ALL {
            let (_, values) = setting.description().rsplit_once(": ").expect("values");
            let numbers: Vec<u64> =
                values.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
            assert!(numbers.len() >= 2 && numbers.iter().all(|number| setting.accepts(*number)), "{setting}: {values}");
            let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
            assert!(!setting.accepts(last + 1) && (first == 0 || !setting.accepts(first - 1)), "{setting}: {values}");
        }
    }
}
