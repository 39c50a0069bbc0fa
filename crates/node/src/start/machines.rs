//! Which state machine a shard runs.

use std::sync::Arc;

use flotilla_control::Topology;
use flotilla_kv::{KvMachine, Limits};
use flotilla_meta::MetaMachine;
use flotilla_replication::MachineFactory;
use flotilla_types::ShardId;

/// Bytes of one answer: it must fit into a frame between nodes, with one value beside what is already there.
const ANSWER_BYTES_MAX: u32 = 6 << 20;

/// Metadata for the metadata group, keys and values for all others.
pub(crate) fn machines(topology: Arc<Topology>) -> MachineFactory {
    let limits = Limits { answer_bytes_max: ANSWER_BYTES_MAX, ..Limits::default() };
    Box::new(move |shard| {
        if shard == ShardId::META {
            let topology = topology.clone();
            Box::new(MetaMachine::new(Box::new(move |state| topology.offer(&state))))
        } else {
            Box::new(KvMachine::new(limits))
        }
    })
}
