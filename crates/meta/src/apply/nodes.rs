//! Rules for nodes and join tokens.
//!
//! Invariants: a node id belongs to one public key permanently; a removed or lost node never returns; a join
//! spends exactly one use of its token, however often it is proposed; a node that leaves is removed only when
//! no shard has a replica on it.

use std::sync::Arc;

use flotilla_placement::PlanReplica;
use flotilla_types::{
    Bucket, ClusterId, ClusterVersion, CollectionId, Epoch, Incarnation, KeyRange, Locality, NodeId, ReplicaDescriptor,
    ReplicaRole, ShardDescriptor, ShardId, VersionRange, is_printable,
};

use super::{
    ADDRESS_BYTES_MAX, ApplyResult, LABELS_MAX, NAME_BYTES_MAX, NODES_GONE_MAX, NODES_MAX, TOKEN_USES_MAX, TOKENS_MAX,
};
use crate::{
    Addresses, Field, JoinRequest, Limit, MetaRefusal, MetaReply, MetaState, NewNode, NodeRecord, NodeRole, NodeStart,
    NodeState, Setting, ShardRecord, TokenId, TokenRecord,
};

impl MetaState {
    pub(super) fn bootstrap(&mut self, now_ms: u64, cluster: ClusterId, node: &NewNode) -> ApplyResult {
        if let Some(known) = self.header.cluster {
            // The same node retries after its answer was lost.
            return match self.node_with_key(&node.key_digest) {
                Some(record) if known == cluster => Ok(MetaReply::Node(record.id)),
                _ => Err(MetaRefusal::OtherCluster(known)),
            };
        }
        check_node(node)?;
        self.header.cluster = Some(cluster);
        let id = self.add_node(now_ms, node, VersionRange::FIRST_ONLY);
        let replica = self.allocate_replica();
        let descriptor = ShardDescriptor {
            shard: ShardId::META,
            range: KeyRange::of_buckets(CollectionId::SYSTEM, Bucket(0), Bucket(u16::MAX)),
            epoch: Epoch { range: 1, config: 1 },
            replicas: vec![ReplicaDescriptor { replica, node: id, role: ReplicaRole::Voter }],
        };
        let record = ShardRecord {
            id: ShardId::META,
            collection: CollectionId::SYSTEM,
            // Placement uses the setting; this is its default.
            replicas_desired: u8::try_from(Setting::MetaReplicas.default_value()).unwrap_or(u8::MAX),
            intent: vec![PlanReplica { replica, node: id }],
            intent_version: 1,
            initial: descriptor.clone(),
            descriptor,
            parent: None,
            split: None,
            merge: None,
        };
        self.record_shard(record);
        Ok(MetaReply::Node(id))
    }

    pub(super) fn create_token(
        &mut self,
        now_ms: u64,
        id: TokenId,
        hash: [u8; 32],
        expires_at_ms: u64,
        uses: u32,
    ) -> ApplyResult {
        if let Some(known) = self.tokens.get(&id) {
            let same = known.hash == hash && known.expires_at_ms == expires_at_ms && known.uses_max == uses;
            return if same { Ok(MetaReply::Done) } else { Err(MetaRefusal::TokenExists) };
        }
        if !(1..=TOKEN_USES_MAX).contains(&uses) {
            return Err(MetaRefusal::Invalid(Field::TokenUses));
        }
        if expires_at_ms <= now_ms {
            return Err(MetaRefusal::Invalid(Field::TokenExpiry));
        }
        if self.tokens().filter(|token| token.expires_at_ms > now_ms).count() >= TOKENS_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Tokens));
        }
        // Expired tokens are kept until now, so that a late joiner gets the reason for the refusal.
        self.tokens.retain(|_, token| token.expires_at_ms > now_ms);
        let record = TokenRecord { id, hash, expires_at_ms, uses_left: uses, uses_max: uses, created_at_ms: now_ms };
        self.tokens.insert(id, Arc::new(record));
        Ok(MetaReply::Done)
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> ApplyResult {
        self.tokens.remove(&id).map(|_| MetaReply::Done).ok_or(MetaRefusal::UnknownToken)
    }

    pub(super) fn join(&mut self, now_ms: u64, request: &JoinRequest) -> ApplyResult {
        check_node(&request.node)?;
        self.check_role(request.role)?;
        self.check_printable([request.node.name.as_str()], Field::NodeName)?;
        self.check_printable(labels(&request.node.locality), Field::Locality)?;
        self.check_announced(request.versions)?;
        let mut token =
            self.tokens.get(&request.token).map(|token| TokenRecord::clone(token)).ok_or(MetaRefusal::UnknownToken)?;
        if token.hash != request.secret_hash {
            return Err(MetaRefusal::WrongSecret);
        }
        // Checked before expiry and uses: the node's first join may have been the token's last use.
        if let Some(known) = self.node_with_key(&request.node.key_digest) {
            return if known.state.is_gone() {
                Err(MetaRefusal::KeyRemoved(known.id))
            } else {
                Ok(MetaReply::Node(known.id))
            };
        }
        if now_ms >= token.expires_at_ms {
            return Err(MetaRefusal::TokenExpired);
        }
        if token.uses_left == 0 {
            return Err(MetaRefusal::TokenUsedUp);
        }
        let displaced = self.displaced_by(request)?;
        let remaining = self.nodes().filter(|node| !node.state.is_gone()).count() - displaced.len();
        if remaining >= NODES_MAX {
            return Err(MetaRefusal::LimitReached(Limit::Nodes));
        }

        for node in displaced {
            self.change_node(node, |record| record.state = NodeState::Lost);
        }
        token.uses_left -= 1;
        self.tokens.insert(token.id, Arc::new(token));
        self.prune_gone_nodes();
        let versions = request.versions.unwrap_or(VersionRange::FIRST_ONLY);
        let id = self.add_node(now_ms, &request.node, versions);
        self.change_node(id, |record| record.role = request.role);
        self.settle_rotation();
        Ok(MetaReply::Node(id))
    }

    /// The nodes that a joining one displaces: those at its address. From
    /// [`ClusterVersion::NAMED_DISPLACEMENT`] on, only if the request says that their last start is over.
    fn displaced_by(&self, request: &JoinRequest) -> Result<Vec<NodeId>, MetaRefusal> {
        let is_named = |node: &NodeRecord| {
            request.displaced.iter().any(|named| named.node == node.id && named.incarnation == node.incarnation)
        };
        let mut displaced = Vec::new();
        for node in self.nodes_at(&request.node.addresses.quic) {
            if request.versions.is_some() && !is_named(node) {
                return Err(MetaRefusal::AddressInUse(node.id));
            }
            displaced.push(node.id);
        }
        Ok(displaced)
    }

    pub(super) fn update_node(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        addresses: &Addresses,
        locality: &Locality,
        versions: Option<VersionRange>,
    ) -> ApplyResult {
        check_addresses(addresses)?;
        check_locality(locality)?;
        self.check_printable(labels(locality), Field::Locality)?;
        self.check_announced(versions)?;
        let known = self.node(node).ok_or(MetaRefusal::UnknownNode(node))?;
        if known.state.is_gone() {
            return Err(MetaRefusal::NodeGone { node, state: known.state });
        }
        // Two starts with the same number come from two copies of a folder, unless the report is a
        // repetition.
        let versions = versions.unwrap_or(known.versions);
        let same = known.addresses == *addresses && known.locality == *locality && known.versions == versions;
        if incarnation < known.incarnation || (incarnation == known.incarnation && !same) {
            return Err(MetaRefusal::StaleIncarnation { known: known.incarnation });
        }
        self.change_node(node, |record| {
            record.incarnation = incarnation;
            record.addresses = addresses.clone();
            record.locality = locality.clone();
            record.versions = versions;
        });
        Ok(MetaReply::Done)
    }

    pub(super) fn set_node_state(&mut self, node: NodeId, state: NodeState) -> ApplyResult {
        let known = self.node(node).ok_or(MetaRefusal::UnknownNode(node))?.state;
        if known == state {
            return Ok(MetaReply::Done);
        }
        if known == NodeState::Removed || (known == NodeState::Lost && state != NodeState::Removed) {
            return Err(MetaRefusal::NodeGone { node, state: known });
        }
        self.check_in_force(state.since())?;
        if state != NodeState::Active && !self.stores_without(node) {
            return Err(MetaRefusal::LastNode);
        }
        self.change_node(node, |record| record.state = state);
        self.settle_rotation();
        Ok(MetaReply::Done)
    }

    pub(super) fn report_start(
        &mut self,
        now_ms: u64,
        node: NodeId,
        incarnation: Incarnation,
        build: &str,
    ) -> ApplyResult {
        self.check_in_force(ClusterVersion::NODE_STARTS)?;
        if build.len() > NAME_BYTES_MAX || !is_printable(build) {
            return Err(MetaRefusal::Invalid(Field::Build));
        }
        let known = self.node(node).ok_or(MetaRefusal::UnknownNode(node))?;
        if known.state.is_gone() {
            return Err(MetaRefusal::NodeGone { node, state: known.state });
        }
        if incarnation != known.incarnation {
            return Err(MetaRefusal::StaleIncarnation { known: known.incarnation });
        }
        // Only once for each start, so that a repetition does not change its time.
        if known.start.as_ref().is_none_or(|start| start.incarnation != incarnation) {
            let start = NodeStart { incarnation, build: build.to_owned(), at_ms: now_ms };
            self.change_node(node, |record| record.start = Some(start));
        }
        Ok(MetaReply::Done)
    }

    pub(super) fn set_node_role(&mut self, node: NodeId, incarnation: Incarnation, role: NodeRole) -> ApplyResult {
        self.check_in_force(ClusterVersion::NODE_ROLES)?;
        self.check_role(role)?;
        let known = self.node(node).ok_or(MetaRefusal::UnknownNode(node))?;
        if known.state.is_gone() {
            return Err(MetaRefusal::NodeGone { node, state: known.state });
        }
        if incarnation != known.incarnation {
            return Err(MetaRefusal::StaleIncarnation { known: known.incarnation });
        }
        if role == NodeRole::Gateway && self.is_named_by_a_shard(node) {
            return Err(MetaRefusal::NodeHoldsReplicas(node));
        }
        if role == NodeRole::Gateway && !self.stores_without(node) {
            return Err(MetaRefusal::LastNode);
        }
        self.change_node(node, |record| record.role = role);
        Ok(MetaReply::Done)
    }

    /// Whether another node than this one takes replicas.
    fn stores_without(&self, node: NodeId) -> bool {
        let mut others = self.nodes().filter(|other| other.id != node && other.state == NodeState::Active);
        others.any(|other| other.role != NodeRole::Gateway)
    }

    fn check_role(&self, role: NodeRole) -> Result<(), MetaRefusal> {
        if role != NodeRole::default() {
            self.check_in_force(ClusterVersion::NODE_ROLES)?;
        }
        if role.weight() > NodeRole::WEIGHT_MAX { Err(MetaRefusal::Invalid(Field::Weight)) } else { Ok(()) }
    }

    pub(super) fn complete_leave(&mut self, node: NodeId) -> ApplyResult {
        match self.node(node).ok_or(MetaRefusal::UnknownNode(node))?.state {
            NodeState::Removed => Ok(MetaReply::Done),
            NodeState::Leaving if self.is_named_by_a_shard(node) => Err(MetaRefusal::NodeHoldsReplicas(node)),
            NodeState::Leaving => self.set_node_state(node, NodeState::Removed),
            _ => Err(MetaRefusal::NodeNotLeaving(node)),
        }
    }

    /// Checks that no terminal obeys these texts. A rule of a later version than the others.
    fn check_printable<'a>(&self, texts: impl IntoIterator<Item = &'a str>, field: Field) -> Result<(), MetaRefusal> {
        let in_force = self.cluster_version() >= ClusterVersion::PRINTABLE_LABELS;
        if !in_force || texts.into_iter().all(is_printable) { Ok(()) } else { Err(MetaRefusal::Invalid(field)) }
    }

    fn add_node(&mut self, now_ms: u64, node: &NewNode, versions: VersionRange) -> NodeId {
        let id = self.header.next_node;
        self.header.next_node = id.next();
        let record = NodeRecord {
            id,
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            locality: node.locality.clone(),
            state: NodeState::Active,
            incarnation: Incarnation(0),
            key_digest: node.key_digest,
            joined_at_ms: now_ms,
            versions,
            start: None,
            role: NodeRole::default(),
        };
        self.nodes.insert(id, Arc::new(record));
        id
    }

    pub(super) fn change_node(&mut self, node: NodeId, change: impl FnOnce(&mut NodeRecord)) {
        if let Some(record) = self.nodes.get_mut(&node) {
            change(Arc::make_mut(record));
        }
    }

    /// Bounds the number of records of gone nodes. Those that a shard still names are kept. The ids stay gone
    /// ([`MetaState::is_gone`]).
    fn prune_gone_nodes(&mut self) {
        let gone: Vec<NodeId> = self.nodes().filter(|node| node.state.is_gone()).map(|node| node.id).collect();
        let too_many = gone.len().saturating_sub(NODES_GONE_MAX);
        if too_many == 0 {
            return;
        }
        let pruned: Vec<NodeId> =
            gone.into_iter().filter(|node| !self.is_named_by_a_shard(*node)).take(too_many).collect();
        for node in pruned {
            self.nodes.remove(&node);
        }
    }
}

fn check_node(node: &NewNode) -> Result<(), MetaRefusal> {
    let name_fits = (1..=NAME_BYTES_MAX).contains(&node.name.len()) && !node.name.chars().any(char::is_control);
    if !name_fits {
        return Err(MetaRefusal::Invalid(Field::NodeName));
    }
    check_addresses(&node.addresses)?;
    check_locality(&node.locality)
}

fn check_addresses(addresses: &Addresses) -> Result<(), MetaRefusal> {
    let Addresses { quic, http, redis } = addresses;
    let fit = [quic, http, redis]
        .into_iter()
        .all(|address| address.len() <= ADDRESS_BYTES_MAX && address.bytes().all(|byte| byte.is_ascii_graphic()));
    if fit && !quic.is_empty() { Ok(()) } else { Err(MetaRefusal::Invalid(Field::Address)) }
}

/// Keys and values of a locality.
fn labels(locality: &Locality) -> impl Iterator<Item = &str> {
    locality.0.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()])
}

fn check_locality(locality: &Locality) -> Result<(), MetaRefusal> {
    let label_fits = |label: &String| (1..=NAME_BYTES_MAX).contains(&label.len());
    let fit =
        locality.0.len() <= LABELS_MAX && locality.0.iter().all(|(key, value)| label_fits(key) && label_fits(value));
    if fit { Ok(()) } else { Err(MetaRefusal::Invalid(Field::Locality)) }
}
