//! The cluster version: what may be proposed, and the switch of each shard to it.
//!
//! Invariants: no entry that is proposed here needs a version above the one in force, so no replica meets an
//! entry that its binary cannot decode; a state machine changes the meaning of its commands only by a command
//! of its own log, so all replicas of a shard change it at the same entry.

use flotilla_consensus::ShardChange;
use flotilla_storage::{VersionNeed, switch_command, version_need};
use flotilla_types::{CheckpointFormat, ClusterVersion, NodeId, ReplicaId, ShardId, Tables, VersionRange};

use super::{Core, Effects, NodeHeartbeat, Notice};
use crate::Batch;

impl<T> Core<T> {
    /// Whether a command may be proposed under the version in force.
    pub(super) fn admits_version(&self, shard: ShardId, command: &[u8]) -> bool {
        match version_need(command) {
            VersionNeed::InForce(version) => version <= self.cluster_version,
            // The metadata here may lag, so the version may already be in force: the metadata group decides.
            VersionNeed::Raises(version) => {
                shard == ShardId::META
                    && version <= self.cluster_version.next()
                    && version <= VersionRange::supported().max
            }
        }
    }

    pub(super) fn on_cluster_version(&mut self, version: ClusterVersion) {
        if version <= self.cluster_version {
            return;
        }
        self.cluster_version = version;
        if version >= ClusterVersion::REST {
            self.raft.allow_rest();
        }
        let is_behind = |machine| machine < version;
        let behind = self.replicas.iter().filter(|(_, replica)| replica.version.is_some_and(is_behind));
        self.to_switch = behind.map(|(id, _)| *id).collect();
        self.touched.extend(&self.to_switch);
        let switched: Vec<_> = self.replicas.keys().filter(|id| !self.to_switch.contains(id)).copied().collect();
        switched.into_iter().for_each(|id| self.want_format_in_force(id));
    }

    pub(super) fn on_machine_version(&mut self, id: ReplicaId, version: Option<ClusterVersion>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.version = version;
        self.schedule.changed.insert(id);
        if version.is_some_and(|version| version < self.cluster_version) {
            self.to_switch.insert(id);
        } else {
            self.to_switch.remove(&id);
            self.want_format_in_force(id);
        }
    }

    /// A shard that nobody writes to makes no checkpoint. It gets one after its switch, so that objects of the
    /// format before do not stay.
    fn want_format_in_force(&mut self, id: ReplicaId) {
        let format = CheckpointFormat::of(self.cluster_version);
        let is_before = |tables: &Tables| tables.format() < format && tables.objects().next().is_some();
        if self.raft.group(id).is_some_and(|group| is_before(&group.checkpoint().tables))
            && let Some(replica) = self.replicas.get_mut(&id)
        {
            replica.checkpoint_wanted = true;
            self.schedule.checkpoints.insert(id);
        }
    }

    /// Proposes the switch of a shard led here to the version in force, in an entry of its own. It may be
    /// proposed more than once; later ones change nothing.
    pub(super) fn propose_switch(&mut self, id: ReplicaId) {
        if !self.to_switch.contains(&id) || self.is_clock_ahead() {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&id) else {
            self.to_switch.remove(&id);
            return;
        };
        if !replica.may_propose()
            || replica.descriptor.is_frozen()
            || replica.inflight.len() >= self.config.entries_inflight_max
        {
            return;
        }
        if replica.switch_proposed == Some((replica.term, self.cluster_version)) {
            return;
        }
        let timestamp = replica.clock.advance(self.wall_ms);
        let payload =
            Batch { timestamp, refs: flotilla_types::Refs::NONE, commands: vec![switch_command(self.cluster_version)] }
                .encode();
        if let Ok(index) = self.raft.propose(id, payload, &mut self.raft_effects) {
            replica.switch_proposed = Some((replica.term, self.cluster_version));
            replica.clock = timestamp;
            // No caller waits for its outcome.
            replica.inflight.push_back((index, replica.term, Vec::new()));
        }
    }

    /// Proposes a change of a shard led here. Whoever wants it looks at the descriptor, and asks again.
    pub(super) fn change_shard(&mut self, shard: ShardId, change: &ShardChange, effects: &mut Effects<T>) {
        if self.cluster_version < change.needs() {
            return;
        }
        let Some(id) = self.serving.get(&shard).copied() else { return };
        match change {
            ShardChange::Split(split) => self.propose_split(id, split, effects),
            _ => self.propose_merge_step(id, change, effects),
        }
    }

    /// Reports the versions that a peer's binary supports, once for each of its starts.
    pub(super) fn note_peer_versions(&mut self, from: NodeId, heartbeat: &NodeHeartbeat, effects: &mut Effects<T>) {
        let NodeHeartbeat { incarnation, versions, .. } = *heartbeat;
        if self.handshake.peer_versions.insert(from, (incarnation, versions)) != Some((incarnation, versions)) {
            effects.notices.push(Notice::PeerVersions { node: from, incarnation, versions });
        }
    }
}
