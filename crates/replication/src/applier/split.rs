//! The entry that splits a shard: what the machine gives up, and the position of the new replica.
//!
//! Invariant: both halves follow from the log alone, so all replicas of the new shard begin alike.

use bytes::Bytes;
use flotilla_consensus::Split;
use flotilla_storage::{MachineError, SplitOff, StateEngine};
use flotilla_types::{KeyRange, Position, ReplicaId, ShardDescriptor};

use super::{Ready, join_system};
use crate::core::FIRST_POSITION;
use crate::{Count, Input};

impl Ready {
    /// Begins to count what a split would give up. Not where a snapshot would hold up checkpoints for so long.
    pub(super) fn count_ahead<T>(&mut self, replica: ReplicaId, at: Bytes, engine: &dyn StateEngine) -> Input<T> {
        let right = KeyRange { start: at.clone(), end: self.position.descriptor.range.end.clone() };
        let counting = (!engine.snapshots_delay_checkpoints()).then(|| self.machine.count_ahead(&right)).flatten();
        match (counting, engine.snapshot(replica)) {
            (Some(counting), Ok(records)) => Input::CountBegun(Count { replica, at, counting, records }),
            (None, _) | (_, Err(_)) => Input::Counted { replica, at },
        }
    }

    /// Splits the machine, and freezes what the checkpoints of both halves begin with. The core has seen to it that no
    /// other checkpoint is being made.
    pub(super) fn split(
        &mut self,
        replica: ReplicaId,
        split: &Split,
        before: &ShardDescriptor,
        engine: &dyn StateEngine,
    ) -> Result<(), MachineError> {
        let Ok((_, descriptor)) = split.halves(before) else { return Ok(()) };
        // Every replica that the descriptor names has one in the new shard. One that it does not name yet is a
        // learner, with which no split applies.
        let child = split.child_of(replica).unwrap_or(ReplicaId::NONE);
        if let Some(chain) = &mut self.chain {
            chain.note_base(engine.logged_base(replica));
        }
        let right = KeyRange { start: split.at.clone(), end: before.range.end.clone() };
        let machine = self.machine.split(&right, &*self.reader)?;
        let chain = self.chain.as_ref().map(|chain| chain.split_off(descriptor.shard, FIRST_POSITION.0));
        let system = join_system(self.clock, (chain.as_ref(), child), &machine);
        let (index, term) = FIRST_POSITION;
        let position = Position { index, term, conf: split.conf().into(), descriptor: descriptor.into() };
        let split_off = SplitOff { at: split.at.clone(), position, system };
        let system = join_system(self.clock, (self.chain.as_ref(), replica), &self.machine.system());
        if engine.freeze_split(replica, self.position.clone(), system, split_off)? {
            Ok(())
        } else {
            Err(MachineError::Corrupt("a shard was split while a checkpoint of it was made"))
        }
    }
}
