//! The loops that drive reconcilers: each takes a view, gets actions from its reconciler and performs them. A
//! later pass finds what failed. Nothing is decided here.

use std::{sync::Arc, time::Duration};

use flotilla_membership::{Input, Member};
use flotilla_meta::{MetaCommand, MetaQuery, MetaReply, MetaState};
use flotilla_replication::{Handle, clock};
use flotilla_transport::{Class, Transport};
use flotilla_types::{NodeId, ShardId};
use futures_util::future::join_all;
use tokio::sync::mpsc;

use crate::{
    Action, Gossip, Lifecycle, LocalNode, Lost, Outcome, PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, PeerRequest, Peers,
    Reconciler, RequestKind, Shards, Topology, View, core,
};

const PROPOSE_TIMEOUT: Duration = Duration::from_millis(PROPOSE_TIMEOUT_MS);

/// State shared by all loops.
pub(crate) struct Context {
    pub(crate) me: LocalNode,
    pub(crate) topology: Arc<Topology>,
    pub(crate) host: Handle,
    pub(crate) network: Arc<Transport>,
    pub(crate) shards: Shards,
    pub(crate) gossip: Gossip,
    pub(crate) seeds: Vec<NodeId>,
    pub(crate) authority: Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
}

/// Whether the pass continues with its remaining actions.
#[derive(PartialEq, Eq)]
enum Pass {
    Continue,
    Stop,
}

/// Drives a reconciler until the node stops.
pub(crate) async fn run(context: Arc<Context>, mut reconciler: impl Reconciler) {
    loop {
        context.pass(&mut reconciler).await;
        tokio::time::sleep(pause(&reconciler)).await;
    }
}

/// Drives the lifecycle reconciler, which also receives losses.
pub(crate) async fn lifecycle(context: Arc<Context>, mut losses: mpsc::UnboundedReceiver<Lost>) {
    let mut reconciler = Lifecycle::default();
    loop {
        while let Ok(loss) = losses.try_recv() {
            reconciler.on_loss(&loss);
        }
        context.pass(&mut reconciler).await;
        tokio::time::sleep(pause(&reconciler)).await;
    }
}

/// Drives the peers reconciler, with an extra pass on each metadata change, and saves the metadata for the
/// next start.
pub(crate) async fn peers(context: Arc<Context>, save: Arc<dyn Fn(&MetaState) + Send + Sync>) {
    let mut reconciler = Peers::default();
    let mut updates = context.topology.watch();
    loop {
        let meta = updates.borrow_and_update().clone();
        context.pass(&mut reconciler).await;
        // Also of nodes that this one never dialled.
        context.network.close_refused();
        let save = save.clone();
        // One save at a time, so that an older version never overwrites a newer one.
        let _ = tokio::task::spawn_blocking(move || save(&meta)).await;
        while tokio::time::timeout(pause(&reconciler), updates.changed()).await.is_err() {
            context.pass(&mut reconciler).await;
        }
    }
}

fn pause(reconciler: &impl Reconciler) -> Duration {
    Duration::from_millis(reconciler.interval_ms())
}

impl Context {
    async fn pass(&self, reconciler: &mut impl Reconciler) {
        let (meta, members) = self.topology.snapshot();
        let replicas = self.host.status();
        let mut actions = reconciler.reconcile(&View {
            me: &self.me,
            meta: &meta,
            members: &members,
            replicas: &replicas,
            now_ms: clock::monotonic_ms(),
            wall_ms: clock::wall_ms(),
        });
        let mut actions = actions.drain(..).peekable();
        while let Some(action) = actions.next() {
            let Action::Propose(command) = action else {
                if let Some(outcome) = self.perform(action).await {
                    reconciler.on_outcome(outcome);
                }
                continue;
            };
            let mut commands = vec![command];
            while commands.len() < PROPOSALS_MAX
                && let Some(Action::Propose(command)) = actions.next_if(|next| matches!(next, Action::Propose(_)))
            {
                commands.push(command);
            }
            if self.propose(commands, reconciler).await == Pass::Stop {
                return;
            }
        }
    }

    async fn propose(&self, commands: Vec<MetaCommand>, reconciler: &mut impl Reconciler) -> Pass {
        let replies = commands.iter().map(|command| self.shards.propose_meta(command, PROPOSE_TIMEOUT));
        let replies = join_all(replies).await;
        let mut pass = Pass::Continue;
        for (command, reply) in commands.into_iter().zip(replies) {
            match reply {
                Ok(reply) => {
                    log_reply(&command, &reply);
                    reconciler.on_outcome(Outcome::Answered(Box::new(command), reply));
                }
                Err(error) => {
                    tracing::debug!(%error, "the metadata group did not answer");
                    pass = Pass::Stop;
                }
            }
        }
        pass
    }

    async fn perform(&self, action: Action) -> Option<Outcome> {
        match action {
            Action::Create { replica, descriptor, founding } => self.host.create(replica, descriptor, founding),
            Action::Destroy { replica } => {
                tracing::info!(%replica, "destroying a replica that is no longer assigned here");
                self.host.destroy(replica);
            }
            Action::TrustFolder => self.host.trust_folder(),
            Action::Change { shard, change } => {
                tracing::info!(%shard, ?change, "changing a shard's replicas");
                self.host.change(shard, change);
            }
            Action::Transfer { shard, to } => {
                tracing::debug!(%shard, %to, "transferring a leadership");
                self.host.transfer(shard, to);
            }
            // `pass` sends consecutive proposals together.
            Action::Propose(_) => {}
            Action::GiveAuthority { to } => return self.give_authority(to).await,
            Action::FetchMeta => return self.fetch_meta().await,
            Action::Connect { node, addr } => self.network.set_peer(node, addr),
            Action::Disconnect { node } => self.network.remove_peer(node),
            Action::SetClusterVersion(version) => self.host.set_cluster_version(version),
            Action::SetHeartbeatPeers { peers } => self.host.set_peers(peers),
            Action::AddMember { node, addr } => {
                self.gossip.input(Input::Announce(Member { node, addr, generation: 0 }));
            }
            Action::ForgetMember { node } => self.gossip.input(Input::Forget(node)),
        }
        None
    }

    async fn give_authority(&self, to: NodeId) -> Option<Outcome> {
        let request = PeerRequest::Authority((self.authority)()?.into()).encode();
        let response = self.network.call(to, Class::Rpc, request, PROPOSE_TIMEOUT).await.ok()?;
        core::decode_answer(response).is_ok().then_some(Outcome::AuthorityTaken(to))
    }

    async fn fetch_meta(&self) -> Option<Outcome> {
        let deadline_ms = clock::monotonic_ms() + PROPOSE_TIMEOUT_MS;
        let query = MetaQuery::State.encode();
        let answer = self.shards.request(RequestKind::Query, ShardId::META, None, query, deadline_ms).await.ok()?;
        let meta = Arc::new(core::decode_snapshot(&answer.payload)?);
        self.topology.offer(&meta);
        Some(Outcome::FreshMeta(meta))
    }
}

fn log_reply(command: &MetaCommand, reply: &MetaReply) {
    match (command, reply) {
        (MetaCommand::ReplaceReplica { shard, replica }, reply) => {
            tracing::info!(%shard, %replica, ?reply, "proposed the replacement of a lost replica");
        }
        (MetaCommand::UpdateNode { .. }, MetaReply::Refused(refusal)) => {
            tracing::error!(%refusal, "the cluster refused this node's description");
        }
        (_, MetaReply::Refused(refusal)) => tracing::debug!(%refusal, "a proposal was refused"),
        _ => {}
    }
}
