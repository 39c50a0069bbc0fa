//! Pulls the objects of snapshots, as tasks on the network's runtime.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flotilla_failpoints::{Place, reached};
use flotilla_storage::StateEngine;
use flotilla_transport::{CallError, Class, Transport};
use flotilla_types::{Checkpoint, NodeId, ReplicaId};
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

use super::Inbox;
use crate::{
    Input,
    work::{Pull, PullError},
};

/// Timeout of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Pulls in flight at a time, below the transport's bound on calls. Further pulls wait.
const PULLS_MAX: usize = 4;

#[derive(Clone)]
pub(super) struct Puller {
    runtime: tokio::runtime::Handle,
    network: Arc<Transport>,
    engine: Arc<dyn StateEngine>,
    inbox: Inbox,
    permits: Arc<Semaphore>,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the call to the peer failed: {0}")]
    Call(#[from] CallError),
    #[error(transparent)]
    Answer(#[from] PullError),
    #[error("the pull was cancelled")]
    Cancelled(#[from] JoinError),
}

impl Failure {
    fn ends_node(&self) -> bool {
        matches!(self, Self::Answer(error) if error.ends_node())
    }
}

impl Puller {
    pub(super) fn new(
        runtime: tokio::runtime::Handle,
        network: Arc<Transport>,
        engine: Arc<dyn StateEngine>,
        inbox: Inbox,
        fatal: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Self { runtime, network, engine, inbox, permits: Arc::new(Semaphore::new(PULLS_MAX)), fatal }
    }

    /// Fetches the missing objects of a checkpoint, makes them durable, and reports to the core.
    pub(super) fn pull(&self, replica: ReplicaId, from: NodeId, checkpoint: Checkpoint) {
        let puller = self.clone();
        self.runtime.spawn(async move {
            // The semaphore is never closed; an error would only mean one pull too many.
            let _permit = puller.permits.acquire().await;
            reached(Place::SnapshotBeforePull);
            let result = puller.fetch_all(from, checkpoint.clone()).await;
            if let Err(error) = &result {
                tracing::warn!(%replica, %from, %error, "a snapshot's objects could not be fetched");
                if error.ends_node() {
                    (puller.fatal)(&error.to_string());
                }
            }
            reached(Place::SnapshotSynced);
            puller.inbox.send(Input::Pulled { replica, checkpoint, complete: result.is_ok() });
        });
    }

    async fn fetch_all(&self, from: NodeId, checkpoint: Checkpoint) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let mut pull = spawn_blocking(move || Pull::start(&*engine, checkpoint)).await?;
        let (total, missing) = pull.progress();
        metrics::counter!("flotilla_objects_reused_total").increment((total - missing) as u64);
        while let Some(request) = pull.request() {
            let answer = self.network.call(from, Class::Objects, request, CALL_TIMEOUT).await;
            let taken;
            (pull, taken) = match answer {
                Ok(answer) => self.store(pull, answer).await?,
                Err(error) => (pull, Err(error.into())),
            };
            let Err(error) = taken else { continue };
            let backoff_ms = match error {
                Failure::Answer(PullError::Gone(_)) => None,
                _ if error.ends_node() => None,
                _ => pull.on_failure(),
            };
            match backoff_ms {
                Some(backoff_ms) => tokio::time::sleep(Duration::from_millis(backoff_ms)).await,
                None => {
                    pull.abandon(&*self.engine);
                    return Err(error);
                }
            }
        }
        let engine = self.engine.clone();
        spawn_blocking(move || pull.finish(&*engine).inspect_err(|_| pull.abandon(&*engine))).await??;
        Ok(())
    }

    async fn store(&self, mut pull: Pull, answer: Bytes) -> Result<(Pull, Result<(), Failure>), Failure> {
        reached(Place::SnapshotFetched);
        let engine = self.engine.clone();
        let stored = spawn_blocking(move || {
            let taken = pull.on_response(&*engine, answer);
            (pull, taken)
        });
        let (pull, taken) = stored.await?;
        reached(Place::SnapshotImported);
        let taken = taken.map(|(objects, bytes)| {
            metrics::counter!("flotilla_objects_pulled_total").increment(objects as u64);
            metrics::counter!("flotilla_objects_pulled_bytes_total").increment(bytes as u64);
        });
        Ok((pull, taken.map_err(Failure::from)))
    }
}
