//! Pulls of objects over links of bounded rate: the code of the host, with small bounds.

use bytes::Bytes;
use flotilla_replication::{
    Gather, GatherEnd, Input,
    work::{Pull, PullBounds, PullOrder, PullRequest, PullState, serve},
};
use flotilla_types::{Checkpoint, Holder, NodeId, ReplicaId};
use flotilla_values::list_refs;
use rand::RngExt as _;

use super::{
    World,
    node::{Node, NodeEvent, Running},
};

const BOUNDS: PullBounds = PullBounds {
    requests_max: 3,
    requests_total_max: 4,
    objects_max: 4,
    response_bytes_max: 2 << 10,
    unsynced_bytes_max: 4 << 10,
};

/// A pull in flight.
pub(super) struct Pulling {
    what: Pulled,
    pull: Pull,
}

/// What a pull fetches.
enum Pulled {
    Snapshot {
        replica: ReplicaId,
        from: NodeId,
        checkpoint: Box<Checkpoint>,
        /// What replaces it.
        next: Option<Box<Checkpoint>>,
    },
    Refs {
        holder: Holder,
        number: u64,
        deadline_ms: Option<u64>,
    },
}

impl Pulled {
    fn holder(&self) -> Holder {
        match self {
            Self::Snapshot { replica, .. } => Holder::Receiver(*replica),
            Self::Refs { holder, .. } => *holder,
        }
    }
}

impl World {
    /// Starts a pull, in place of one for the same replica.
    pub(super) fn start_pull(
        &mut self,
        node: &Node,
        running: &mut Running,
        replica: ReplicaId,
        from: NodeId,
        checkpoint: Checkpoint,
    ) {
        for pulling in running.pulls.values_mut() {
            if let Pulled::Snapshot { replica: same, from: source, next, .. } = &mut pulling.what
                && (*same, *source) == (replica, from)
            {
                pulling.pull.stop();
                *next = Some(Box::new(checkpoint));
                return;
            }
        }
        let order = PullOrder::of_snapshot(node.id, replica, from, &checkpoint, list_refs);
        self.begin_pull(
            node,
            running,
            Pulled::Snapshot { replica, from, checkpoint: Box::new(checkpoint), next: None },
            order,
        );
    }

    /// Starts to fetch what entries or a command refer to.
    pub(super) fn start_gather(&mut self, node: &Node, running: &mut Running, gather: Gather) {
        let Gather { holder, number, refs, sources, deadline_ms, .. } = gather;
        let order = PullOrder::of_refs(sources, &refs, list_refs);
        self.begin_pull(node, running, Pulled::Refs { holder, number, deadline_ms }, order);
    }

    fn begin_pull(&mut self, node: &Node, running: &mut Running, what: Pulled, order: PullOrder) {
        let holder = what.holder();
        running.pulls.retain(|_, pulling| pulling.what.holder() != holder);
        let pull = Pull::start(&node.engine, order, BOUNDS).unwrap();
        let number = self.next_attempt();
        running.pulls.insert(number, Pulling { what, pull });
        self.advance_pull(node, running, number);
    }

    pub(super) fn advance_pull(&mut self, node: &Node, running: &mut Running, number: u64) {
        let now_ms = self.now_us / 1_000;
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        if matches!(pulling.what, Pulled::Refs { deadline_ms: Some(deadline_ms), .. } if deadline_ms <= now_ms) {
            pulling.pull.stop();
        }
        while let Some(request) = pulling.pull.next_request(now_ms) {
            let delay_us = self.rng.random_range(200..2_000);
            self.later(node, delay_us, NodeEvent::PullAsked(number, request));
        }
        let complete = match pulling.pull.state() {
            PullState::Working => {
                if let Some(wakes_at_ms) = pulling.pull.wakes_at_ms(now_ms) {
                    self.later(node, (wakes_at_ms - now_ms) * 1_000, NodeEvent::PullGoesOn(number));
                }
                return;
            }
            PullState::Failed => false,
            PullState::Fetched if pulling.pull.finish(&node.engine).unwrap() => true,
            // Something is missing again.
            PullState::Fetched => return self.later(node, 100, NodeEvent::PullGoesOn(number)),
        };
        match running.pulls.remove(&number).map(|pulling| pulling.what) {
            Some(Pulled::Refs { holder, number, .. }) => {
                self.checks.gathered += u64::from(complete);
                let end = if complete { GatherEnd::Complete } else { GatherEnd::Incomplete };
                self.take(node, running, Input::Gathered { holder, number, end });
            }
            Some(Pulled::Snapshot { replica, from, checkpoint, next }) => {
                self.take(node, running, Input::Pulled { replica, checkpoint: *checkpoint, complete });
                if let Some(checkpoint) = next {
                    self.start_pull(node, running, replica, from, *checkpoint);
                }
            }
            None => {}
        }
    }

    pub(super) fn serve_pull(&mut self, node: &Node, running: &Running, number: u64, request: PullRequest) {
        let Some(Pulling { what, .. }) = running.pulls.get(&number) else { return };
        let from = request.source();
        let is_promised = matches!(what, Pulled::Snapshot { from: offerer, .. } if *offerer == from);
        let up = self.network.is_up(node.id, from);
        let source = self.nodes.get(&from).filter(|source| up && source.running.is_some());
        let served = source.map(|source| serve(&source.engine, request.encode(), BOUNDS));
        let Some(served) = served else {
            return self.later(node, 1_000, NodeEvent::PullAnswered(number, request, None));
        };
        self.checks.objects_gone += u64::from(is_promised && !served.complete);
        if let Some(to) = served.replica {
            self.input(from, Input::ObjectsServed { node: node.id, to, complete: served.complete });
        }
        let now_us = self.now_us;
        let until_us = self.network.objects_until_us.entry(node.id).or_default();
        // As without compression, with tag and length of each: what is fetched is counted so as well.
        let bytes = served.response.len().max(served.bytes + 3 * served.objects) as u64;
        let takes_us = self.network.object_bytes_per_ms.map_or(0, |rate| bytes * 1_000 / rate);
        *until_us = (*until_us).max(now_us) + takes_us;
        let delay_us = *until_us - now_us + 300;
        self.later(node, delay_us, NodeEvent::PullAnswered(number, request, Some(served.response)));
    }

    pub(super) fn pull_answered(
        &mut self,
        node: &Node,
        running: &mut Running,
        number: u64,
        request: PullRequest,
        answer: Option<Bytes>,
    ) {
        // What arrives for a pull that was replaced is stored as well.
        let stored = answer.map(|answer| request.store(&node.engine, answer));
        let now_ms = self.now_us / 1_000;
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        match stored {
            Some(stored) => {
                self.checks.pulled_bytes += stored.bytes;
                if pulling.pull.on_stored(now_ms, 1, request, stored) {
                    pulling.pull.sync(&node.engine).unwrap();
                }
            }
            None => pulling.pull.on_failure(now_ms, request),
        }
        self.later(node, 100, NodeEvent::PullGoesOn(number));
    }
}
