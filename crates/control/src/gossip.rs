//! Runs the membership core: timers, datagrams, and notification of state changes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flotilla_membership::{Effect, Input, Membership, NodeState, Timer};
use flotilla_replication::clock;
use flotilla_transport::Transport;
use flotilla_types::NodeId;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{Control, Topology};

/// Capacity of the inbox. Packets beyond it are dropped, as the network may drop them.
const INBOX_MAX: usize = 1_024;

pub(crate) enum Message {
    Packet(NodeId, Bytes),
    Input(Input),
    /// Announce the departure, then confirm.
    Leave(oneshot::Sender<()>),
}

/// A handle to the running membership.
#[derive(Clone)]
pub struct Gossip {
    inbox: mpsc::Sender<Message>,
}

impl Gossip {
    /// Delivers a received datagram.
    pub fn packet(&self, from: NodeId, packet: Bytes) {
        let _ = self.inbox.try_send(Message::Packet(from, packet));
    }

    pub(crate) fn input(&self, input: Input) {
        let _ = self.inbox.try_send(Message::Input(input));
    }

    /// Announces that this node leaves on purpose. Waits at most one second.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.inbox.try_send(Message::Leave(done)).is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(1), left).await;
        }
    }
}

/// Creates the handle and the inbox of a [`Runner`].
pub(crate) fn channel() -> (Gossip, mpsc::Receiver<Message>) {
    let (inbox, messages) = mpsc::channel(INBOX_MAX);
    (Gossip { inbox }, messages)
}

/// Runs until every [`Gossip`] is gone.
pub(crate) struct Runner {
    pub(crate) membership: Membership,
    pub(crate) messages: mpsc::Receiver<Message>,
    pub(crate) network: Arc<Transport>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) changed: Box<dyn Fn(NodeId, NodeState, NodeState) + Send>,
}

impl Runner {
    pub(crate) async fn run(mut self) {
        let mut due: BinaryHeap<Reverse<(Instant, u64)>> = BinaryHeap::new();
        let mut timers: BTreeMap<u64, Timer> = BTreeMap::new();
        let mut next_timer = 0;
        loop {
            let wait = due.peek().map(|Reverse((at, _))| *at);
            let sleep = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut left = None;
            let input = tokio::select! {
                message = self.messages.recv() => match message {
                    None => return,
                    Some(Message::Packet(from, bytes)) => Input::Packet { from, bytes },
                    Some(Message::Input(input)) => input,
                    Some(Message::Leave(done)) => {
                        left = Some(done);
                        Input::Leave
                    }
                },
                () = sleep => {
                    let timer = due.pop().and_then(|Reverse((_, id))| timers.remove(&id));
                    match timer {
                        Some(timer) => Input::Timer(timer),
                        None => continue,
                    }
                }
            };
            let mut effects = Vec::new();
            if let Err(error) = self.membership.step(clock::monotonic_ms(), input, &mut effects) {
                tracing::debug!(%error, "membership refused an input");
            }
            for effect in effects {
                match effect {
                    Effect::Send { to, packet } => {
                        let _ = self.network.datagram(to.node, packet);
                    }
                    Effect::Timer { after, timer } => {
                        next_timer += 1;
                        timers.insert(next_timer, timer);
                        due.push(Reverse((Instant::now() + after, next_timer)));
                    }
                    Effect::Changed { node, old, new } => {
                        if !self.topology.member_changed(node, new, clock::monotonic_ms()) {
                            continue;
                        }
                        tracing::debug!(%node, %old, %new, "membership changed");
                        (self.changed)(node, old, new);
                    }
                    Effect::Located { node, addr } => self.network.learn_address(node, addr),
                }
            }
            if let Some(done) = left {
                let _ = done.send(());
            }
        }
    }
}

impl Control {
    /// The running membership.
    #[must_use]
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }
}
