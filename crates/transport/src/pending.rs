//! Calls that wait for their answer, on one connection and in one class.
//!
//! Each call has an id that is never reused. The table records whether the request was written to the stream:
//! if the answer never arrives, an unwritten request was not executed, and the outcome of a written one is
//! unknown.

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

/// The table of pending calls, at most `calls_max`.
#[derive(Debug)]
pub(crate) struct PendingCalls {
    calls_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    closed: bool,
    next_id: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    progress: Progress,
    reply: oneshot::Sender<Reply>,
}

impl PendingCalls {
    pub(crate) fn new(calls_max: usize) -> Arc<Self> {
        let inner = Inner { closed: false, next_id: 1, entries: HashMap::new() };
        Arc::new(Self { calls_max, inner: Mutex::new(inner) })
    }

    /// Adds a call.
    pub(crate) fn register(self: &Arc<Self>) -> Result<PendingCall, NotSent> {
        let (reply, answer) = oneshot::channel();
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(NotSent::Down);
        }
        if inner.entries.len() >= self.calls_max {
            return Err(NotSent::Busy);
        }
        let id = inner.next_id;
        inner.next_id += 1;
        inner.entries.insert(id, Entry { progress: Progress::Queued, reply });
        Ok(PendingCall { id, answer, pending: self.clone() })
    }

    /// Called before the writer writes these requests: removes those whose caller has gone, and marks the
    /// others written.
    pub(crate) fn mark_written(&self, requests: &mut Vec<Outgoing>) {
        let mut inner = self.inner.lock();
        requests.retain(|request| match request.head {
            Head::OneWay => true,
            Head::Call { id, .. } => match inner.entries.get_mut(&id) {
                Some(entry) => {
                    entry.progress = Progress::Written;
                    true
                }
                None => false,
            },
        });
    }

    /// Delivers an answer. An answer whose caller has gone is dropped.
    pub(crate) fn resolve(&self, id: u64, reply: Reply) {
        let entry = self.inner.lock().entries.remove(&id);
        if let Some(entry) = entry {
            // Fails if the caller has just gone; it needs no answer.
            let _ = entry.reply.send(reply);
        }
    }

    /// Fails every pending call and refuses new ones, because the connection is gone.
    pub(crate) fn close(&self) {
        let entries = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.entries)
        };
        for entry in entries.into_values() {
            let _ = entry.reply.send(Reply::Lost(entry.progress));
        }
    }

    /// Removes a call; returns its progress if it was still pending.
    fn abandon(&self, id: u64) -> Option<Progress> {
        self.inner.lock().entries.remove(&id).map(|entry| entry.progress)
    }
}

/// One pending call. Dropping it abandons the call.
#[derive(Debug)]
pub(crate) struct PendingCall {
    id: u64,
    answer: oneshot::Receiver<Reply>,
    pending: Arc<PendingCalls>,
}

impl PendingCall {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Waits at most `deadline` for the answer.
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

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.pending.abandon(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::CallKind;

    const SHORT_DEADLINE: Duration = Duration::from_millis(1);

    fn request(call: &PendingCall) -> Outgoing {
        Outgoing::new(Head::Call { kind: CallKind::Request, id: call.id() }, Bytes::new())
    }

    #[tokio::test]
    async fn a_request_that_times_out_in_the_queue_is_never_written() {
        let pending = PendingCalls::new(8);
        let call = pending.register().unwrap();
        let mut batch = vec![request(&call)];
        assert_eq!(call.wait(SHORT_DEADLINE).await, Err(NotSent::TimedOut.into()));
        pending.mark_written(&mut batch);
        assert!(batch.is_empty());
    }

    #[tokio::test]
    async fn deadline_or_loss_after_writing_leaves_the_outcome_unknown() {
        let pending = PendingCalls::new(8);
        let (late, lost, queued) = (pending.register(), pending.register(), pending.register());
        let (late, lost, queued) = (late.unwrap(), lost.unwrap(), queued.unwrap());
        pending.mark_written(&mut vec![request(&late), request(&lost)]);
        assert_eq!(late.wait(SHORT_DEADLINE).await, Err(MaybeExecuted::TimedOut.into()));
        pending.close();
        assert_eq!(lost.wait(SHORT_DEADLINE).await, Err(MaybeExecuted::Lost.into()));
        assert_eq!(queued.wait(SHORT_DEADLINE).await, Err(NotSent::Down.into()));
        assert_eq!(pending.register().unwrap_err(), NotSent::Down);
    }

    #[tokio::test]
    async fn a_dropped_call_makes_room_for_another() {
        let pending = PendingCalls::new(1);
        let call = pending.register().unwrap();
        assert_eq!(pending.register().unwrap_err(), NotSent::Busy);
        drop(call);
        let call = pending.register().unwrap();
        pending.resolve(call.id(), Reply::Answer(Bytes::from_static(b"x")));
        assert_eq!(call.wait(SHORT_DEADLINE).await, Ok(Bytes::from_static(b"x")));
    }
}
