//! The loops. Each looks at what is, asks its reconciler what comes next, and does it; whatever fails is found again in the
//! next round. Nothing is decided here.

use std::{sync::Arc, time::Duration};

use flotilla_membership::{Input, Member};
use flotilla_meta::{MetaCommand, MetaQuery, MetaReply, MetaState};
use flotilla_replication::{Handle, ReplicaStatus, clock};
use flotilla_transport::{Class, Transport};
use flotilla_types::{NodeId, ShardId};
use futures_util::future::join_all;
use tokio::sync::mpsc;

use crate::{
    Action, Ask, Gossip, Lifecycle, Lost, Me, Members, Outcome, PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, PeerRequest, Peers,
    Reconciler, Shards, Topology, View, core,
};

const PROPOSE_TIMEOUT: Duration = Duration::from_millis(PROPOSE_TIMEOUT_MS);

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

/// What a reconciler's view is made of.
struct Seen {
    meta: Arc<MetaState>,
    members: Arc<Members>,
    replicas: Arc<Vec<ReplicaStatus>>,
}

/// Whether the actions behind one are still wanted.
#[derive(PartialEq, Eq)]
enum Onward {
    Go,
    Stop,
}

/// Drives a reconciler for as long as the node lives.
pub(crate) async fn run(context: Arc<Context>, mut reconciler: impl Reconciler) {
    loop {
        context.round(&mut reconciler).await;
        tokio::time::sleep(pause(&reconciler)).await;
    }
}

/// Drives the one that is told of losses.
pub(crate) async fn lifecycle(context: Arc<Context>, mut losses: mpsc::UnboundedReceiver<Lost>) {
    let mut reconciler = Lifecycle::default();
    loop {
        while let Ok(loss) = losses.try_recv() {
            reconciler.lost(&loss);
        }
        context.round(&mut reconciler).await;
        tokio::time::sleep(pause(&reconciler)).await;
    }
}

/// Drives the one that looks when metadata changes, and keeps the metadata for the next start.
pub(crate) async fn peers(context: Arc<Context>, keep: Arc<dyn Fn(&MetaState) + Send + Sync>) {
    let mut reconciler = Peers::default();
    let mut news = context.topology.watch();
    loop {
        let meta = news.borrow_and_update().clone();
        context.round(&mut reconciler).await;
        let keep = keep.clone();
        // One at a time, so that an older version never overwrites a newer one.
        let _ = tokio::task::spawn_blocking(move || keep(&meta)).await;
        while tokio::time::timeout(pause(&reconciler), news.changed()).await.is_err() {
            context.round(&mut reconciler).await;
        }
    }
}

fn pause(reconciler: &impl Reconciler) -> Duration {
    Duration::from_millis(reconciler.every_ms())
}

impl Context {
    async fn round(&self, reconciler: &mut impl Reconciler) {
        let (meta, members) = self.topology.snapshot();
        let seen = Seen { meta, members, replicas: self.host.status() };
        let mut actions = reconciler.look(&View {
            me: &self.me,
            meta: &seen.meta,
            members: &seen.members,
            replicas: &seen.replicas,
            now_ms: clock::monotonic_ms(),
            wall_ms: clock::wall_ms(),
        });
        let mut actions = actions.drain(..).peekable();
        while let Some(action) = actions.next() {
            let Action::Propose(command) = action else {
                if let Some(outcome) = self.perform(action).await {
                    reconciler.learn(outcome);
                }
                continue;
            };
            let mut commands = vec![command];
            while commands.len() < PROPOSALS_MAX
                && let Some(Action::Propose(command)) = actions.next_if(|next| matches!(next, Action::Propose(_)))
            {
                commands.push(command);
            }
            if self.propose(commands, reconciler).await == Onward::Stop {
                return;
            }
        }
    }

    async fn propose(&self, commands: Vec<MetaCommand>, reconciler: &mut impl Reconciler) -> Onward {
        let replies = commands.iter().map(|command| self.shards.propose_meta(command, PROPOSE_TIMEOUT));
        let replies = join_all(replies).await;
        let mut onward = Onward::Go;
        for (command, reply) in commands.into_iter().zip(replies) {
            match reply {
                Ok(reply) => {
                    log_reply(&command, &reply);
                    reconciler.learn(Outcome::Answered(Box::new(command), reply));
                }
                Err(error) => {
                    tracing::debug!(%error, "the metadata group does not answer");
                    onward = Onward::Stop;
                }
            }
        }
        onward
    }

    async fn perform(&self, action: Action) -> Option<Outcome> {
        match action {
            Action::Create { replica, descriptor, founding } => self.host.create(replica, descriptor, founding),
            Action::Destroy { replica } => {
                tracing::info!(%replica, "destroying a replica that nobody counts on any more");
                self.host.destroy(replica);
            }
            Action::Change { shard, change } => {
                tracing::info!(%shard, ?change, "changing a shard's replicas");
                self.host.change(shard, change);
            }
            Action::Transfer { shard, to } => {
                tracing::debug!(%shard, %to, "handing a leadership over");
                self.host.transfer(shard, to);
            }
            // Proposals that stand together are made together, by `round`.
            Action::Propose(_) => {}
            Action::GiveAuthority { to } => return self.give_authority(to).await,
            Action::FetchMeta => return self.fetch_meta().await,
            Action::Connect { node, addr } => self.network.set_peer(node, addr),
            Action::Disconnect { node } => self.network.remove_peer(node),
            Action::Beat { peers } => self.host.set_peers(peers),
            Action::Greet { node, addr } => {
                self.gossip.input(Input::Announce(Member { node, addr, generation: 0 }));
            }
            Action::Forget { node } => self.gossip.input(Input::Forget(node)),
        }
        None
    }

    async fn give_authority(&self, to: NodeId) -> Option<Outcome> {
        let request = PeerRequest::Authority((self.authority)()?.into()).encode();
        let response = self.network.call(to, Class::Rpc, request, PROPOSE_TIMEOUT).await.ok()?;
        core::answer_of(response).is_ok().then_some(Outcome::AuthorityTaken(to))
    }

    async fn fetch_meta(&self) -> Option<Outcome> {
        let deadline_ms = clock::monotonic_ms() + PROPOSE_TIMEOUT_MS;
        let query = MetaQuery::State.encode();
        let (answer, _) = self.shards.ask(Ask::Query, ShardId::META, None, query, deadline_ms).await.ok()?;
        let meta = Arc::new(core::snapshot_of(&answer)?);
        self.topology.offer(&meta);
        Some(Outcome::FreshMeta(meta))
    }
}

fn log_reply(command: &MetaCommand, reply: &MetaReply) {
    match (command, reply) {
        (MetaCommand::ReplaceReplica { shard, replica }, reply) => {
            tracing::info!(%shard, %replica, ?reply, "asked for a replica in place of one that was lost");
        }
        (MetaCommand::UpdateNode { .. }, MetaReply::Refused(refusal)) => {
            tracing::error!(%refusal, "the cluster does not take this node as it is");
        }
        (_, MetaReply::Refused(refusal)) => tracing::debug!(%refusal, "a proposal was refused"),
        _ => {}
    }
}
