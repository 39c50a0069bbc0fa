//! Changes of the replica set, and their encoding.
//!
//! raft-rs requires its own protobuf bytes in the entry that a leader proposes; only that leader writes and
//! parses them. Replicas apply the encoding of this module, which travels as the entry's context, so that
//! bytes from a peer never reach protobuf 2.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{ConfState, NodeId, ReplicaDescriptor, ReplicaId, ReplicaRole, ShardDescriptor};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

const FORMAT: u8 = 1;
/// Replicas that one change names, at most.
const PARTS_MAX: usize = 16;

/// One change of the replica set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfChange {
    /// Adds a replica that receives the log and does not vote.
    AddLearner {
        /// The new replica.
        replica: ReplicaId,
        /// The node that holds it.
        node: NodeId,
    },
    /// Removes a learner.
    RemoveLearner {
        /// The learner.
        replica: ReplicaId,
    },
    /// Promotes learners and demotes voters atomically, through a joint configuration that
    /// [`ConfChange::LeaveJoint`] ends (Ongaro's dissertation, §4.3).
    Swap {
        /// Learners that become voters.
        promote: Vec<ReplicaId>,
        /// Voters that become learners.
        demote: Vec<ReplicaId>,
    },
    /// Ends a joint configuration.
    LeaveJoint,
}

/// A committed change, of the replica set or of the shard, was not applied. The entry changes nothing, on any
/// replica, unless its format is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The bytes are not a change.
    #[error("the change does not parse")]
    Malformed,
    /// It does not apply to the current configuration or descriptor, on any replica.
    #[error("the change does not apply to the current configuration")]
    NotApplicable,
    /// Its format is newer: other replicas may apply it, so this one must stop before it.
    #[error("the change has format {found}, newer than {known}")]
    Version {
        /// Format of the change.
        found: u8,
        /// Newest format that this binary reads.
        known: u8,
    },
}

impl ConfChange {
    fn parts(&self) -> Vec<(ConfChangeType, ReplicaId, NodeId)> {
        let voter = |replica: &ReplicaId| (ConfChangeType::AddNode, *replica, NodeId::NONE);
        let learner = |replica: &ReplicaId| (ConfChangeType::AddLearnerNode, *replica, NodeId::NONE);
        match self {
            Self::AddLearner { replica, node } => vec![(ConfChangeType::AddLearnerNode, *replica, *node)],
            Self::RemoveLearner { replica } => vec![(ConfChangeType::RemoveNode, *replica, NodeId::NONE)],
            Self::Swap { promote, demote } => promote.iter().map(voter).chain(demote.iter().map(learner)).collect(),
            Self::LeaveJoint => Vec::new(),
        }
    }

    /// Whether the change is valid for this configuration. raft-rs does not check: if a voter is named as a
    /// learner, it demotes or removes that voter at once.
    pub(crate) fn applies_to(&self, conf: &ConfState) -> bool {
        match self {
            Self::LeaveJoint => conf.is_joint(),
            _ if conf.is_joint() => false,
            Self::AddLearner { replica, .. } => *replica != ReplicaId::NONE && !conf.contains(*replica),
            Self::RemoveLearner { replica } => conf.learners.contains(replica),
            Self::Swap { promote, demote } => {
                let roles_match = promote.iter().all(|replica| conf.learners.contains(replica))
                    && demote.iter().all(|replica| conf.voters.contains(replica));
                let voters_left = conf.voters.iter().any(|voter| !demote.contains(voter)) || !promote.is_empty();
                let parts = promote.len() + demote.len();
                roles_match && voters_left && (1..=PARTS_MAX).contains(&parts)
            }
        }
    }

    pub(crate) fn to_raft(&self) -> ConfChangeV2 {
        let mut change = ConfChangeV2::default();
        for (kind, replica, _) in self.parts() {
            let mut part = ConfChangeSingle::default();
            part.set_change_type(kind);
            part.set_node_id(replica.0);
            change.mut_changes().push(part);
        }
        if matches!(self, Self::Swap { .. }) {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        change
    }

    /// The bytes that raft-rs requires in the entry of a proposal.
    pub(crate) fn to_raft_bytes(&self) -> Bytes {
        self.to_raft().write_to_bytes().map(Bytes::from).unwrap_or_default()
    }

    /// The configuration after the change, which must apply to `before`.
    #[must_use]
    pub fn after(&self, before: &ConfState) -> ConfState {
        let mut conf = before.clone();
        match self {
            Self::AddLearner { replica, .. } => conf.learners.push(*replica),
            Self::RemoveLearner { replica } => conf.learners.retain(|learner| learner != replica),
            Self::Swap { promote, demote } => {
                conf.voters_outgoing.clone_from(&conf.voters);
                conf.voters.retain(|voter| !demote.contains(voter));
                conf.voters.extend(promote);
                conf.learners.retain(|learner| !promote.contains(learner));
                // They still vote in the outgoing half and become learners when it ends.
                conf.learners_next.extend(demote);
            }
            Self::LeaveJoint => {
                conf.voters_outgoing.clear();
                conf.learners.append(&mut conf.learners_next);
            }
        }
        for list in [&mut conf.voters, &mut conf.voters_outgoing, &mut conf.learners, &mut conf.learners_next] {
            list.sort_unstable();
            list.dedup();
        }
        conf
    }

    /// Encodes the change for the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let parts = self.parts();
        let mut bytes = BytesMut::with_capacity(3 + parts.len() * 17);
        bytes.put_u8(FORMAT);
        bytes.put_u8(match self {
            Self::AddLearner { .. } => 1,
            Self::RemoveLearner { .. } => 2,
            Self::Swap { .. } => 3,
            Self::LeaveJoint => 4,
        });
        bytes.put_u8(parts.len() as u8);
        for (kind, replica, node) in parts {
            bytes.put_u8(u8::from(kind == ConfChangeType::AddNode));
            bytes.put_u64(replica.0);
            bytes.put_u64(node.0);
        }
        bytes.freeze()
    }

    /// Decodes a change from the log.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ChangeError> {
        let short = |_| ChangeError::Malformed;
        match bytes.try_get_u8().map_err(short)? {
            FORMAT => {}
            0 => return Err(ChangeError::Malformed),
            found => return Err(ChangeError::Version { found, known: FORMAT }),
        }
        let kind = bytes.try_get_u8().map_err(short)?;
        let count = usize::from(bytes.try_get_u8().map_err(short)?);
        if count > PARTS_MAX {
            return Err(ChangeError::Malformed);
        }
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            let promotes = bytes.try_get_u8().map_err(short)? == 1;
            let replica = ReplicaId(bytes.try_get_u64().map_err(short)?);
            let node = NodeId(bytes.try_get_u64().map_err(short)?);
            parts.push((promotes, replica, node));
        }
        match (kind, &parts[..]) {
            (1, [(_, replica, node)]) => Ok(Self::AddLearner { replica: *replica, node: *node }),
            (2, [(_, replica, _)]) => Ok(Self::RemoveLearner { replica: *replica }),
            (3, [_, ..]) => {
                let select =
                    |promotes: bool| parts.iter().filter(|part| part.0 == promotes).map(|part| part.1).collect();
                Ok(Self::Swap { promote: select(true), demote: select(false) })
            }
            (4, []) => Ok(Self::LeaveJoint),
            _ => Err(ChangeError::Malformed),
        }
    }
}

/// The descriptor after a change that led to `conf`: same shard and range, the next configuration epoch.
pub(crate) fn descriptor_after(before: &ShardDescriptor, change: &ConfChange, conf: &ConfState) -> ShardDescriptor {
    let added = match change {
        ConfChange::AddLearner { replica, node } => Some((*replica, *node)),
        _ => None,
    };
    let node_of = |replica: ReplicaId| match added {
        Some((new, node)) if new == replica => node,
        _ => before.node_of(replica).unwrap_or(NodeId::NONE),
    };
    let role_of = |replica| if conf.is_voter(replica) { ReplicaRole::Voter } else { ReplicaRole::Learner };
    let replicas = conf
        .all()
        .into_iter()
        .map(|replica| ReplicaDescriptor { replica, node: node_of(replica), role: role_of(replica) })
        .collect();
    let mut after = before.clone();
    // A snapshot of a faulty peer may carry any epoch.
    after.epoch.config = after.epoch.config.saturating_add(1);
    after.replicas = replicas;
    after
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_round_trip() {
        let changes = [
            ConfChange::AddLearner { replica: ReplicaId(7), node: NodeId(3) },
            ConfChange::RemoveLearner { replica: ReplicaId(7) },
            ConfChange::Swap { promote: vec![ReplicaId(7), ReplicaId(8)], demote: vec![ReplicaId(1)] },
            ConfChange::LeaveJoint,
        ];
        for change in changes {
            assert_eq!(ConfChange::decode(&change.encode()), Ok(change));
        }
    }

    #[test]
    fn a_change_of_a_newer_format_is_not_taken_for_one_without_effect() {
        let mut bytes = ConfChange::LeaveJoint.encode().to_vec();
        bytes[0] = FORMAT + 1;
        assert_eq!(ConfChange::decode(&bytes), Err(ChangeError::Version { found: FORMAT + 1, known: FORMAT }));
    }

    #[test]
    fn hostile_changes_are_refused_or_round_trip() {
        let ids = || prop::collection::vec(extreme_u64().prop_map(ReplicaId), 0..5);
        let valid = prop_oneof![
            (extreme_u64(), extreme_u64())
                .prop_map(|(id, node)| ConfChange::AddLearner { replica: ReplicaId(id), node: NodeId(node) }),
            extreme_u64().prop_map(|id| ConfChange::RemoveLearner { replica: ReplicaId(id) }),
            (ids(), ids()).prop_map(|(promote, demote)| ConfChange::Swap { promote, demote }),
            Just(ConfChange::LeaveJoint),
        ];
        attack(1_000, mutated(valid.prop_map(|change| change.encode())), |bytes| {
            if let Ok(change) = Proportion::DEFAULT.of(bytes.len(), || ConfChange::decode(&bytes)) {
                assert!(ConfChange::decode(&change.encode()).is_ok_and(|read| read == change));
            }
        });
    }

    #[test]
    fn the_configuration_epoch_saturates() {
        let before = ShardDescriptor {
            shard: flotilla_types::ShardId(1),
            range: flotilla_types::KeyRange::all(),
            epoch: flotilla_types::Epoch { range: 1, config: u64::MAX },
            replicas: Vec::new(),
        };
        let after = descriptor_after(&before, &ConfChange::LeaveJoint, &ConfState::of_voters([ReplicaId(1)]));
        assert_eq!(after.epoch.config, u64::MAX);
    }
}
