//! The object protocol: a snapshot names objects; only those that are missing travel, each verified by its hash.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_failpoints::{Place, reached};
use flotilla_storage::StateEngine;
use flotilla_transport::{Class, Transport};
use flotilla_types::{Checkpoint, NodeId, ObjectId, ReplicaId};
use flotilla_wire::{decode, encode, peer};
use tokio::sync::Semaphore;

use super::Inbox;
use crate::Input;

/// Objects asked for at a time.
const NEED_MAX: usize = 64;
/// Bytes of objects in one answer, unless the first alone is larger.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// An answer must come within this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls that fail before a pull is given up; the leader offers another snapshot.
const FAILURES_MAX: u32 = 5;
/// Pause after the first failed call; it doubles with each further one.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// Pulls under way at a time, below the calls that a transport takes. The rest wait their turn.
const PULLS_MAX: usize = 4;

#[derive(Clone)]
pub(super) struct Puller {
    runtime: tokio::runtime::Handle,
    network: Arc<Transport>,
    engine: Arc<dyn StateEngine>,
    inbox: Inbox,
    turns: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("the peer does not answer: {0}")]
    Call(#[from] flotilla_transport::CallError),
    #[error("the peer's answer does not parse")]
    Malformed(#[from] flotilla_wire::WireError),
    #[error("the peer does not hold object {0} any more")]
    Gone(ObjectId),
    #[error("the peer answered nothing that was asked for")]
    Empty,
    #[error(transparent)]
    Engine(#[from] flotilla_storage::EngineError),
    #[error("the pull was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

impl Puller {
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        network: Arc<Transport>,
        engine: Arc<dyn StateEngine>,
        inbox: Inbox,
    ) -> Self {
        Self { runtime, network, engine, inbox, turns: Arc::new(Semaphore::new(PULLS_MAX)) }
    }

    /// Fetches what a checkpoint names and is not here, makes it durable, and reports.
    pub(super) fn pull(&self, replica: ReplicaId, from: NodeId, checkpoint: Checkpoint) {
        let puller = self.clone();
        self.runtime.spawn(async move {
            let objects: Vec<_> = checkpoint.objects().collect();
            // Never closed: a failed wait would only mean one pull too many.
            let _turn = puller.turns.acquire().await;
            reached(Place::SnapshotBeforePull);
            let result = puller.fetch_all(from, objects.clone()).await;
            if let Err(error) = &result {
                tracing::warn!(%replica, %from, %error, "a snapshot's objects could not be fetched");
                puller.engine.release(&objects);
            }
            reached(Place::SnapshotSynced);
            puller.inbox.send(Input::Pulled { replica, complete: result.is_ok() });
        });
    }

    async fn fetch_all(&self, from: NodeId, objects: Vec<ObjectId>) -> Result<(), PullError> {
        let total = objects.len();
        let engine = self.engine.clone();
        let mut missing = tokio::task::spawn_blocking(move || engine.missing(&objects)).await?;
        metrics::counter!("flotilla_objects_reused_total").increment((total - missing.len()) as u64);
        missing.reverse();
        let mut failures = 0;
        while !missing.is_empty() {
            let ask: Vec<_> = missing.iter().rev().take(NEED_MAX).copied().collect();
            match self.fetch(from, &ask).await {
                Ok(taken) => missing.truncate(missing.len() - taken),
                Err(error @ PullError::Gone(_)) => return Err(error),
                Err(error) => {
                    failures += 1;
                    if failures == FAILURES_MAX {
                        return Err(error);
                    }
                    tokio::time::sleep(FAILURE_PAUSE * (1 << failures)).await;
                }
            }
        }
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || engine.sync()).await??;
        Ok(())
    }

    /// Returns how many of the first objects asked for are now here.
    async fn fetch(&self, from: NodeId, ask: &[ObjectId]) -> Result<usize, PullError> {
        let need = ask.iter().map(|id| Bytes::copy_from_slice(id.as_bytes())).collect();
        let request = encode(&peer::ObjectsRequest { need });
        let answer = self.network.call(from, Class::Objects, request, CALL_TIMEOUT).await?;
        let answer: peer::ObjectsResponse = decode(answer)?;
        if answer.objects.is_empty() {
            let gone = (answer.missing as usize).checked_sub(1).and_then(|at| ask.get(at));
            return Err(gone.map_or(PullError::Empty, |id| PullError::Gone(*id)));
        }
        let pairs: Vec<_> = ask.iter().copied().zip(answer.objects).collect();
        let taken = pairs.len();
        reached(Place::SnapshotFetched);
        let engine = self.engine.clone();
        let import = move || {
            for (id, bytes) in pairs {
                metrics::counter!("flotilla_objects_pulled_total").increment(1);
                metrics::counter!("flotilla_objects_pulled_bytes_total").increment(bytes.len() as u64);
                engine.import(id, bytes)?;
            }
            Ok::<_, flotilla_storage::EngineError>(())
        };
        tokio::task::spawn_blocking(import).await??;
        reached(Place::SnapshotImported);
        Ok(taken)
    }
}

/// Answers a peer's need with as many objects as fit.
pub(super) fn serve(engine: &dyn StateEngine, request: Bytes) -> Bytes {
    reached(Place::SnapshotServe);
    let mut response = peer::ObjectsResponse::default();
    if let Ok(request) = decode::<peer::ObjectsRequest>(request) {
        let mut bytes = 0;
        for (at, id) in request.need.iter().take(NEED_MAX).enumerate() {
            match ObjectId::from_slice(id).map(|id| engine.object(id)) {
                Some(Ok(object)) => {
                    bytes += object.len();
                    if bytes > ANSWER_BYTES_MAX && !response.objects.is_empty() {
                        break;
                    }
                    response.objects.push(object);
                }
                _ => {
                    response.missing = at as u32 + 1;
                    break;
                }
            }
        }
    }
    encode(&response)
}
