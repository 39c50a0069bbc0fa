//! A bounded queue in front of one stream, and the task that drains it.
//!
//! The task writes all queued frames together, so the writes grow with the load.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use quinn::SendStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use crate::{
    SendError,
    frame::{Batch, Head},
    inbound::StreamError,
    meter::ClassMeter,
    pending::PendingCalls,
};

/// Most frames in one write.
const BATCH_FRAMES_MAX: usize = 256;

/// A frame to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Head,
    pub(crate) payload: Bytes,
    /// The permit of a call being answered. Held until the frame is written, so that unwritten answers count
    /// too.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    pub(crate) fn new(head: Head, payload: Bytes) -> Self {
        Self { head, payload, permit: None }
    }
}

/// The bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub(crate) frames_max: usize,
    pub(crate) bytes_max: usize,
}

/// The sending end of a queue. Usable from any thread.
#[derive(Debug)]
pub(crate) struct SendQueue {
    queue: mpsc::Sender<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl SendQueue {
    /// A queue, and the writer that drains it until `stop` is true or the queue is dropped.
    pub(crate) fn new(limits: QueueLimits, stop: watch::Receiver<bool>, meter: ClassMeter) -> (Self, Writer) {
        let (queue, frames) = mpsc::channel(limits.frames_max);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer { frames, queued_bytes: queued_bytes.clone(), pending: None, stop, meter };
        (Self { queue, queued_bytes, bytes_max: limits.bytes_max }, writer)
    }

    /// Queues a frame, or fails at once when the queue is full.
    pub(crate) fn push(&self, frame: Outgoing) -> Result<(), SendError> {
        let bytes = frame.payload.len();
        // Relaxed is enough: the counter only bounds memory and orders no other access.
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= self.bytes_max;
        let result = if fits {
            self.queue.try_send(frame).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => SendError::Busy,
                mpsc::error::TrySendError::Closed(_) => SendError::Down,
            })
        } else {
            Err(SendError::Busy)
        };
        if result.is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        result
    }

    /// Queues a frame, waiting while the queue holds its most frames. For answers, whose bytes their permits
    /// bound.
    pub(crate) async fn push_wait(&self, frame: Outgoing) -> Result<(), SendError> {
        let bytes = frame.payload.len();
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.queue.send(frame).await;
        if sent.is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent.map_err(|_| SendError::Down)
    }
}

/// The receiving end of a queue; writes frames to a stream.
#[derive(Debug)]
pub(crate) struct Writer {
    frames: mpsc::Receiver<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    pending: Option<Arc<PendingCalls>>,
    stop: watch::Receiver<bool>,
    meter: ClassMeter,
}

impl Writer {
    /// Makes the writer skip requests that are no longer pending.
    pub(crate) fn with_pending_calls(self, pending: Arc<PendingCalls>) -> Self {
        Self { pending: Some(pending), ..self }
    }

    /// Writes until it is stopped or the queue is dropped; then writes what is left, ends the stream and
    /// waits until the peer has received everything.
    pub(crate) async fn run(mut self, mut stream: SendStream) -> Result<(), StreamError> {
        let mut frames = Vec::with_capacity(BATCH_FRAMES_MAX);
        let mut batch = Batch::default();
        loop {
            let taken = tokio::select! {
                biased;
                taken = self.frames.recv_many(&mut frames, BATCH_FRAMES_MAX) => Some(taken),
                _ = self.stop.wait_for(|stop| *stop) => None,
            };
            let taken = match taken {
                Some(taken) => taken,
                None => {
                    self.frames.close();
                    self.frames.recv_many(&mut frames, BATCH_FRAMES_MAX).await
                }
            };
            if taken == 0 {
                break;
            }
            let queued: usize = frames.iter().map(|frame| frame.payload.len()).sum();
            if let Some(pending) = &self.pending {
                pending.mark_written(&mut frames);
            }
            for frame in &frames {
                self.meter.sent(frame.payload.len());
                batch.push(frame.head, frame.payload.clone());
            }
            stream.write_all_chunks(batch.chunks()).await.map_err(|_| StreamError::Lost)?;
            batch.clear();
            frames.clear();
            self.queued_bytes.fetch_sub(queued, Ordering::Relaxed);
        }
        stream.finish().map_err(|_| StreamError::Lost)?;
        stream.stopped().await.map_err(|_| StreamError::Lost)?;
        Ok(())
    }
}
