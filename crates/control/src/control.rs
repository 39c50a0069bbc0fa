//! Assembles the reconcilers of a node and starts their loops.

use std::{sync::Arc, time::Duration};

use flotilla_membership::{Config as MembershipConfig, Member, Membership};
use flotilla_meta::MetaState;
use flotilla_replication::{Handle, Notice};
use flotilla_transport::Transport;
use flotilla_types::NodeId;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    Event, Gossip, Leaders, Lost, Me, Placement, Present, Shards, ShardsLed, Topology, core::LeaderNews, feed, gossip,
    loops,
};

/// What control is built on.
pub struct ControlParts {
    /// This node.
    pub me: Me,
    /// What is known of the cluster.
    pub topology: Arc<Topology>,
    /// The shard host.
    pub host: Handle,
    /// The network.
    pub network: Arc<Transport>,
    /// Notices of the host, from [`notices`].
    pub notices: mpsc::UnboundedReceiver<Lost>,
    /// The failure detector's settings.
    pub membership: MembershipConfig,
    /// Where this node listens for peers.
    pub listen: std::net::SocketAddr,
    /// A random number.
    pub seed: u64,
    /// Whom to ask for metadata while it names nobody.
    pub seeds: Vec<NodeId>,
    /// The cluster authority as it is handed to a new voter of the metadata group, if it is here.
    pub authority: Arc<dyn Fn() -> Option<Vec<u8>> + Send + Sync>,
    /// Told of everything that happens. Must not block.
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
    /// Keeps new metadata for the next start; runs on a thread where it may block.
    pub keep: Arc<dyn Fn(&MetaState) + Send + Sync>,
}

/// Where the host's notices go: leaders to the topology at once, losses to the reconcilers.
pub fn notices(
    topology: Arc<Topology>,
    events: Arc<dyn Fn(Event) + Send + Sync>,
) -> (Box<dyn Fn(Notice) + Send>, mpsc::UnboundedReceiver<Lost>) {
    // Unbounded by name, bounded by nature: one loss for each replica at most.
    let (lost, losses) = mpsc::unbounded_channel();
    let news = Mutex::new(LeaderNews::default());
    let forward = move |notice| match notice {
        Notice::Leader { shard, term, node: Some(node) } => {
            topology.observe_leader(shard, term, node);
            let is_news = news.lock().is_news(shard, term);
            if is_news {
                events(Event::Leader { shard, term, node });
            }
        }
        Notice::Lost { replicas, reason } => {
            events(Event::Lost { replicas: replicas.clone(), reason });
            let _ = lost.send(Lost { replicas, reason });
        }
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
        let shards = Shards::new(parts.topology.clone(), parts.host.clone(), parts.network.clone());
        let (gossip, messages) = gossip::channel();
        let me = Member { node: parts.me.node, addr: parts.listen, generation: parts.me.incarnation.0 };
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
            tokio::spawn(loops::peers(context.clone(), parts.keep)),
            tokio::spawn(loops::lifecycle(context.clone(), parts.notices)),
            tokio::spawn(loops::run(context.clone(), ShardsLed::default())),
            tokio::spawn(loops::run(context.clone(), Placement::default())),
            tokio::spawn(loops::run(context.clone(), Leaders::default())),
            tokio::spawn(loops::run(context.clone(), Present::default())),
            tokio::spawn(feed::follow(context)),
        ];
        Ok(Self { shards, gossip, tasks })
    }

    /// The way to every shard.
    #[must_use]
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Says goodbye to the others and stops the loops.
    pub async fn leave(&self) {
        self.gossip.leave().await;
        // The goodbye travels as datagrams; give it a moment on the wire before the endpoint closes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        for task in &self.tasks {
            task.abort();
        }
    }
}
