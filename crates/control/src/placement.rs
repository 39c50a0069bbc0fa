//! Asks the loop that plans, which owns the plans: on this node, if it leads the metadata group.
//!
//! Deliberately absent: the search for that node ([`crate::Shards::ask_placement`]).

use flotilla_replication::RequestError;
use flotilla_types::ShardId;
use tokio::sync::{mpsc, oneshot};

use crate::{PlacementQuestion, PlacementReport, Topology};

/// Questions that wait, at most.
const CALLS_MAX: usize = 64;

/// A question and where its answer goes: `None` if this node does not lead the metadata group.
pub(crate) struct Call {
    pub(crate) question: PlacementQuestion,
    pub(crate) answer: oneshot::Sender<Option<PlacementReport>>,
}

/// Where to ask. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Asker(mpsc::Sender<Call>);

/// Creates the queue of questions.
pub(crate) fn questions() -> (Asker, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(CALLS_MAX);
    (Asker(sender), receiver)
}

impl Asker {
    /// Asks this node. Waits for as long as a pass takes; the caller has a deadline.
    ///
    /// # Errors
    /// Nothing was asked if too many questions wait; otherwise this node does not lead the metadata group, or
    /// stops.
    pub(crate) async fn ask(
        &self,
        question: PlacementQuestion,
        topology: &Topology,
    ) -> Result<PlacementReport, RequestError> {
        let (answer, answered) = oneshot::channel();
        match self.0.try_send(Call { question, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(RequestError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(RequestError::Stopped),
        }
        let report = answered.await.map_err(|_| RequestError::Stopped)?;
        let other_leader = || topology.leader(ShardId::META).filter(|leader| *leader != topology.node());
        report.ok_or_else(|| RequestError::NotLeader { leader: other_leader() })
    }
}
