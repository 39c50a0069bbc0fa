//! Rules for the rotation of the cluster's authority.
//!
//! An authority is prepared (recorded, so that the voters of the metadata group take its key and no other),
//! put in force (once all of them hold the key), and alone (once every node has a certificate of it). Until
//! then certificates of the authority before are accepted too.
//!
//! Invariants: only the authority that was prepared last is put in force; every node that may vote in the
//! metadata group holds its key by then; the authority before is trusted until every node that is not gone
//! has said that it has a certificate of the new one. Signatures are not checked here: a node follows only an
//! authority that the one it trusts has signed.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use flotilla_types::{ClusterVersion, NodeId, ShardId};

use super::{AUTHORITY_BYTES_MAX, ApplyResult};
use crate::{AuthorityRecord, Field, MetaRefusal, MetaReply, MetaState, PreparedAuthority};

impl MetaState {
    pub(super) fn prepare_authority(&mut self, current: &Bytes, next: &PreparedAuthority) -> ApplyResult {
        self.check_in_force(ClusterVersion::AUTHORITY_ROTATION)?;
        let fits = [current, &next.certificate, &next.cross]
            .into_iter()
            .all(|certificate| (1..=AUTHORITY_BYTES_MAX).contains(&certificate.len()));
        if !fits || next.certificate == *current {
            return Err(MetaRefusal::Invalid(Field::Authority));
        }
        let mut record = match &self.authority {
            Some(known) => AuthorityRecord::clone(known),
            None => AuthorityRecord { certificate: current.clone(), ..AuthorityRecord::default() },
        };
        if record.is_rotating() {
            return Err(MetaRefusal::RotationInProgress);
        }
        if record.certificate != *current {
            return Err(MetaRefusal::OtherAuthority);
        }
        record.prepared = Some(next.clone());
        self.authority = Some(Arc::new(record));
        Ok(MetaReply::Done)
    }

    pub(super) fn begin_rotation(&mut self, certificate: &Bytes, holders: &[NodeId]) -> ApplyResult {
        self.check_in_force(ClusterVersion::AUTHORITY_ROTATION)?;
        let known = self.authority.as_ref().ok_or(MetaRefusal::OtherAuthority)?;
        if known.certificate == *certificate {
            return Ok(MetaReply::Done);
        }
        let next = known.prepared.as_ref().filter(|next| next.certificate == *certificate);
        let next = next.ok_or(MetaRefusal::OtherAuthority)?;
        if let Some(node) = self.meta_group().into_iter().find(|node| !holders.contains(node)) {
            return Err(MetaRefusal::AuthorityNotHeld(node));
        }
        let record = AuthorityRecord {
            serial: known.serial + 1,
            certificate: next.certificate.clone(),
            cross: Some(next.cross.clone()),
            previous: Some(known.certificate.clone()),
            prepared: None,
            certified: BTreeSet::new(),
        };
        self.authority = Some(Arc::new(record));
        Ok(MetaReply::Done)
    }

    pub(super) fn node_certified(&mut self, node: NodeId, serial: u64) -> ApplyResult {
        self.check_in_force(ClusterVersion::AUTHORITY_ROTATION)?;
        let known = self.node(node).ok_or(MetaRefusal::UnknownNode(node))?;
        if known.state.is_gone() {
            return Err(MetaRefusal::NodeGone { node, state: known.state });
        }
        let record = self.authority.as_mut().filter(|record| record.serial == serial);
        let record = record.ok_or(MetaRefusal::OtherAuthority)?;
        if record.is_rotating() && !record.certified.contains(&node) {
            Arc::make_mut(record).certified.insert(node);
            self.settle_rotation();
        }
        Ok(MetaReply::Done)
    }

    /// Ends the rotation when no node is left that needs the authority before.
    pub(super) fn settle_rotation(&mut self) {
        if self.uncertified().is_empty()
            && let Some(record) = self.authority.as_mut().filter(|record| record.is_rotating())
        {
            let record = Arc::make_mut(record);
            record.previous = None;
            record.certified.clear();
        }
    }

    /// The nodes that keep a rotation from ending: not gone, and without a certificate of the new authority.
    /// Empty when there is no rotation.
    #[must_use]
    pub fn uncertified(&self) -> Vec<NodeId> {
        let Some(record) = self.authority().filter(|record| record.is_rotating()) else { return Vec::new() };
        let nodes = self.nodes().filter(|node| !node.state.is_gone());
        nodes.map(|node| node.id).filter(|node| !record.certified.contains(node)).collect()
    }

    /// The nodes that vote in the metadata group, or may come to without another decision of it.
    #[must_use]
    pub fn meta_group(&self) -> BTreeSet<NodeId> {
        let Some(shard) = self.shard(ShardId::META) else { return BTreeSet::new() };
        let wanted = shard.intent.iter().map(|held| held.node);
        wanted.chain(shard.descriptor.replicas.iter().map(|held| held.node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::MetaCommand;

    fn named(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    fn prepare(current: &'static str, next: &'static str) -> MetaCommand {
        let next = PreparedAuthority { certificate: named(next), cross: named("cross") };
        MetaCommand::PrepareAuthority { current: named(current), next }
    }

    fn begin(next: &'static str, holders: &[u64]) -> MetaCommand {
        MetaCommand::BeginRotation { certificate: named(next), holders: holders.iter().copied().map(NodeId).collect() }
    }

    fn certified(node: u64, serial: u64) -> MetaCommand {
        MetaCommand::NodeCertified { node: NodeId(node), serial }
    }

    /// Nodes 1 to 3, of which node 1 is the metadata group.
    fn cluster() -> MetaState {
        let mut state = cluster_of(3);
        assert_eq!(apply(&mut state, &raise(2, &[(1, 0, NEW), (2, 0, NEW), (3, 0, NEW)])), MetaReply::Done);
        state
    }

    fn rotating() -> MetaState {
        let mut state = cluster();
        for command in [prepare("a", "b"), begin("b", &[1])] {
            assert_eq!(apply(&mut state, &command), MetaReply::Done);
        }
        state
    }

    #[test]
    fn the_authority_before_is_trusted_until_every_node_has_a_certificate_of_the_next() {
        let mut state = rotating();
        let trusted = |state: &MetaState| {
            let record = state.authority().expect("a record");
            (record.certificate.clone(), record.previous.clone())
        };
        assert_eq!(apply(&mut state, &begin("b", &[1])), MetaReply::Done, "proposed again");
        for (node, waits_for) in [(1, &[2, 3][..]), (1, &[2, 3]), (3, &[2])] {
            assert_eq!(apply(&mut state, &certified(node, 1)), MetaReply::Done);
            assert_eq!(state.uncertified(), waits_for.iter().copied().map(NodeId).collect::<Vec<_>>());
            assert_eq!(trusted(&state), (named("b"), Some(named("a"))));
        }
        assert_eq!(refused(&mut state, &certified(2, 2)), MetaRefusal::OtherAuthority);
        assert_eq!(refused(&mut state, &certified(9, 1)), MetaRefusal::UnknownNode(NodeId(9)));
        assert_eq!(refused(&mut state, &prepare("b", "c")), MetaRefusal::RotationInProgress);
        assert!(MetaState::decode(&state.encode()).is_ok_and(|read| read == state));
        assert_eq!(apply(&mut state, &certified(2, 1)), MetaReply::Done);
        assert_eq!(trusted(&state), (named("b"), None));
        assert_eq!(apply(&mut state, &certified(2, 1)), MetaReply::Done, "proposed again");
        assert!(MetaState::decode(&state.encode()).is_ok_and(|read| read == state));
        assert_eq!(apply(&mut state, &prepare("b", "c")), MetaReply::Done);
    }

    #[test]
    fn removing_the_last_node_in_the_way_ends_a_rotation_and_a_new_node_prolongs_it() {
        let mut state = rotating();
        for node in [1, 2] {
            apply(&mut state, &certified(node, 1));
        }
        apply(&mut state, &joins(new_node(4), Some(NEW)));
        assert_eq!(state.uncertified(), [NodeId(3), NodeId(4)]);
        apply(&mut state, &certified(4, 1));
        apply(&mut state, &MetaCommand::RemoveNode { node: NodeId(3) });
        assert!(state.authority().is_some_and(|record| !record.is_rotating()));
        assert!(matches!(refused(&mut state, &certified(3, 1)), MetaRefusal::NodeGone { .. }));
    }

    #[test]
    fn only_the_authority_prepared_last_is_put_in_force_and_only_when_the_whole_group_holds_its_key() {
        let mut state = cluster();
        assert_eq!(refused(&mut state, &begin("b", &[1])), MetaRefusal::OtherAuthority, "nothing was prepared");
        assert_eq!(apply(&mut state, &prepare("a", "b")), MetaReply::Done);
        assert_eq!(refused(&mut state, &prepare("x", "y")), MetaRefusal::OtherAuthority);
        assert_eq!(apply(&mut state, &prepare("a", "c")), MetaReply::Done);
        assert_eq!(refused(&mut state, &begin("b", &[1])), MetaRefusal::OtherAuthority, "another was prepared since");
        let assign = MetaCommand::AssignReplica { shard: ShardId::META, node: NodeId(2), intent_version: 1 };
        assert!(matches!(apply(&mut state, &assign), MetaReply::Replica(_)));
        assert_eq!(refused(&mut state, &begin("c", &[1])), MetaRefusal::AuthorityNotHeld(NodeId(2)));
        assert_eq!(apply(&mut state, &begin("c", &[1, 2])), MetaReply::Done);
        assert_eq!(state.authority().map(|record| record.serial), Some(1));
    }

    #[test]
    fn rotation_needs_its_version_and_certificates_of_a_bounded_size() {
        let mut state = cluster_of(1);
        for command in [prepare("a", "b"), begin("b", &[1]), certified(1, 0)] {
            assert!(matches!(refused(&mut state, &command), MetaRefusal::VersionNotInForce { .. }));
        }
        let mut state = cluster();
        let large = PreparedAuthority { certificate: vec![0; AUTHORITY_BYTES_MAX + 1].into(), cross: named("cross") };
        let large = MetaCommand::PrepareAuthority { current: named("a"), next: large };
        for command in [large, prepare("", "b"), prepare("a", ""), prepare("a", "a")] {
            assert_eq!(refused(&mut state, &command), MetaRefusal::Invalid(Field::Authority));
        }
    }
}
