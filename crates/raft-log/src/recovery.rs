//! What a log knows when it has been opened: read from the engine, checked, and put right where the engine forgets.
//!
//! The engine may bring back entries that were truncated or replaced long ago, once the files with the commands that removed
//! them are purged. So the durable record of a replica says where its log starts and ends, and what lies outside is ignored;
//! commands that keep the engine from tripping over it are written again.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_storage::{LogError, ReplicaBounds};
use flotilla_types::{NodeId, ReplicaId, WalSequence};
use raft_engine::{Command, Engine, LogBatch};

use crate::{
    error::from_engine,
    files::LogFiles,
    record::{self, CHECKPOINT_KEY, NODE_REGION, NodePair, REPLICA_KEY, Reason},
    terms::Terms,
};

/// What the log keeps in memory.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) sequence: WalSequence,
    pub(crate) marks: BTreeMap<NodeId, WalSequence>,
    pub(crate) tombstones: BTreeSet<ReplicaId>,
    pub(crate) replicas: BTreeMap<ReplicaId, Replica>,
    /// Replicas whose records do not fit together: only a write that destroys them is taken.
    pub(crate) damaged: BTreeMap<ReplicaId, Reason>,
}

/// One replica in memory.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) bounds: ReplicaBounds,
    pub(crate) terms: Terms,
}

impl Contents {
    /// Reads everything that is small.
    pub(crate) fn recover(engine: &Engine<LogFiles>) -> Result<Self, LogError> {
        let mut contents = Self::default();
        contents.recover_node(engine)?;
        let mut repair = LogBatch::default();
        for region in engine.raft_groups().into_iter().filter(|region| *region != NODE_REGION) {
            let id = ReplicaId(region);
            if contents.tombstones.contains(&id) {
                repair.add_command(region, Command::Clean);
                continue;
            }
            match recover_replica(engine, region) {
                Ok(None) => {}
                Ok(Some(bounds)) => {
                    if engine.first_index(region).is_some_and(|first| first <= bounds.truncated.0.0) {
                        repair.add_command(region, Command::Compact { index: bounds.truncated.0.0 + 1 });
                    }
                    contents.replicas.insert(id, Replica { bounds, terms: Terms::default() });
                }
                Err(reason) => {
                    tracing::error!(replica = %id, reason, "the log of a replica is damaged");
                    contents.damaged.insert(id, reason);
                }
            }
        }
        // The commands repeat what is durable in another form, so the next synced write may carry them to the disk.
        engine.write(&mut repair, false).map_err(from_engine)?;
        Ok(contents)
    }

    fn recover_node(&mut self, engine: &Engine<LogFiles>) -> Result<(), LogError> {
        let mut damage = None;
        let scan = engine.scan_raw_messages(NODE_REGION, None, None, false, |key, value| {
            match record::decode_node_pair(key, value) {
                Ok(NodePair::Mark(node, sequence)) => {
                    self.marks.insert(node, sequence);
                }
                Ok(NodePair::Tombstone(replica)) => {
                    self.tombstones.insert(replica);
                }
                Ok(NodePair::Sequence(sequence)) => self.sequence = sequence,
                Err(reason) => damage = Some(reason),
            }
            damage.is_none()
        });
        scan.map_err(from_engine)?;
        // No replica has the id 0: the damage is the node's own.
        damage.map_or(Ok(()), |reason| Err(LogError::Corrupt { replica: ReplicaId::NONE, reason }))
    }
}

/// `None` for a region that is only a shadow of earlier commands.
fn recover_replica(engine: &Engine<LogFiles>, region: u64) -> Result<Option<ReplicaBounds>, Reason> {
    let span = engine.first_index(region).zip(engine.last_index(region));
    let checkpoint = engine.get(region, CHECKPOINT_KEY);
    let Some(record) = engine.get(region, REPLICA_KEY) else {
        return if checkpoint.is_none() && span.is_none() {
            Ok(None)
        } else {
            Err("the record of the replica is gone")
        };
    };
    record::decode_checkpoint(&checkpoint.ok_or("the checkpoint of the replica is gone")?)?;
    let bounds = record::decode_replica(&record)?;
    if bounds.last > bounds.truncated.0 {
        let (first, last) = span.ok_or("all entries of the replica are gone")?;
        if first > bounds.truncated.0.0 + 1 || last < bounds.last.0 {
            return Err("entries of the replica are gone");
        }
    }
    Ok(Some(bounds))
}
