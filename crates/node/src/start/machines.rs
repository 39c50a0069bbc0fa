//! The state machine of each shard.

use std::sync::Arc;

use flotilla_control::Topology;
use flotilla_kv::{KvMachine, Limits};
use flotilla_meta::MetaMachine;
use flotilla_replication::MachineFactory;
use flotilla_types::ShardId;

/// The metadata state machine for the metadata group, the key-value state machine for all other shards.
pub(crate) fn machines(topology: Arc<Topology>) -> MachineFactory {
    Arc::new(move |shard| {
        if shard == ShardId::META {
            let topology = topology.clone();
            Box::new(MetaMachine::new(Box::new(move |state| topology.offer(&state))))
        } else {
            Box::new(KvMachine::new(Limits::default()))
        }
    })
}
