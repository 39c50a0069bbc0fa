//! A bounded queue in front of one stream, and the task that empties it.
//!
//! The task takes whatever has gathered and writes it at once: the busier the stream, the larger the writes.

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
    pending::Pending,
};

/// Frames that go into one write at most.
const BATCH_FRAMES_MAX: usize = 256;

/// A frame on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) head: Head,
    pub(crate) payload: Bytes,
    /// Held until the frame is written, so that whoever counts answers in progress counts unwritten ones too.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    pub(crate) fn new(head: Head, payload: Bytes) -> Self {
        Self { head, payload, permit: None }
    }
}

/// The sending end of a queue; used from any thread, never waits.
#[derive(Debug)]
pub(crate) struct Lane {
    queue: mpsc::Sender<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    queue_bytes_max: usize,
}

impl Lane {
    /// A queue of so many frames and bytes, and the writer that empties it until `stop` says so or the lane is dropped.
    pub(crate) fn new(
        (queue_frames_max, queue_bytes_max): (usize, usize),
        stop: watch::Receiver<bool>,
        meter: ClassMeter,
    ) -> (Self, Writer) {
        let (queue, frames) = mpsc::channel(queue_frames_max);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer { frames, queued_bytes: queued_bytes.clone(), pending: None, stop, meter };
        (Self { queue, queued_bytes, queue_bytes_max }, writer)
    }

    /// Queues a frame.
    pub(crate) fn push(&self, frame: Outgoing) -> Result<(), SendError> {
        let bytes = frame.payload.len();
        // The counter only bounds memory: nothing else is read on the strength of it.
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= self.queue_bytes_max;
        let result = match fits {
            false => Err(SendError::Busy),
            true => self.queue.try_send(frame).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => SendError::Busy,
                mpsc::error::TrySendError::Closed(_) => SendError::Down,
            }),
        };
        if result.is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        result
    }

    /// Queues a frame, waiting for room by count of frames. For answers, whose bytes are bounded by their permits.
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

/// The receiving end: writes frames to a stream.
#[derive(Debug)]
pub(crate) struct Writer {
    frames: mpsc::Receiver<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    pending: Option<Arc<Pending>>,
    stop: watch::Receiver<bool>,
    meter: ClassMeter,
}

impl Writer {
    /// Before requests are written, `pending` is asked which are still wanted.
    pub(crate) fn with_pending(self, pending: Arc<Pending>) -> Self {
        Self { pending: Some(pending), ..self }
    }

    /// Writes until told to stop or until nobody can queue any more; then writes what is left, ends the stream and waits
    /// until the peer has it all.
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
