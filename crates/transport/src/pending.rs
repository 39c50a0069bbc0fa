//! Calls that wait for their answer, on one connection and in one class.
//!
//! Each call has an id that is used once. The table knows of each call whether it has been handed to the stream, which
//! is the difference between "not executed" and "nobody knows" when the answer never comes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::{CallError, MaybeExecuted, NotSent, frame::Head, writer::Outgoing};

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Bytes),
    Refused,
    TooLarge,
    /// The connection is gone.
    Lost(Progress),
}

/// How far a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Queued,
    Written,
}

/// The table of waiting calls. At most `calls_max` at once.
#[derive(Debug)]
pub(crate) struct Pending {
    calls_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    closed: bool,
    next_id: u64,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    progress: Progress,
    reply: oneshot::Sender<Reply>,
}

impl Pending {
    pub(crate) fn new(calls_max: usize) -> Arc<Self> {
        let inner = Inner { closed: false, next_id: 1, waiting: HashMap::new() };
        Arc::new(Self { calls_max, inner: Mutex::new(inner) })
    }

    /// Makes room for one more call.
    pub(crate) fn register(self: &Arc<Self>) -> Result<Ticket, NotSent> {
        let (reply, answer) = oneshot::channel();
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(NotSent::Down);
        }
        if inner.waiting.len() >= self.calls_max {
            return Err(NotSent::Busy);
        }
        let id = inner.next_id;
        inner.next_id += 1;
        inner.waiting.insert(id, Waiting { progress: Progress::Queued, reply });
        Ok(Ticket { id, answer, pending: self.clone() })
    }

    /// The writer is about to write these requests: those that nobody waits for any more are left out.
    pub(crate) fn mark_written(&self, requests: &mut Vec<Outgoing>) {
        let mut inner = self.inner.lock();
        requests.retain(|request| match request.head {
            Head::OneWay => true,
            Head::Call { id, .. } => match inner.waiting.get_mut(&id) {
                Some(waiting) => {
                    waiting.progress = Progress::Written;
                    true
                }
                None => false,
            },
        });
    }

    /// An answer arrived. One that nobody waits for any more is dropped.
    pub(crate) fn resolve(&self, id: u64, reply: Reply) {
        let waiting = self.inner.lock().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // The caller may be gone in this very moment: then nobody wants the answer.
            let _ = waiting.reply.send(reply);
        }
    }

    /// The connection is gone: every call ends, and none begins.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.waiting)
        };
        for (_, call) in waiting {
            let _ = call.reply.send(Reply::Lost(call.progress));
        }
    }

    /// Gives up a call; tells how far it got, if it was still waiting.
    fn abandon(&self, id: u64) -> Option<Progress> {
        self.inner.lock().waiting.remove(&id).map(|waiting| waiting.progress)
    }
}

/// One waiting call. Dropping it gives the call up.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: u64,
    answer: oneshot::Receiver<Reply>,
    pending: Arc<Pending>,
}

impl Ticket {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The answer, or why there is none, after `deadline` at the latest.
    pub(crate) async fn wait(mut self, deadline: Duration) -> Result<Bytes, CallError> {
        let reply = match timeout(deadline, &mut self.answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => Reply::Lost(Progress::Written),
            Err(_) => {
                return Err(match self.pending.abandon(self.id) {
                    Some(Progress::Queued) => NotSent::TimedOut.into(),
                    Some(Progress::Written) | None => MaybeExecuted::TimedOut.into(),
                });
            }
        };
        match reply {
            Reply::Answer(answer) => Ok(answer),
            Reply::Refused => Err(NotSent::Refused.into()),
            Reply::TooLarge => Err(MaybeExecuted::AnswerTooLarge.into()),
            Reply::Lost(Progress::Queued) => Err(NotSent::Down.into()),
            Reply::Lost(Progress::Written) => Err(MaybeExecuted::Lost.into()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.abandon(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;

    const SOON: Duration = Duration::from_millis(1);

    fn request(ticket: &Ticket) -> Outgoing {
        Outgoing::new(Head::Call { kind: Kind::Request, id: ticket.id() }, Bytes::new())
    }

    #[tokio::test]
    async fn deadline_in_the_queue_means_not_executed_and_the_request_is_never_written() {
        let pending = Pending::new(8);
        let ticket = pending.register().unwrap();
        let mut batch = vec![request(&ticket)];
        assert_eq!(ticket.wait(SOON).await, Err(NotSent::TimedOut.into()));
        pending.mark_written(&mut batch);
        assert!(batch.is_empty());
    }

    #[tokio::test]
    async fn deadline_and_loss_after_writing_leave_the_outcome_open() {
        let pending = Pending::new(8);
        let (late, lost, queued) = (pending.register(), pending.register(), pending.register());
        let (late, lost, queued) = (late.unwrap(), lost.unwrap(), queued.unwrap());
        pending.mark_written(&mut vec![request(&late), request(&lost)]);
        assert_eq!(late.wait(SOON).await, Err(MaybeExecuted::TimedOut.into()));
        pending.close();
        assert_eq!(lost.wait(SOON).await, Err(MaybeExecuted::Lost.into()));
        assert_eq!(queued.wait(SOON).await, Err(NotSent::Down.into()));
        assert_eq!(pending.register().unwrap_err(), NotSent::Down);
    }

    #[tokio::test]
    async fn a_dropped_call_makes_room_for_another() {
        let pending = Pending::new(1);
        let ticket = pending.register().unwrap();
        assert_eq!(pending.register().unwrap_err(), NotSent::Busy);
        drop(ticket);
        let ticket = pending.register().unwrap();
        pending.resolve(ticket.id(), Reply::Answer(Bytes::from_static(b"x")));
        assert_eq!(ticket.wait(SOON).await, Ok(Bytes::from_static(b"x")));
    }
}
