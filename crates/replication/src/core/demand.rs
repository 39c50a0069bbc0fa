//! What clients ask of the shards that this node leads.
//!
//! Plain sums since they were last taken. Deliberately absent: times and rates, which are for whoever takes them.

use std::{collections::BTreeMap, ops::AddAssign};

use flotilla_types::ShardId;

use super::Core;

/// What was asked of a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Commands that were proposed.
    pub commands: u64,
    /// Bytes of the entries that hold them.
    pub bytes: u64,
    /// Queries that were handed to the state machine.
    pub reads: u64,
}

impl AddAssign for Demand {
    fn add_assign(&mut self, other: Self) {
        self.commands = self.commands.saturating_add(other.commands);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.reads = self.reads.saturating_add(other.reads);
    }
}

/// What was asked of each shard; those of which nothing was asked are not listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands(BTreeMap<ShardId, Demand>);

impl Demands {
    pub(super) fn wrote(&mut self, shard: ShardId, commands: usize, bytes: usize) {
        *self.0.entry(shard).or_default() += Demand { commands: commands as u64, bytes: bytes as u64, reads: 0 };
    }

    pub(super) fn read(&mut self, shard: ShardId, reads: usize) {
        if reads > 0 {
            *self.0.entry(shard).or_default() += Demand { reads: reads as u64, ..Demand::default() };
        }
    }

    /// Whether nothing was asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each shard of which something was asked.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, Demand)> + '_ {
        self.0.iter().map(|(shard, demand)| (*shard, *demand))
    }
}

impl AddAssign for Demands {
    fn add_assign(&mut self, other: Self) {
        for (shard, demand) in other.0 {
            *self.0.entry(shard).or_default() += demand;
        }
    }
}

impl FromIterator<(ShardId, Demand)> for Demands {
    fn from_iter<I: IntoIterator<Item = (ShardId, Demand)>>(demands: I) -> Self {
        let mut all = Self::default();
        demands.into_iter().for_each(|(shard, demand)| *all.0.entry(shard).or_default() += demand);
        all
    }
}

impl<T> Core<T> {
    /// What was asked since the last call.
    pub fn take_demands(&mut self) -> Demands {
        std::mem::take(&mut self.demands)
    }
}
