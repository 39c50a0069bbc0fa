//! Flaws of one replica's state that no log explains: what anti-entropy must find.
//!
//! A flaw adds one record that no entry has written, once, under a key that clients do not use. So the history of
//! the clients stays linearizable, and a replica is wrong exactly while it has that record.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flotilla_replication::{Fingerprints, Input, ReplicaStatus, ShardChange};
use flotilla_storage::{
    ApplyContext, CountAhead, DeferredRead, Log as _, MachineError, MemoryLog, ReadContext, StateMachine, StateReader,
    Upcoming, WriteSet,
};
use flotilla_types::{ClusterVersion, KeyRange, NodeId, ReplicaId, ReplicaRole, ShardId};
use parking_lot::Mutex;

use crate::{node::Node, world::World};

/// Time in which a flaw must be found and its replica replaced, once all other faults are healed.
const FOUND_MS_MAX: u64 = 120_000;
/// Pause between two looks at it.
const LOOK_MS: u64 = 2_000;

/// Where a flaw is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlawKind {
    /// The state machine writes something else: in the chain from the next sample on.
    Machine,
    /// The engine changes what was written: in the base of the next fold.
    Engine,
}

/// The flaws of a node that wait for the next write of their shard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flaws(Arc<Mutex<BTreeMap<ShardId, FlawKind>>>);

/// The key that makes a replica of a shard wrong.
fn key_of(written: &[u8]) -> Bytes {
    [written, b"\xff flaw"].concat().into()
}

fn is_flaw(key: &[u8]) -> bool {
    key.ends_with(b"\xff flaw")
}

impl Flaws {
    fn add(&self, shard: ShardId, kind: FlawKind) {
        self.0.lock().insert(shard, kind);
    }

    /// The same for a write of the engine, of this replica.
    pub(crate) fn apply_to(&self, replica: ReplicaId, log: &MemoryLog, writes: &mut WriteSet) {
        if self.0.lock().values().all(|kind| *kind != FlawKind::Engine) {
            return;
        }
        let replicas = log.replicas().unwrap_or_default();
        if let Some((_, held)) = replicas.iter().find(|(id, _)| *id == replica) {
            self.apply(held.shard, FlawKind::Engine, writes);
        }
    }

    /// Adds the record of a flaw of this kind, if there is one.
    pub(crate) fn apply(&self, shard: ShardId, kind: FlawKind, writes: &mut WriteSet) {
        let mut flaws = self.0.lock();
        let users = KeyRange::of_users();
        let written = writes.iter().find(|(key, value)| users.contains(key) && value.is_some());
        if flaws.get(&shard) == Some(&kind)
            && let Some((key, value)) = written
        {
            let flaw = (key_of(key), value.clone());
            flaws.remove(&shard);
            writes.push(flaw);
        }
    }
}

/// A state machine that may have a flaw.
pub(crate) struct Flawed {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) shard: ShardId,
    pub(crate) flaws: Flaws,
}

impl StateMachine for Flawed {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        let outcomes = self.machine.apply(context, commands, records, writes)?;
        self.flaws.apply(self.shard, FlawKind::Machine, writes);
        Ok(outcomes)
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.machine.read(context, query, records)
    }

    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>) {
        self.machine.keys_read(commands, keys);
    }

    fn scans(&self, entries: &Upcoming) -> bool {
        self.machine.scans(entries)
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        self.machine.deferred()
    }

    fn version(&self) -> Option<ClusterVersion> {
        self.machine.version()
    }

    fn meaning(&self) -> ClusterVersion {
        self.machine.meaning()
    }

    fn record_bytes(&self) -> Option<u64> {
        self.machine.record_bytes()
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        self.machine.upkeep_due_ms()
    }

    fn count_ahead(&mut self, right: &KeyRange) -> Option<Arc<dyn CountAhead>> {
        self.machine.count_ahead(right)
    }

    fn split(&mut self, right: &KeyRange, records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.machine.split(right, records)
    }

    fn merge(&mut self, whole: &KeyRange, right: &[u8]) -> Result<(), MachineError> {
        self.machine.merge(whole, right)
    }

    fn system(&self) -> Bytes {
        self.machine.system()
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        self.machine.restore(system, records)
    }
}

impl Node {
    /// Whether a replica here has a record that no entry has written.
    pub(crate) fn is_wrong(&self, replica: ReplicaId) -> bool {
        let Ok(reader) = self.disk.records(replica) else { return false };
        let records = reader.scan(&KeyRange::of_users(), usize::MAX, usize::MAX).unwrap_or_default();
        records.iter().any(|(key, _)| is_flaw(key))
    }
}

/// The voters of a shard as one looks at all nodes at once.
struct Voters {
    /// Those with a flaw.
    wrong: usize,
    /// Those without one which have applied all entries themselves.
    witnesses: usize,
    others: usize,
}

impl World {
    /// Gives a follower here a flaw. Its shard must have others that can show it.
    pub(crate) fn flaw(&mut self, id: NodeId, which: u64) -> Option<()> {
        let meta = self.newest_metadata()?;
        if meta.cluster_version() < ClusterVersion::CHAINS {
            return None;
        }
        let status = self.nodes.get(&id)?.status();
        let mut may_have_one = |shard: ShardId| {
            let leads = self.leader(shard).is_none_or(|(leader, _)| leader == id);
            shard != ShardId::META && !leads && {
                let voters = self.voters(shard);
                voters.wrong == 0 && voters.witnesses >= 3 && voters.others == 0
            }
        };
        let mut shards: Vec<_> = status.iter().map(|held| held.shard).collect();
        shards.retain(|shard| may_have_one(*shard));
        let shard = *shards.get((which >> 1) as usize % shards.len().max(1))?;
        let kind = if which.is_multiple_of(2) { FlawKind::Machine } else { FlawKind::Engine };
        self.note(format!("the replica of {shard} on {id} is to have a flaw of its {kind:?}"));
        self.faults.flawed.insert(shard);
        self.nodes.get(&id)?.disk.flaws.add(shard, kind);
        self.checks.flawed.insert(shard);
        Some(())
    }

    fn voters(&mut self, shard: ShardId) -> Voters {
        let mut voters = Voters { wrong: 0, witnesses: 0, others: 0 };
        for node in self.nodes.values_mut() {
            for held in node.status() {
                let id = held.replica;
                let mut descriptor = held.descriptor.replicas.iter();
                let votes = descriptor.any(|held| held.replica == id && held.role == ReplicaRole::Voter);
                if held.shard != shard || held.group.is_none() || !votes {
                    continue;
                }
                let said = node.running.as_mut().and_then(|running| running.applier.fingerprints(id));
                let chain = said.and_then(|Fingerprints { chain, .. }| chain);
                match chain {
                    _ if node.is_wrong(id) => voters.wrong += 1,
                    Some(chain) if chain.copied.is_none() => voters.witnesses += 1,
                    _ => voters.others += 1,
                }
            }
        }
        voters
    }

    /// Why a flaw may still be there.
    pub(crate) fn flawed(&self) -> Option<String> {
        if self.faults.flawed.is_empty() {
            return None;
        }
        let is_wrong =
            |node: &Node, held: &ReplicaStatus| self.faults.flawed.contains(&held.shard) && node.is_wrong(held.replica);
        let held = |node: &Node| node.status().into_iter().find(|held| is_wrong(node, held));
        self.nodes.values().find_map(|node| Some(format!("{} on {} is wrong", held(node)?.replica, node.id)))
    }

    /// Waits until every flaw was found and its replica replaced. `false` if one stays that nobody can judge.
    /// Panics when one stays that a majority of witnesses refutes.
    pub(crate) fn await_no_flaws(&mut self) -> bool {
        for node in self.nodes.values() {
            node.disk.flaws.0.lock().clear();
        }
        for _ in 0..FOUND_MS_MAX / LOOK_MS {
            if self.flawed().is_none() && self.sees_flawed_shards() {
                return true;
            }
            // Only a fold shows what an engine has lost.
            self.fold_flawed();
            self.run_ms(LOOK_MS);
        }
        let Some(flawed) = self.flawed() else { return true };
        for shard in self.faults.flawed.clone() {
            let voters = self.voters(shard);
            let can_be_judged = voters.wrong == 1 && voters.witnesses >= 2;
            assert!(!can_be_judged, "{flawed} for {FOUND_MS_MAX} ms, and others know\n{}", self.describe());
        }
        self.note(format!("{flawed}, and nobody can judge it"));
        false
    }

    /// Whether all voters of the shards with flaws are there to be looked at: nodes that have just started load theirs.
    fn sees_flawed_shards(&mut self) -> bool {
        let is_seen = |world: &mut Self, shard: ShardId| {
            let Some((_, leader)) = world.leader(shard) else { return false };
            let Some(voters) = leader.group.as_ref().map(|group| group.conf.voters.len()) else { return false };
            let seen = world.voters(shard);
            seen.wrong + seen.witnesses + seen.others == voters
        };
        self.faults.flawed.clone().into_iter().all(|shard| is_seen(self, shard))
    }

    fn fold_flawed(&mut self) {
        for shard in self.faults.flawed.clone() {
            if let Some((leader, _)) = self.leader(shard) {
                let change = ShardChange::Fold { piece_bytes: 1 << 10 };
                self.send_input(leader, Input::ChangeShard { shard, change });
            }
        }
    }
}
