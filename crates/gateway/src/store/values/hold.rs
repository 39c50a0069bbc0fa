//! What a call holds of this node's objects.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_types::{NodeId, ObjectId, ObjectRef, Refs};
use flotilla_values::Need;

use super::{BUSY, StoreError, Values, failed};

/// How long an upload goes on without being renewed.
pub(crate) const HOLD_TIME: Duration = Duration::from_secs(120);

/// How long what an operator has fetched stays: the longest time of an upload.
pub(crate) const UPLOAD_TIME: Duration = Duration::from_secs(600);

/// How long a reader waits for an object that is fetched again, while its client waits for the next bytes.
const RESTORE_TIME: Duration = Duration::from_secs(10);

/// An upload of this node. It ends when this is dropped, unless it is [left](Self::leave).
pub(crate) struct Hold {
    values: Values,
    upload: u64,
    renewed: Instant,
    ends: bool,
    /// Whether objects came from other nodes.
    fetched: AtomicBool,
}

impl Hold {
    /// Begins an upload of its own.
    pub(crate) fn begin(values: &Values) -> Result<Self, StoreError> {
        let upload = rand::random();
        values.objects.begin_upload(upload, HOLD_TIME)?;
        Ok(Self {
            values: values.clone(),
            upload,
            renewed: Instant::now(),
            ends: true,
            fetched: AtomicBool::new(false),
        })
    }

    /// Begins an upload for a client, which stays when this is dropped.
    pub(crate) fn begin_for_client(values: &Values, time: Duration) -> Result<Self, StoreError> {
        let now = Instant::now();
        if !values.clients.lock().has_room(now) {
            return Err(BUSY);
        }
        let mut hold = Self::begin(values)?;
        values.objects.renew_upload(hold.upload, time)?;
        values.clients.lock().lasts(hold.upload, now, time);
        hold.ends = false;
        Ok(hold)
    }

    /// Goes on with an upload that a client has begun, which stays when this is dropped.
    pub(crate) fn of(values: &Values, upload: u64) -> Result<Self, StoreError> {
        values.objects.renew_upload(upload, HOLD_TIME)?;
        values.clients.lock().used(upload, Instant::now());
        Ok(Self {
            values: values.clone(),
            upload,
            renewed: Instant::now(),
            ends: false,
            fetched: AtomicBool::new(false),
        })
    }

    pub(crate) fn upload(&self) -> u64 {
        self.upload
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Moves the deadline when half of the time is over. Call it at least that often.
    pub(crate) fn renew(&mut self) -> Result<(), StoreError> {
        if self.renewed.elapsed() >= HOLD_TIME / 2 {
            self.values.objects.renew_upload(self.upload, HOLD_TIME)?;
            self.renewed = Instant::now();
        }
        Ok(())
    }

    /// Ends an upload that a client has begun: its value is written.
    pub(crate) fn end(mut self) {
        self.values.clients.lock().ended(self.upload);
        self.ends = true;
    }

    /// Leaves the upload to its deadline: what came of it is not known, or somebody goes on with it.
    pub(crate) fn leave(mut self) {
        self.ends = false;
    }

    /// The error of a write whose objects were held by this. It is left if the outcome is unknown.
    pub(crate) fn after(hold: Option<Self>, error: StoreError) -> StoreError {
        match (hold, error) {
            (Some(hold), error @ StoreError::OutcomeUnknown { .. }) => {
                hold.leave();
                error
            }
            // They were here: the leader did not get them.
            (Some(_), StoreError::ObjectsMissing { .. }) => StoreError::ObjectsUnavailable,
            (_, error) => error,
        }
    }

    /// Makes what was stored durable.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        self.values.work(0, |objects| objects.sync()).await?.map_err(|error| failed(&error))
    }

    /// What is absent of these objects and of all below those that are here. The others are held from now on.
    pub(crate) async fn need(&self, objects: Vec<ObjectId>) -> Result<Vec<ObjectId>, StoreError> {
        let upload = self.upload;
        Ok(self.values.work(0, move |store| store.need(upload, &objects)).await??)
    }

    /// Brings what is absent of these objects to this node, and holds all of them.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`] if no node has them, or not in time.
    pub(crate) async fn gather(&self, objects: &Refs, from: Vec<NodeId>, timeout: Duration) -> Result<(), StoreError> {
        let missing = self.need(objects.ids().collect()).await?;
        if missing.is_empty() {
            return Ok(());
        }
        self.fetched.store(true, Ordering::Relaxed);
        let fetched = self.values.fetch.fetch(self.upload, objects.clone(), from, timeout).await;
        fetched.map_err(|_| StoreError::ObjectsMissing { missing })
    }

    /// The bytes of an object that was here when it was looked up, and was found damaged since. It comes from other
    /// nodes again.
    ///
    /// # Errors
    /// [`StoreError::ObjectsUnavailable`] if none has it.
    pub(crate) async fn restore(&self, need: Need, from: &[NodeId]) -> Result<Bytes, StoreError> {
        let object: Refs = [ObjectRef::from(need)].into_iter().collect();
        let fetched = self.gather(&object, from.to_vec(), RESTORE_TIME).await;
        fetched.map_err(|_| StoreError::ObjectsUnavailable)?;
        let bytes = self.values.object(need.id, need.bytes).await?.ok_or(StoreError::ObjectsUnavailable)?;
        tracing::info!(object = %need.id, "a damaged object of a value was fetched from another node");
        metrics::counter!("flotilla_value_objects_restored_total").increment(1);
        Ok(bytes)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ends && *self.fetched.get_mut() {
            self.values.keep(self.upload);
        } else if self.ends {
            self.values.objects.end_upload(self.upload);
        }
    }
}
