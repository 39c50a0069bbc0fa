//! Objects in memory, for tests: several nodes that fetch from one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_storage::{EngineError, UploadError, ValueObjects};
use flotilla_types::{NodeId, ObjectId, Refs};
use futures_util::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;

use super::{FetchObjects, NotFetched, Values};

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectId, (Bytes, Vec<ObjectId>)>,
    uploads: BTreeMap<u64, BTreeSet<ObjectId>>,
    durable: BTreeSet<ObjectId>,
}

/// The objects of one node.
#[derive(Default)]
pub(crate) struct MemoryObjects {
    state: Mutex<State>,
    reads: AtomicUsize,
}

impl State {
    /// Everything below these objects that is here, and what is absent.
    fn below(&self, roots: &[ObjectId]) -> (BTreeSet<ObjectId>, Vec<ObjectId>) {
        let (mut here, mut absent, mut queue) = (BTreeSet::new(), Vec::new(), roots.to_vec());
        while let Some(id) = queue.pop() {
            match self.objects.get(&id) {
                Some((_, children)) if here.insert(id) => queue.extend(children),
                None if !absent.contains(&id) => absent.push(id),
                _ => {}
            }
        }
        (here, absent)
    }
}

impl MemoryObjects {
    /// Deletes what no upload holds.
    pub(crate) fn collect(&self) {
        let mut state = self.state.lock();
        let roots: Vec<_> = state.uploads.values().flatten().copied().collect();
        let (held, _) = state.below(&roots);
        state.objects.retain(|id, _| held.contains(id));
    }

    pub(crate) fn remove(&self, id: ObjectId) {
        self.state.lock().objects.remove(&id);
    }

    pub(crate) fn ids(&self) -> BTreeSet<ObjectId> {
        self.state.lock().objects.keys().copied().collect()
    }

    pub(crate) fn uploads(&self) -> Vec<u64> {
        self.state.lock().uploads.keys().copied().collect()
    }

    pub(crate) fn is_durable(&self) -> bool {
        let state = self.state.lock();
        state.objects.keys().all(|id| state.durable.contains(id))
    }

    /// Objects that were read so far.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// As values of a node that fetches from these others.
    pub(crate) fn values(self: &Arc<Self>, others: Vec<Arc<Self>>) -> Values {
        Values::new(self.clone(), Arc::new(Others { here: self.clone(), others }))
    }
}

impl ValueObjects for MemoryObjects {
    fn begin_upload(&self, upload: u64, _: Duration) -> Result<(), UploadError> {
        self.state.lock().uploads.entry(upload).or_default();
        Ok(())
    }

    fn renew_upload(&self, upload: u64, _: Duration) -> Result<(), UploadError> {
        if self.state.lock().uploads.contains_key(&upload) { Ok(()) } else { Err(UploadError::Ended(upload)) }
    }

    fn need(&self, upload: u64, objects: &[ObjectId]) -> Result<Vec<ObjectId>, UploadError> {
        let mut state = self.state.lock();
        let (here, absent) = state.below(objects);
        state.uploads.get_mut(&upload).ok_or(UploadError::Ended(upload))?.extend(here);
        Ok(absent)
    }

    fn store(&self, upload: u64, object: ObjectId, bytes: Bytes, children: &[ObjectId]) -> Result<(), UploadError> {
        if ObjectId::of(&bytes) != object {
            return Err(UploadError::WrongBytes(object));
        }
        let mut state = self.state.lock();
        state.uploads.get_mut(&upload).ok_or(UploadError::Ended(upload))?.insert(object);
        state.objects.insert(object, (bytes, children.to_vec()));
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        state.durable = state.objects.keys().copied().collect();
        Ok(())
    }

    fn object(&self, object: ObjectId) -> Result<Bytes, EngineError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock();
        state.objects.get(&object).map(|(bytes, _)| bytes.clone()).ok_or(EngineError::Object(object))
    }

    fn end_upload(&self, upload: u64) {
        self.state.lock().uploads.remove(&upload);
    }
}

struct Others {
    here: Arc<MemoryObjects>,
    others: Vec<Arc<MemoryObjects>>,
}

impl FetchObjects for Others {
    fn fetch(
        &self,
        upload: u64,
        objects: Refs,
        _: Vec<NodeId>,
        _: Duration,
    ) -> BoxFuture<'static, Result<(), NotFetched>> {
        let roots: Vec<_> = objects.ids().collect();
        for other in &self.others {
            let found: Vec<_> = {
                let state = other.state.lock();
                state.below(&roots).0.iter().map(|id| (*id, state.objects[id].clone())).collect()
            };
            for (id, (bytes, children)) in found {
                self.here.store(upload, id, bytes, &children).expect("an upload");
            }
        }
        let missing = self.here.need(upload, &roots).expect("an upload");
        async move { if missing.is_empty() { Ok(()) } else { Err(NotFetched) } }.boxed()
    }
}
