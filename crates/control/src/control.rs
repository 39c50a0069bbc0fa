//! Assembles the reconcilers of a node and starts their loops.

use std::{sync::Arc, time::Duration};

use flotilla_membership::{Config as MembershipConfig, Member, Membership};
use flotilla_meta::MetaState;
use flotilla_replication::{Handle, LostReason, Notice, ReplicaContents};
use flotilla_transport::Transport;
use flotilla_types::{HostPort, NodeId, ReplicaId, ShardId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    AnnounceNode, DiskReader, Event, Gossip, Leaders, LocalNode, Lost, Shards, SizeMerges, SizeSplits, Topology,
    core::LeaderChanges, feed, gossip, hints, loops, placement,
};

/// The dependencies of [`Control`].
pub struct ControlParts {
    /// This node.
    pub me: LocalNode,
    /// This node's view of the cluster.
    pub topology: Arc<Topology>,
    /// The shard host.
    pub host: Handle,
    /// The transport to peers.
    pub network: Arc<Transport>,
    /// Losses reported by the host, from [`notices`].
    pub notices: mpsc::UnboundedReceiver<Lost>,
    /// The failure detector's settings.
    pub membership: MembershipConfig,
    /// Where this node is, as other nodes get it; unspecified if it does not know.
    pub located: std::net::SocketAddr,
    /// Where other nodes may be, besides what the metadata says.
    pub hints: Vec<HostPort>,
    /// The seed of membership's random numbers.
    pub seed: u64,
    /// Sources of metadata while it names no node.
    pub seeds: Vec<NodeId>,
    /// The cluster authority for a new voter of the metadata group, if this node holds it.
    pub authority: Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
    /// Keeps the records of a replica that was given up because it differs from others, for an operator. Runs on
    /// a thread where it may block.
    pub keep_evidence: KeepEvidence,
    /// Reads how much disk the data folder has.
    pub disk: DiskReader,
    /// CPU time that the process has used, in microseconds.
    pub cpu_used_us: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Receives every event. Must not block.
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
    /// Saves new metadata for the next start. Runs on a thread where it may block.
    pub save_meta: Arc<dyn Fn(&MetaState) + Send + Sync>,
}

/// Keeps the records of a replica.
pub type KeepEvidence = Arc<dyn Fn(ShardId, ReplicaId, ReplicaContents) + Send + Sync>;

/// Creates the host's notice callback: it records leaders in the topology and sends losses to the returned
/// channel.
pub fn notices(
    topology: Arc<Topology>,
    events: Arc<dyn Fn(Event) + Send + Sync>,
) -> (Box<dyn Fn(Notice) + Send>, mpsc::UnboundedReceiver<Lost>) {
    // The channel is unbounded, but holds at most one loss per replica.
    let (lost, losses) = mpsc::unbounded_channel();
    let changes = Mutex::new(LeaderChanges::default());
    let forward = move |notice| match notice {
        Notice::Leader { shard, term, node: Some(node) } => {
            topology.observe_leader(shard, term, node);
            let is_new_term = changes.lock().observe(shard, term);
            if is_new_term {
                changes.lock().forget_dropped(&topology.map());
                events(Event::Leader { shard, term, node });
            }
        }
        Notice::Lost { replicas, reason } => {
            if reason == LostReason::Diverged {
                metrics::counter!("flotilla_replicas_quarantined_total").increment(replicas.len() as u64);
            }
            events(Event::Lost { replicas: replicas.clone(), reason });
            let _ = lost.send(Lost { replicas, reason });
        }
        Notice::Damaged { shard, replica, objects } => events(Event::Damaged { shard, replica, objects }),
        Notice::Repaired { shard, replica } => events(Event::Repaired { shard, replica }),
        Notice::PeerVersions { node, incarnation, versions } => topology.observe_versions(node, incarnation, versions),
        Notice::Leader { .. } | Notice::Descriptor(_) | Notice::Destroyed { .. } => {}
    };
    (Box::new(forward), losses)
}

/// The running reconcilers.
pub struct Control {
    pub(crate) shards: Shards,
    pub(crate) gossip: Gossip,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Control {
    /// Starts the loops on the current runtime.
    pub fn start(parts: ControlParts) -> Result<Self, flotilla_membership::ConfigError> {
        parts.topology.observe_versions(parts.me.node, parts.me.incarnation, parts.me.versions);
        let (planner, questions) = placement::questions();
        let shards = Shards::new(parts.topology.clone(), parts.host.clone(), parts.network.clone());
        let shards = shards.with(planner, parts.disk);
        let (gossip, messages) = gossip::channel();
        let me = Member { node: parts.me.node, addr: parts.located, generation: parts.me.incarnation.0 };
        let events = parts.events.clone();
        let runner = gossip::Runner {
            membership: Membership::new(me, parts.membership, parts.seed)?,
            messages,
            network: parts.network.clone(),
            topology: parts.topology.clone(),
            changed: Box::new(move |node, old, new| events(Event::Member { node, old, new })),
        };
        let context = loops::Context {
            me: parts.me,
            topology: parts.topology,
            host: parts.host,
            network: parts.network,
            shards: shards.clone(),
            gossip: gossip.clone(),
            seeds: parts.seeds,
            authority: parts.authority,
        };
        let context = Arc::new(context);
        let tasks = vec![
            tokio::spawn(runner.run()),
            tokio::spawn(loops::peers(context.clone())),
            tokio::spawn(loops::save_meta(context.topology.clone(), parts.save_meta)),
            tokio::spawn(loops::lifecycle(context.clone(), parts.notices, parts.keep_evidence)),
            tokio::spawn(loops::shards_led(context.clone())),
            tokio::spawn(loops::pauses(context.clone())),
            tokio::spawn(loops::consistency(context.clone(), parts.events)),
            tokio::spawn(loops::placement(context.clone(), parts.cpu_used_us.clone(), questions)),
            tokio::spawn(loops::load(context.clone(), parts.cpu_used_us)),
            tokio::spawn(loops::run(context.clone(), Leaders::default())),
            tokio::spawn(loops::run(context.clone(), AnnounceNode::default())),
            tokio::spawn(loops::run(context.clone(), SizeSplits::default())),
            tokio::spawn(loops::run(context.clone(), SizeMerges::default())),
            tokio::spawn(feed::follow(context.clone())),
            tokio::spawn(loops::contact(context.clone())),
            tokio::spawn(hints::follow(context, parts.hints)),
        ];
        Ok(Self { shards, gossip, tasks })
    }

    /// The client of every shard.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Announces the departure to the other nodes and stops the loops.
    pub async fn leave(&self) {
        self.gossip.leave().await;
        // The announcement is sent as datagrams: give them time to leave before the endpoint closes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for task in &self.tasks {
            task.abort();
        }
    }
}
