//! Pulls of objects over links of bounded rate: the code of the host, with small bounds.

use bytes::Bytes;
use flotilla_replication::{
    Input,
    work::{Pull, PullBounds, PullOrder, PullRequest, PullState, serve},
};
use flotilla_types::{Checkpoint, NodeId, ReplicaId};
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
    replica: ReplicaId,
    from: NodeId,
    pull: Pull,
    /// What replaces it.
    next: Option<Checkpoint>,
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
        let same = running.pulls.values_mut().find(|pulling| (pulling.replica, pulling.from) == (replica, from));
        if let Some(pulling) = same {
            pulling.pull.stop();
            pulling.next = Some(checkpoint);
            return;
        }
        running.pulls.retain(|_, pulling| pulling.replica != replica);
        let order = PullOrder { node: node.id, replica, from, checkpoint };
        let pull = Pull::start(&node.engine, order, BOUNDS);
        let number = self.next_attempt();
        running.pulls.insert(number, Pulling { replica, from, pull, next: None });
        self.advance_pull(node, running, number);
    }

    pub(super) fn advance_pull(&mut self, node: &Node, running: &mut Running, number: u64) {
        let now_ms = self.now_us / 1_000;
        let Some(pulling) = running.pulls.get_mut(&number) else { return };
        while let Some(request) = pulling.pull.next_request(now_ms) {
            let delay_us = self.rng.random_range(200..2_000);
            self.later(node, delay_us, NodeEvent::PullAsked(number, request));
        }
        if pulling.pull.state() == PullState::Working {
            if let Some(wakes_at_ms) = pulling.pull.wakes_at_ms(now_ms) {
                self.later(node, (wakes_at_ms - now_ms) * 1_000, NodeEvent::PullGoesOn(number));
            }
            return;
        }
        let Some(Pulling { replica, from, pull, next }) = running.pulls.remove(&number) else { return };
        let complete = pull.state() == PullState::Fetched && pull.sync(&node.engine).is_ok();
        self.take(node, running, Input::Pulled { replica, checkpoint: pull.into_checkpoint(), complete });
        if let Some(checkpoint) = next {
            self.start_pull(node, running, replica, from, checkpoint);
        }
    }

    pub(super) fn serve_pull(&mut self, node: &Node, running: &Running, number: u64, request: PullRequest) {
        let Some(Pulling { from: offerer, .. }) = running.pulls.get(&number) else { return };
        let (from, is_promised) = (request.source(), *offerer == request.source());
        let up = self.network.is_up(node.id, from);
        let source = self.nodes.get(&from).filter(|source| up && source.running.is_some());
        let served = source.map(|source| serve(&source.engine, request.encode(), BOUNDS));
        let Some(served) = served else {
            return self.later(node, 1_000, NodeEvent::PullAnswered(number, request, None));
        };
        self.checks.objects_gone += u64::from(is_promised && !served.complete);
        let to = served.replica.expect("a request names its replica");
        self.input(from, Input::ObjectsServed { node: node.id, to, complete: served.complete });
        let now_us = self.now_us;
        let until_us = self.network.objects_until_us.entry(node.id).or_default();
        let bytes = served.response.len() as u64;
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
