//! The entry that merges the right neighbour into a shard: the machine takes over the state of the other's.
//!
//! Invariant: what follows depends on the log and on the state of the right shard where its log froze it, which is the
//! same on every node.

use flotilla_consensus::Merge;
use flotilla_storage::{MachineError, StateEngine};
use flotilla_types::{Checkpoint, Entry, ReplicaId};

use super::{Chain, Ready, join_system, split_system};

impl Ready {
    /// Merges the machine, and freezes the memtable: entries go on once the records of both are loaded.
    pub(super) fn merge(
        &mut self,
        replica: ReplicaId,
        merge: &Merge,
        source: Option<&Checkpoint>,
        engine: &dyn StateEngine,
    ) -> Result<(), MachineError> {
        let (Some(source), Some(source_id)) = (source, merge.source_of(replica)) else {
            return Err(MachineError::Corrupt("the replica to be merged into this one is not here, or not frozen"));
        };
        let (clock, mut system) = split_system(engine.system(source)?)?;
        let theirs = Chain::decode(&mut system, source_id, source.position.index)?;
        self.machine.merge(&self.position.descriptor.range, &system)?;
        self.merged = true;
        self.clock = self.clock.max(clock);
        if let Some(chain) = &mut self.chain {
            chain.note_base(engine.logged_base(replica));
            chain.merge(self.position.index, theirs.as_ref(), &system);
        }
        let system = join_system(self.clock, (self.chain.as_ref(), replica), &self.machine.system());
        if engine.freeze(replica, self.position.clone(), system)? {
            Ok(())
        } else {
            Err(MachineError::Corrupt("a shard was merged while a checkpoint of it was made"))
        }
    }

    /// An entry of a shard that is frozen has no effect, whatever it says.
    pub(super) fn pass_over(&self, entry: &Entry) -> Result<(), MachineError> {
        let is_next = entry.index == self.position.index.next();
        if is_next { Ok(()) } else { Err(MachineError::Corrupt("committed entries came with a gap")) }
    }
}
