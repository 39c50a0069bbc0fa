//! The cluster version: which formats and which meanings of replicated data are in force.
//!
//! Replicas of one group must give each entry the same meaning, also while their nodes run different
//! binaries. So the metadata group fixes one version for the whole cluster. A binary reads and writes a range
//! of versions; whatever needs a version above the one in force is not proposed. The version rises one step
//! at a time, after every node was seen with a binary that supports the next one, and never falls.
//!
//! What each version introduced; a change of a command, record, entry, setting or rule of `apply` adds a
//! line:
//!
//! | version | what needs it | where |
//! |---|---|---|
//! | 1 | entries, configuration changes | `replication/src/batch.rs`, `consensus/src/change.rs` |
//! | 1 | kv commands, outcomes, records, system state | `kv/src/codec`, `kv/src/record.rs`, `kv/src/system.rs` |
//! | 1 | meta commands and records, all settings | `meta/src/codec`, `meta/src/settings.rs` |
//! | 2 | versions in `Join`, `UpdateNode` and node records; the version in force | [`ClusterVersion::NODE_VERSIONS`] |
//! | 2 | client keys: their commands and records | [`ClusterVersion::CLIENT_KEYS`] |
//! | 2 | a shard's switch, its version in the system state, sessions that end | [`ClusterVersion::BOUNDED_SESSIONS`] |
//! | 2 | entries without commands, which remove due records | [`ClusterVersion::UPKEEP`] |
//! | 2 | messages that let an idle group rest | [`ClusterVersion::REST`] |
//! | 2 | nodes that drain or leave, and that have left | [`ClusterVersion::DRAINING`] |
//! | 2 | starts of nodes, with the build of their binary | [`ClusterVersion::NODE_STARTS`] |
//! | 2 | rotation of the authority: its commands and record | [`ClusterVersion::AUTHORITY_ROTATION`] |
//! | 2 | names and localities of nodes that no terminal obeys | [`ClusterVersion::PRINTABLE_LABELS`] |
//! | 2 | joins that name the nodes they displace | [`ClusterVersion::NAMED_DISPLACEMENT`] |
//! | 3 | entries that change a shard | [`ClusterVersion::SHARD_ENTRIES`], `consensus/src/shard_change.rs` |
//! | 3 | checkpoints whose tables have manifests, and their pieces | [`ClusterVersion::CHECKPOINT_TABLES`] |
//! | 4 | entries that order a fold; bases that say which entry ordered them | [`ClusterVersion::LOGGED_FOLDS`] |
//! | 4 | the chain in a replica's system state | [`ClusterVersion::CHAINS`], `replication/src/applier/chain.rs` |
//! | 4 | records that say when others expire, and their totals | [`ClusterVersion::EXPIRY_RECORDS`] |
//! | 5 | entries and records that refer to objects, and their batches and pieces | [`ClusterVersion::VALUE_REFS`] |
//! | 5 | settings of large values in collections and their commands | [`ClusterVersion::VALUE_REFS`] |
//! | 6 | moves of replicas as operations: their commands, records and counter | [`ClusterVersion::OPERATIONS`] |
//! | 7 | splits of shards: entries, commands, records, and the keys that a machine's places are of | [`ClusterVersion::SPLITS`] |
//! | 8 | roles and weights of nodes | [`ClusterVersion::NODE_ROLES`] |
//! | 9 | when a collection's shards are split, and splits that no operator asked for | [`ClusterVersion::SIZE_SPLITS`] |
//! | 10 | merges of shards: entries, commands, records, and places that are still to be written | [`ClusterVersion::MERGES`] |
//! | 4 | the setting `transfer_bytes_per_second` | [`ClusterVersion::TRANSFER_RATE`] |
//!
//! Limits that `apply` enforces (`kv::Limits`, the bounds of `meta`) have replicated meaning too: a change of
//! one needs a version. Frames between peers are not under it: their fields are optional, and ignored by
//! binaries that do not know them.

use std::fmt;
#[cfg(feature = "version-limit")]
use std::sync::OnceLock;

/// The highest version that this process supports, if a test has limited it.
#[cfg(feature = "version-limit")]
static LIMIT: OnceLock<ClusterVersion> = OnceLock::new();

/// Makes this process support no version above `max`, as the binaries did that knew none. Tests of upgrades
/// do this before anything else; only the first call counts.
#[cfg(feature = "version-limit")]
pub fn limit_supported(max: ClusterVersion) {
    let _ = LIMIT.set(max.max(ClusterVersion::FIRST));
}

/// A version of the cluster's replicated formats and meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterVersion(pub u32);

impl ClusterVersion {
    /// The first version; clusters that record none are at it.
    pub const FIRST: Self = Self(1);
    /// The metadata records the version in force and which versions each node supports.
    pub const NODE_VERSIONS: Self = Self(2);
    /// A key-value shard remembers no session for longer than an hour after its last command.
    pub const BOUNDED_SESSIONS: Self = Self(2);
    /// An entry without commands removes many due records of a key-value shard.
    pub const UPKEEP: Self = Self(2);
    /// The metadata holds client keys.
    pub const CLIENT_KEYS: Self = Self(2);
    /// Leaders let idle groups rest, and node heartbeats name shards that a node leads no more.
    pub const REST: Self = Self(2);
    /// Metadata refuses names and localities of nodes with characters that a terminal would obey.
    pub const PRINTABLE_LABELS: Self = Self(2);
    /// The metadata records which nodes drain or leave, and removes a node that has left.
    pub const DRAINING: Self = Self(2);
    /// The metadata records when each node last started, and which build it runs.
    pub const NODE_STARTS: Self = Self(2);
    /// The metadata holds the cluster's authority, and its rotation.
    pub const AUTHORITY_ROTATION: Self = Self(2);
    /// A node that joins displaces only nodes that were found to be gone.
    pub const NAMED_DISPLACEMENT: Self = Self(2);
    /// The log of a shard has entries that change the shard itself, beside those that change its replicas.
    pub const SHARD_ENTRIES: Self = Self(3);
    /// Checkpoints name tables by their manifests.
    pub const CHECKPOINT_TABLES: Self = Self(3);
    /// The log of a shard orders the folds of its checkpoints.
    pub const LOGGED_FOLDS: Self = Self(4);
    /// Replicas have a chain: a digest of what their entries did.
    pub const CHAINS: Self = Self(4);
    /// A key-value shard has a record for each expiry.
    pub const EXPIRY_RECORDS: Self = Self(4);
    /// Entries and records refer to objects that replicas need beside them.
    pub const VALUE_REFS: Self = Self(5);
    /// The metadata records operations.
    pub const OPERATIONS: Self = Self(6);
    /// Shards can be split.
    pub const SPLITS: Self = Self(7);
    /// The metadata holds the role and the weight of each node.
    pub const NODE_ROLES: Self = Self(8);
    /// Shards are split when they have grown.
    pub const SIZE_SPLITS: Self = Self(9);
    /// Shards can be merged.
    pub const MERGES: Self = Self(10);
    /// The metadata holds how fast nodes transfer objects.
    pub const TRANSFER_RATE: Self = Self(4);
    /// The last version that the formats can name.
    pub const LAST: Self = Self(127);

    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The versions that a binary reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionRange {
    /// The lowest.
    pub min: ClusterVersion,
    /// The highest.
    pub max: ClusterVersion,
}

impl VersionRange {
    /// The versions that these sources know.
    const KNOWN: Self = Self { min: ClusterVersion::FIRST, max: ClusterVersion(10) };
    /// The versions of binaries that announce none.
    pub const FIRST_ONLY: Self = Self { min: ClusterVersion::FIRST, max: ClusterVersion::FIRST };

    /// The versions that this binary supports. A new cluster is founded at the highest.
    #[cfg(not(feature = "version-limit"))]
    #[must_use]
    pub const fn supported() -> Self {
        Self::KNOWN
    }

    /// The versions that this binary supports, as far as [`limit_supported`] left them. A new cluster is
    /// founded at the highest.
    #[cfg(feature = "version-limit")]
    #[must_use]
    pub fn supported() -> Self {
        let max = LIMIT.get().map_or(Self::KNOWN.max, |limit| Self::KNOWN.max.min(*limit));
        Self { max, ..Self::KNOWN }
    }

    /// The range of these numbers, as announced. Binaries that do not know of versions announce zeros;
    /// numbers that make no range are taken for such an announcement.
    #[must_use]
    pub fn announced(min: u32, max: u32) -> Self {
        let valid = (1..=max).contains(&min) && max <= ClusterVersion::LAST.0;
        if valid { Self { min: ClusterVersion(min), max: ClusterVersion(max) } } else { Self::FIRST_ONLY }
    }

    /// Whether a binary of this range can run in a cluster at `version`.
    #[must_use]
    pub fn supports(self, version: ClusterVersion) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { self.min.fmt(f) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_that_make_no_range_stand_for_the_first_version() {
        for (min, max) in [(0, 0), (0, 2), (2, 1), (1, 128)] {
            assert_eq!(VersionRange::announced(min, max), VersionRange::FIRST_ONLY);
        }
        let announced = VersionRange::announced(2, 3);
        assert!(announced.supports(ClusterVersion(2)) && announced.supports(ClusterVersion(3)));
        assert!(!announced.supports(ClusterVersion(1)) && !announced.supports(ClusterVersion(4)));
        assert_eq!(announced.to_string(), "2 to 3");
    }

    #[test]
    fn this_binary_supports_every_version_that_it_names() {
        for version in [
            ClusterVersion::FIRST,
            ClusterVersion::NODE_VERSIONS,
            ClusterVersion::BOUNDED_SESSIONS,
            ClusterVersion::UPKEEP,
            ClusterVersion::CLIENT_KEYS,
            ClusterVersion::PRINTABLE_LABELS,
            ClusterVersion::DRAINING,
            ClusterVersion::NODE_STARTS,
            ClusterVersion::AUTHORITY_ROTATION,
            ClusterVersion::NAMED_DISPLACEMENT,
            ClusterVersion::SHARD_ENTRIES,
            ClusterVersion::CHECKPOINT_TABLES,
            ClusterVersion::LOGGED_FOLDS,
            ClusterVersion::CHAINS,
            ClusterVersion::EXPIRY_RECORDS,
            ClusterVersion::VALUE_REFS,
            ClusterVersion::TRANSFER_RATE,
            ClusterVersion::SPLITS,
            ClusterVersion::SIZE_SPLITS,
            ClusterVersion::NODE_ROLES,
            ClusterVersion::MERGES,
        ] {
            assert!(VersionRange::supported().supports(version));
        }
    }
}
