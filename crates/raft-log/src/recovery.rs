//! The state of a log in memory: read from the engine at open, checked, and repaired where the engine
//! forgets.
//!
//! The engine may bring back entries that were truncated or replaced long ago, once the files with the
//! commands that removed them are purged. Therefore the durable record of a replica says where its log starts
//! and ends, entries outside of it are ignored, and the commands that remove them from the engine are written
//! again.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_storage::{LogError, ReplicaBounds};
use flotilla_types::{NodeId, ReplicaId, WalSequence};
use raft_engine::{Command, Engine, LogBatch};

use crate::{
    error::from_engine,
    record::{self, CHECKPOINT_KEY, NODE_REGION, NodePair, REPLICA_KEY, Reason},
    terms::Terms,
    zero_fill::ZeroFillFileSystem,
};

/// The state of the log in memory.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) sequence: WalSequence,
    pub(crate) peer_sequences: BTreeMap<NodeId, WalSequence>,
    pub(crate) tombstones: BTreeSet<ReplicaId>,
    pub(crate) replicas: BTreeMap<ReplicaId, Replica>,
    /// Replicas with inconsistent records: only a write that destroys them is accepted.
    pub(crate) damaged: BTreeMap<ReplicaId, Reason>,
}

/// One replica in memory.
#[derive(Debug, Clone)]
pub(crate) struct Replica {
    pub(crate) bounds: ReplicaBounds,
    pub(crate) terms: Terms,
}

impl Contents {
    /// Reads the node's and the replicas' records, but no entries.
    pub(crate) fn recover(engine: &Engine<ZeroFillFileSystem>) -> Result<Self, LogError> {
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
        // The commands repeat what other records already make durable, so the next synced write may sync
        // them.
        engine.write(&mut repair, false).map_err(from_engine)?;
        Ok(contents)
    }

    fn recover_node(&mut self, engine: &Engine<ZeroFillFileSystem>) -> Result<(), LogError> {
        let mut damage = None;
        let scan = engine.scan_raw_messages(NODE_REGION, None, None, false, |key, value| {
            match record::decode_node_pair(key, value) {
                Ok(NodePair::PeerSequence(node, sequence)) => {
                    self.peer_sequences.insert(node, sequence);
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
        // Replica id 0 stands for the node's own records.
        damage.map_or(Ok(()), |reason| Err(LogError::Corrupt { replica: ReplicaId::NONE, reason }))
    }
}

/// `None` for a region without records or entries, left over from earlier commands.
fn recover_replica(engine: &Engine<ZeroFillFileSystem>, region: u64) -> Result<Option<ReplicaBounds>, Reason> {
    let span = engine.first_index(region).zip(engine.last_index(region));
    let checkpoint = engine.get(region, CHECKPOINT_KEY);
    let Some(record) = engine.get(region, REPLICA_KEY) else {
        return if checkpoint.is_none() && span.is_none() {
            Ok(None)
        } else {
            Err("the record of the replica is missing")
        };
    };
    record::decode_checkpoint(&checkpoint.ok_or("the checkpoint of the replica is missing")?)?;
    let bounds = record::decode_replica(&record)?;
    if bounds.last > bounds.truncated.0 {
        let (first, last) = span.ok_or("all entries of the replica are missing")?;
        if first > bounds.truncated.0.0 + 1 || last < bounds.last.0 {
            return Err("entries of the replica are missing");
        }
    }
    Ok(Some(bounds))
}
