//! The loops that drive reconcilers: each takes a view, gets actions from its reconciler and performs them. A
//! later pass finds what failed. Nothing is decided here.

use std::{
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

use flotilla_membership::{Input, Member};
use flotilla_meta::{MetaCommand, MetaQuery, MetaReply, MetaState, OperationRecord};
use flotilla_replication::{Handle, LostReason, Replicas, clock};
use flotilla_transport::{Class, PeerStatus, Transport};
use flotilla_types::{NodeId, ReplicaId, ShardId, escape_hidden};
use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};

use crate::{
    Action, Consistency, Event, Evidence, Finding, Gossip, KeepEvidence, Lifecycle, LocalNode, Lost, Members, Outcome,
    PROPOSALS_MAX, PROPOSE_TIMEOUT_MS, PeerRequest, Peers, Placement, PlacementQuestion, Reconciler, RequestKind, Said,
    Shards, ShardsLed, Topology, Verdict, View,
    core::{self, Contact, CpuMeter, Report},
    placement::Call,
    shards::give_up,
};

const PROPOSE_TIMEOUT: Duration = Duration::from_millis(PROPOSE_TIMEOUT_MS);

/// How long replicas may take to say something of their states.
const FINGERPRINTS_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a replica that is given up waits for its replacement until its records are kept.
const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often contact with other nodes is looked at.
const CONTACT_INTERVAL: Duration = Duration::from_millis(500);

/// The pause after saving the metadata, in multiples of the time that it took.
const SAVE_PAUSES: u32 = 20;
/// The longest such pause.
const SAVE_PAUSE_MAX: Duration = Duration::from_secs(30);

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

/// Drives the lifecycle reconciler, which also receives losses. A replica that differs from others is replaced, and
/// destroyed then, once its records are kept; it is not used meanwhile.
pub(crate) async fn lifecycle(
    context: Arc<Context>,
    mut losses: mpsc::UnboundedReceiver<Lost>,
    keep_evidence: KeepEvidence,
) {
    let mut reconciler = Lifecycle::default();
    let mut updates = context.topology.watch();
    // As many as losses, which are one for each replica.
    let (kept, mut ready) = mpsc::unbounded_channel();
    loop {
        while let Ok(loss) = losses.try_recv() {
            if loss.reason == LostReason::Diverged {
                tokio::spawn(keep(context.clone(), keep_evidence.clone(), loss, kept.clone()));
            } else {
                reconciler.on_loss(&loss);
            }
        }
        while let Ok(loss) = ready.try_recv() {
            reconciler.on_loss(&loss);
        }
        updates.borrow_and_update();
        context.pass(&mut reconciler).await;
        until_next_pass(&mut updates, pause(&reconciler)).await;
    }
}

/// Waits for the next pass of a reconciler that takes part in merges. Clients wait for their steps, so a change of the
/// metadata ends the wait while one is planned.
async fn until_next_pass(updates: &mut watch::Receiver<Arc<MetaState>>, pause: Duration) {
    let pause = tokio::time::sleep(pause);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return,
            Ok(()) = updates.changed() => {
                if updates.borrow_and_update().merges().next().is_some() {
                    return;
                }
            }
        }
    }
}

/// Keeps the records of lost replicas, for a bounded time, and passes the loss on.
async fn keep(context: Arc<Context>, keep_evidence: KeepEvidence, loss: Lost, kept: mpsc::UnboundedSender<Lost>) {
    for (shard, replica) in loss.replicas.clone() {
        let (context, keep_evidence) = (context.clone(), keep_evidence.clone());
        let work = async move {
            match context.host.contents(replica).await {
                Ok(contents) => {
                    let _ = tokio::task::spawn_blocking(move || keep_evidence(shard, replica, contents)).await;
                }
                Err(error) => tracing::warn!(%shard, %replica, %error, "the records of a replica are not kept"),
            }
        };
        if tokio::time::timeout(EVIDENCE_TIMEOUT, work).await.is_err() {
            tracing::warn!(%shard, %replica, "a replica is replaced before all of its records are kept");
        }
    }
    let _ = kept.send(loss);
}

/// Pauses the snapshots of replicas here whose moves an operator has paused.
pub(crate) async fn pauses(context: Arc<Context>) {
    let mut metadata = context.topology.watch();
    let mut known = Arc::new(MetaState::default());
    loop {
        let now = metadata.borrow_and_update().clone();
        if !now.has_operations_of(&known) {
            let moved = now.paused().filter_map(OperationRecord::moved).map(|(_, to)| to);
            let here = moved.filter(|to| to.node == context.me.node);
            context.host.pause_snapshots(here.map(|to| to.replica).collect());
        }
        known = now;
        // The sender lives as long as the topology.
        if metadata.changed().await.is_err() {
            return;
        }
    }
}

/// Drives the reconciler of the shards that are led here, and shows what changes them.
pub(crate) async fn shards_led(context: Arc<Context>) {
    let mut reconciler = ShardsLed::default();
    let mut updates = context.topology.watch();
    loop {
        updates.borrow_and_update();
        context.pass(&mut reconciler).await;
        context.topology.show_operations(reconciler.operations());
        until_next_pass(&mut updates, pause(&reconciler)).await;
    }
}

/// Drives placement, with an extra pass when nodes have joined, drain, leave or are gone, or an operator asks for
/// one. Between passes it answers questions.
pub(crate) async fn placement(
    context: Arc<Context>,
    cpu_used_us: Arc<dyn Fn() -> u64 + Send + Sync>,
    mut questions: mpsc::Receiver<Call>,
) {
    let mut reconciler = Placement::default();
    let mut meter = CpuMeter::default();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut updates = context.topology.watch();
    // The call that asked for the next pass.
    let mut asked: Option<Call> = None;
    loop {
        reconciler.observe_cpu(meter.observe(clock::monotonic_ms(), cpu_used_us(), cores));
        let actions = context.decide(&mut reconciler);
        reconciler.fresh_verdicts().iter().for_each(count_verdict);
        if let Some(call) = asked.take() {
            context.answer(&mut reconciler, call);
        }
        context.perform_all(&mut reconciler, actions).await;
        let pause = tokio::time::sleep(pause(&reconciler));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Ok(()) = updates.changed() => {
                    if reconciler.is_woken_by(&updates.borrow_and_update()) {
                        break;
                    }
                }
                Some(call) = questions.recv() => {
                    if call.question == PlacementQuestion::Rebalance {
                        asked = Some(call);
                        break;
                    }
                    context.answer(&mut reconciler, call);
                }
            }
        }
    }
}

/// Measures the work of the shards that are led here.
pub(crate) async fn load(context: Arc<Context>, cpu_used_us: Arc<dyn Fn() -> u64 + Send + Sync>) {
    loop {
        context.shards.measure(cpu_used_us());
        tokio::time::sleep(Duration::from_millis(core::LOAD_SAMPLE_MS)).await;
    }
}

fn count_verdict(verdict: &Verdict) {
    let (name, word) = match verdict {
        Verdict::Decided(decision) => ("flotilla_placement_decisions_total", decision.reason.name()),
        Verdict::Undecided(undecided) => ("flotilla_placement_non_decisions_total", undecided.name()),
    };
    metrics::counter!(name, "reason" => word).increment(1);
}

/// Drives the comparison of the replicas of shards that are led here, shows the verdicts and counts them.
pub(crate) async fn consistency(context: Arc<Context>, events: Arc<dyn Fn(Event) + Send + Sync>) {
    let mut reconciler = Consistency::default();
    loop {
        context.pass(&mut reconciler).await;
        for finding in reconciler.take_findings() {
            report_finding(finding, &*events);
        }
        context.topology.show_comparisons(reconciler.take_changes());
        tokio::time::sleep(pause(&reconciler)).await;
    }
}

fn report_finding(finding: Finding, events: &(dyn Fn(Event) + Send + Sync)) {
    match finding {
        Finding::Compared(verdict) => {
            metrics::counter!("flotilla_consistency_comparisons_total", "verdict" => verdict.word()).increment(1);
        }
        Finding::Different { shard, odd, reason } => {
            tracing::error!(%shard, ?odd, %reason, "replicas of a shard have different states");
            events(Event::Different { shard, odd, reason });
        }
        Finding::Inconclusive { shard, reason } => {
            tracing::warn!(%shard, %reason, "the replicas of a shard could not be compared for long");
            events(Event::NotCompared { shard, reason });
        }
        Finding::Equal { shard } => {
            tracing::info!(%shard, "the replicas of a shard are equal again");
            events(Event::EqualAgain { shard });
        }
    }
}

/// Drives the peers reconciler, with an extra pass on each metadata change.
pub(crate) async fn peers(context: Arc<Context>) {
    let mut reconciler = Peers::default();
    let mut updates = context.topology.watch();
    loop {
        updates.borrow_and_update();
        context.pass(&mut reconciler).await;
        // Also of nodes that this one never dialled.
        context.network.close_refused();
        while tokio::time::timeout(pause(&reconciler), updates.changed()).await.is_err() {
            context.pass(&mut reconciler).await;
        }
    }
}

/// Saves the metadata for the next start: its newest version, and no more often than [`SAVE_PAUSES`] allows,
/// because all of it is written for each change of it.
pub(crate) async fn save_meta(topology: Arc<Topology>, save: Arc<dyn Fn(&MetaState) + Send + Sync>) {
    let mut updates = topology.watch();
    loop {
        let meta = updates.borrow_and_update().clone();
        let (save, started) = (save.clone(), Instant::now());
        // One save at a time, so that an older version never overwrites a newer one.
        let _ = tokio::task::spawn_blocking(move || save(&meta)).await;
        tokio::time::sleep((started.elapsed() * SAVE_PAUSES).min(SAVE_PAUSE_MAX)).await;
        // The sender lives as long as the topology.
        let _ = updates.changed().await;
    }
}

/// Tells the operator which nodes are lost, and when they are back.
pub(crate) async fn contact(context: Arc<Context>) {
    let mut contact = Contact::default();
    loop {
        let (meta, members) = context.topology.snapshot();
        let reports = contact.observe(&context.view(&meta, &members, &Replicas::default()));
        if !reports.is_empty() {
            let peers = context.network.peers();
            for report in reports {
                log_report(report, &meta, &peers);
            }
        }
        tokio::time::sleep(CONTACT_INTERVAL).await;
    }
}

fn log_report(report: Report, meta: &MetaState, peers: &[PeerStatus]) {
    let describe = |node: NodeId| {
        let peer = peers.iter().find(|peer| peer.node == node);
        let at = peer.map(|peer| peer.connected.map_or_else(|| peer.address.to_string(), |at| at.to_string()));
        let record = meta.node(node);
        let name = record.map_or("", |record| record.name.as_str());
        let at = at.or_else(|| record.map(|record| record.addresses.quic.clone())).unwrap_or_default();
        format!("{node} ({}, {at})", escape_hidden(name))
    };
    let error = |node: NodeId| {
        let peer = peers.iter().find(|peer| peer.node == node);
        let peer = peer.filter(|peer| peer.connected.is_none());
        peer.and_then(|peer| peer.last_error).map_or_else(|| "no answer".to_owned(), |error| error.to_string())
    };
    match report {
        Report::Reached(node) => tracing::info!("reached {}", describe(node)),
        Report::Back(node) => tracing::info!("reached {} again", describe(node)),
        Report::Left(node) => tracing::info!("{} has stopped", describe(node)),
        Report::Lost(node) => tracing::warn!("lost {}: {}", describe(node), error(node)),
        Report::Isolated => {
            let tried: Vec<_> =
                peers.iter().map(|peer| format!("{}: {}", describe(peer.node), error(peer.node))).collect();
            tracing::warn!(
                "no other node is reached; tried {}. If they have moved, start this node with --join and the address of one",
                tried.join(", ")
            );
        }
        Report::Rejoined => tracing::info!("this node is no longer alone"),
    }
}

fn pause(reconciler: &impl Reconciler) -> Duration {
    Duration::from_millis(reconciler.interval_ms())
}

impl Context {
    fn view<'a>(&'a self, meta: &'a MetaState, members: &'a Members, replicas: &'a Replicas) -> View<'a> {
        let (now_ms, wall_ms) = (clock::monotonic_ms(), clock::wall_ms());
        View { me: &self.me, meta, members, replicas, now_ms, wall_ms }
    }

    async fn pass(&self, reconciler: &mut impl Reconciler) {
        let actions = self.decide(reconciler);
        self.perform_all(reconciler, actions).await;
    }

    fn decide(&self, reconciler: &mut impl Reconciler) -> Vec<Action> {
        let (meta, members) = self.topology.snapshot();
        let replicas = self.host.status();
        reconciler.reconcile(&self.view(&meta, &members, &replicas))
    }

    fn answer(&self, placement: &mut Placement, call: Call) {
        let (meta, members) = self.topology.snapshot();
        let replicas = self.host.status();
        let answer = placement.answer(&call.question, &self.view(&meta, &members, &replicas));
        // Nobody waits for it if the caller's deadline has passed.
        let _ = call.answer.send(answer);
    }

    async fn perform_all(&self, reconciler: &mut impl Reconciler, actions: Vec<Action>) {
        let mut actions = actions.into_iter().peekable();
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
            Action::ChangeShard { shard, change } => {
                tracing::debug!(%shard, ?change, "changing a shard");
                self.host.change_shard(shard, change);
            }
            Action::PrepareSplit { shard, at } => self.host.prepare_split(shard, at),
            Action::PrepareMerge { shard, epoch } => self.host.prepare_merge(shard, epoch),
            Action::Measure { shard, replica, above } => {
                let size = self.host.size(replica, above).await?;
                return Some(Outcome::Measured(shard, size));
            }
            Action::ReadFingerprints { shard, of } => return Some(self.read_fingerprints(shard, of).await),
            Action::GiveUp { node, shard, replica, evidence } => self.give_up(node, shard, replica, evidence).await,
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

    /// What replicas say of their states, as far as they answer soon.
    async fn read_fingerprints(&self, shard: ShardId, of: Vec<(ReplicaId, NodeId)>) -> Outcome {
        let ask = |(replica, node)| async move {
            if node == self.me.node {
                let said = tokio::time::timeout(FINGERPRINTS_TIMEOUT, self.host.fingerprints(replica)).await;
                return Some((replica, Said::here(said.ok()??)));
            }
            let request = PeerRequest::Fingerprints { shard, replica }.encode();
            let response = self.network.call(node, Class::Rpc, request, FINGERPRINTS_TIMEOUT).await.ok()?;
            Some((replica, Said::decode(core::decode_answer(response).ok()?.payload).ok()?))
        };
        Outcome::Fingerprints(join_all(of.into_iter().map(ask)).await.into_iter().flatten().collect())
    }

    async fn give_up(&self, node: NodeId, shard: ShardId, replica: ReplicaId, evidence: Evidence) {
        if node == self.me.node {
            return give_up(&self.host, node, (shard, replica), &evidence).await;
        }
        let request = PeerRequest::GiveUp { shard, replica, evidence }.encode();
        if let Err(error) = self.network.call(node, Class::Rpc, request, PROPOSE_TIMEOUT).await {
            tracing::warn!(%node, %shard, %replica, %error, "a node was not told to give up a replica");
        }
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
