//! The loops. Each looks at what is, asks a pure function what comes next, and does it; whatever fails is found again
//! in the next round.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_membership::NodeState;
use flotilla_meta::{MetaCommand, MetaQuery, MetaReply, MetaState, NodeState as Life, Setting};
use flotilla_placement::{plan, preferred_leaders};
use flotilla_replication::{ConfChange, Handle, LostReason, ReplicaStatus, Role, clock};
use flotilla_transport::{Class, Transport};
use flotilla_types::{NodeId, ReplicaId, ShardId};
use flotilla_wire::{encode, peer};
use tokio::sync::mpsc;

use crate::{
    Ask, Gossip, Lost, Me, Shards, Topology,
    control::greet,
    reconcile::{self, Next},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const PLAN_EVERY: Duration = Duration::from_millis(500);
const BALANCE_EVERY: Duration = Duration::from_secs(1);
const GREET_EVERY: Duration = Duration::from_millis(500);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Replicas that are fine move for balance only when no node has joined for so long.
const SETTLE_MS: u64 = 20_000;
/// A shard's leadership is not moved for balance again within this time.
const TRANSFER_AGAIN_MS: u64 = 10_000;
/// A shard's replica here is not replaced again within this time, so that one that always fails costs little.
const REPLACE_AGAIN_MS: u64 = 10_000;
/// A node must be up for so long before it is given leaderships.
const PREFERRED_AFTER_MS: u64 = 3_000;

/// What all loops share.
pub(crate) struct Context {
    pub(crate) me: Me,
    pub(crate) topology: Arc<Topology>,
    pub(crate) host: Handle,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
    pub(crate) gossip: Gossip,
    pub(crate) seeds: Vec<NodeId>,
    pub(crate) authority: Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
}

impl Context {
    async fn propose(&self, command: &MetaCommand) -> Option<MetaReply> {
        match self.shards.propose_meta(command, PROPOSE_TIMEOUT).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(%error, "the metadata group does not answer");
                None
            }
        }
    }

    fn leads(&self, shard: ShardId) -> bool {
        let leads = |replica: &ReplicaStatus| {
            replica.shard == shard && replica.group.as_ref().is_some_and(|group| group.role == Role::Leader)
        };
        self.host.status().iter().any(leads)
    }
}

/// Keeps connections, beats and greetings going to every node of the metadata.
pub(crate) async fn peers(context: Arc<Context>, keep: Arc<dyn Fn(&MetaState) + Send + Sync>) {
    let mut news = context.topology.watch();
    let mut greeted = BTreeSet::new();
    let mut connected = BTreeSet::new();
    loop {
        let meta = news.borrow_and_update().clone();
        connect(&context, &meta, &mut connected);
        greet(&context.gossip, &context.topology, &meta, &mut greeted);
        let keep = keep.clone();
        // One at a time, so that an older version never overwrites a newer one.
        let _ = tokio::task::spawn_blocking(move || keep(&meta)).await;
        // The state in hand is the newest until the next change; only greetings are repeated meanwhile.
        while tokio::time::timeout(GREET_EVERY, news.changed()).await.is_err() {
            greet(&context.gossip, &context.topology, &news.borrow().clone(), &mut greeted);
        }
    }
}

fn connect(context: &Context, meta: &MetaState, connected: &mut BTreeSet<NodeId>) {
    let mut peers = BTreeSet::new();
    for record in meta.nodes().filter(|record| record.id != context.me.node && !record.state.is_gone()) {
        match record.addresses.quic.parse() {
            Ok(addr) => {
                context.network.set_peer(record.id, addr);
                peers.insert(record.id);
            }
            Err(_) => {
                tracing::warn!(node = %record.id, addr = record.addresses.quic, "a node's address does not parse")
            }
        }
    }
    for gone in connected.difference(&peers) {
        context.network.remove_peer(*gone);
    }
    context.host.set_peers(peers.iter().copied().collect());
    *connected = peers;
}

/// Creates and destroys this node's replicas, and has lost ones replaced.
pub(crate) async fn lifecycle(context: Arc<Context>, mut losses: mpsc::UnboundedReceiver<Lost>) {
    let mut lost: BTreeSet<ReplicaId> = BTreeSet::new();
    let mut rolled_back = false;
    let mut replaced: BTreeMap<ShardId, u64> = BTreeMap::new();
    loop {
        while let Ok(loss) = losses.try_recv() {
            lost.extend(loss.replicas.iter().map(|(_, replica)| *replica));
            rolled_back |= loss.reason == LostReason::RolledBack;
        }
        let here: BTreeSet<_> = context.host.status().iter().map(|replica| (replica.shard, replica.replica)).collect();
        if rolled_back {
            // Replicas that the folder forgot altogether are lost too; only fresh metadata names them all.
            rolled_back = !forget_unknown(&context, &here, &mut lost).await;
        } else {
            let meta = context.topology.meta();
            let todo = reconcile::lifecycle(&meta, context.me.node, &here, &lost);
            for (replica, descriptor, founding) in todo.create {
                context.host.create(replica, descriptor, founding);
            }
            for replica in todo.destroy {
                tracing::info!(%replica, "destroying a replica that nobody counts on any more");
                context.host.destroy(replica);
            }
            for (shard, replica) in todo.replace {
                let now_ms = clock::monotonic_ms();
                if replaced.get(&shard).is_some_and(|at_ms| at_ms + REPLACE_AGAIN_MS > now_ms) {
                    continue;
                }
                replaced.insert(shard, now_ms);
                let reply = context.propose(&MetaCommand::ReplaceReplica { shard, replica }).await;
                tracing::info!(%shard, %replica, ?reply, "asked for a replica in place of one that was lost");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn forget_unknown(
    context: &Context,
    here: &BTreeSet<(ShardId, ReplicaId)>,
    lost: &mut BTreeSet<ReplicaId>,
) -> bool {
    let deadline_ms = clock::monotonic_ms() + PROPOSE_TIMEOUT.as_millis() as u64;
    let query = MetaQuery::State.encode();
    let Ok((answer, _)) = context.shards.ask(Ask::Query, ShardId::META, None, query, deadline_ms).await else {
        return false;
    };
    let Ok(flotilla_meta::Feed::Snapshot(snapshot)) = flotilla_meta::Feed::decode(&answer) else { return false };
    let Ok(meta) = MetaState::decode(&snapshot) else { return false };
    for (record, replica) in meta.wanted_on(context.me.node) {
        if !here.contains(&(record.id, replica)) && lost.insert(replica) {
            context.host.destroy(replica);
        }
    }
    context.topology.offer(&Arc::new(meta));
    true
}

/// Moves each shard that is led here one step towards its intent, and reports what it has become.
pub(crate) async fn shards_led(context: Arc<Context>) {
    let mut has_authority: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        let meta = context.topology.meta();
        let mut reports = Vec::new();
        for replica in context.host.status().iter() {
            let Some(group) = replica.group.as_ref().filter(|group| group.role == Role::Leader) else { continue };
            let Some(record) = meta.shard(replica.shard) else { continue };
            match reconcile::next_step(replica.replica, group, &record.intent) {
                Next::Nothing => {}
                Next::HandOver(heir) => {
                    if let Some(node) = replica.descriptor.node_of(heir) {
                        context.host.transfer(replica.shard, node);
                    }
                }
                Next::Change(change) => {
                    if may_change(&context, replica, &change, &mut has_authority).await {
                        tracing::info!(shard = %replica.shard, ?change, "changing a shard's replicas");
                        context.host.change(replica.shard, change);
                    }
                }
            }
            if replica.descriptor.epoch > record.descriptor.epoch {
                reports.push(MetaCommand::ReportShard { descriptor: replica.descriptor.clone() });
            }
        }
        for report in reports {
            context.propose(&report).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Nobody votes in the metadata group before it holds the cluster authority: any voter may have to admit a node.
async fn may_change(
    context: &Context,
    replica: &ReplicaStatus,
    change: &ConfChange,
    has_authority: &mut BTreeSet<NodeId>,
) -> bool {
    let ConfChange::Swap { promote, .. } = change else { return true };
    if replica.shard != ShardId::META {
        return true;
    }
    let Some(authority) = (context.authority)() else { return false };
    for node in promote.iter().filter_map(|replica_id| replica.descriptor.node_of(*replica_id)) {
        if has_authority.contains(&node) {
            continue;
        }
        let kind = peer::request::Kind::Authority(authority.clone().into());
        let request = encode(&peer::Request { kind: Some(kind) });
        let answer = context.network.call(node, Class::Rpc, request, PROPOSE_TIMEOUT).await;
        let taken = answer.ok().and_then(|bytes| flotilla_wire::decode(bytes).ok()).map(crate::rpc::answer_of);
        if !matches!(taken, Some(Ok(_))) {
            return false;
        }
        has_authority.insert(node);
    }
    true
}

/// On the metadata group's leader: decides where replicas should be.
pub(crate) async fn placement(context: Arc<Context>) {
    let mut leading_since_ms = None;
    loop {
        tokio::time::sleep(PLAN_EVERY).await;
        if !context.leads(ShardId::META) {
            leading_since_ms = None;
            continue;
        }
        let now_ms = clock::monotonic_ms();
        let since_ms = *leading_since_ms.get_or_insert(now_ms);
        let meta = context.topology.meta();
        let grace_ms = meta.setting(Setting::DeadNodeGraceMs);
        let mut input = meta.plan_input(|node| {
            let (state, state_since_ms) = context.topology.liveness(node);
            reconcile::liveness(state, state_since_ms, since_ms, now_ms, grace_ms)
        });
        let youngest_ms = meta.nodes().map(|node| node.joined_at_ms).max().unwrap_or(0);
        if clock::wall_ms() < youngest_ms + SETTLE_MS {
            input.moves_max = 0;
        }
        let plan = plan(&input);
        for change in &plan.changes {
            tracing::info!(?change, "placement");
        }
        for command in meta.commands_for(&plan) {
            match context.propose(&command).await {
                Some(MetaReply::Refused(refusal)) => tracing::debug!(%refusal, "a placement was refused"),
                Some(_) => {}
                None => break,
            }
        }
    }
}

/// Spreads leaderships: each leader hands over what another node should lead.
pub(crate) async fn leaders(context: Arc<Context>) {
    let mut moved: BTreeMap<ShardId, u64> = BTreeMap::new();
    loop {
        tokio::time::sleep(BALANCE_EVERY).await;
        let now_ms = clock::monotonic_ms();
        let meta = context.topology.meta();
        let up = |node: &NodeId| {
            let (state, since_ms) = context.topology.liveness(*node);
            state == NodeState::Alive && (*node == context.me.node || since_ms + PREFERRED_AFTER_MS <= now_ms)
        };
        let usable: BTreeSet<_> =
            meta.nodes().filter(|node| node.state == Life::Active).map(|node| node.id).filter(up).collect();
        let preferred = preferred_leaders(meta.shards().map(|shard| &shard.descriptor), &usable);
        let status = context.host.status();
        let candidate = status.iter().find_map(|replica| {
            let group = replica.group.as_ref().filter(|group| group.role == Role::Leader && !group.conf.is_joint())?;
            let node = *preferred.get(&replica.shard)?;
            let recently = moved.get(&replica.shard).is_some_and(|at_ms| at_ms + TRANSFER_AGAIN_MS > now_ms);
            let heir = replica.descriptor.replica_on(node)?.replica;
            let ready = group.conf.voters.contains(&heir)
                && group.followers.iter().any(|follower| {
                    follower.replica == heir && follower.recently_active && follower.matched.0 + 64 >= group.commit.0
                });
            (node != context.me.node && !recently && ready).then_some((replica.shard, node))
        });
        if let Some((shard, node)) = candidate {
            tracing::debug!(%shard, %node, "handing a leadership to the node that should have it");
            moved.insert(shard, now_ms);
            context.host.transfer(shard, node);
        }
    }
}

/// Tells the metadata group where this node is now, once after each start.
pub(crate) async fn present(context: Arc<Context>) {
    let me = &context.me;
    loop {
        let known = context.topology.meta().node(me.node).cloned();
        let told = known.as_ref().is_some_and(|record| {
            record.incarnation == me.incarnation && record.addresses == me.addresses && record.locality == me.locality
        });
        if told {
            return;
        }
        if known.is_some() {
            let update = MetaCommand::UpdateNode {
                node: me.node,
                incarnation: me.incarnation,
                addresses: me.addresses.clone(),
                locality: me.locality.clone(),
            };
            if let Some(MetaReply::Refused(refusal)) = context.propose(&update).await {
                tracing::error!(%refusal, "the cluster does not take this node as it is");
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
