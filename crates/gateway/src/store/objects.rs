//! Objects by themselves: what an upload lacks, the objects of a record, and what operators ask for.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_kv::Content;
use flotilla_storage::ValueObjects;
use flotilla_types::{NodeId, ObjectId, ObjectRef, Refs};
use flotilla_values::{Need, Plan, ValueRef};

use super::{
    Store, StoreError,
    values::{Damaged, Encoding, HOLD_TIME, Hold, UPLOAD_TIME, Values, frame_bytes, held_object},
};

/// Bytes of frames that are read together.
const FRAMES_BYTES_MAX: usize = 256 << 10;
/// Bytes of objects in one answer to an operator.
const FETCHED_BYTES_MAX: usize = 8 << 20;
/// How often a record is read again because its objects were gone.
const TRIES_MAX: usize = 4;
/// Objects that one call, or one batch of an answer, finds damaged here and fetches again.
const RESTORED_MAX: usize = 1_024;

/// What an upload lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lacking {
    pub(crate) upload: u64,
    pub(crate) missing: Vec<ObjectId>,
}

/// Objects of a record, batch by batch, in the order in which they were asked for.
pub(crate) struct RecordObjects {
    hold: Option<Hold>,
    /// The nodes that have them.
    from: Vec<NodeId>,
    objects: VecDeque<Option<Need>>,
    encoding: Encoding,
}

impl Store {
    /// Which of these objects, and of all below those that are here, this node lacks. An upload holds the others: the
    /// given one, or a new one.
    pub(crate) async fn need(&self, upload: Option<u64>, refs: &[ObjectRef]) -> Result<Lacking, StoreError> {
        let hold = match upload {
            Some(upload) => Hold::of(self.values(), upload)?,
            None => Hold::begin_for_client(self.values(), HOLD_TIME)?,
        };
        let missing = hold.need(refs.iter().map(|reference| reference.id).collect()).await?;
        count(refs, &missing);
        Ok(Lacking { upload: hold.upload(), missing })
    }

    /// The same, holding nothing afterwards.
    pub(crate) async fn lacks(&self, refs: &[ObjectRef]) -> Result<Vec<ObjectId>, StoreError> {
        Hold::begin(self.values())?.need(refs.iter().map(|reference| reference.id).collect()).await
    }

    /// The bytes of objects that are here; none for the others, and for those that one answer has no room for.
    pub(crate) async fn objects(&self, ids: Vec<ObjectId>) -> Result<Vec<(ObjectId, Option<Bytes>)>, StoreError> {
        let mut left = FETCHED_BYTES_MAX;
        let mut objects = Vec::with_capacity(ids.len());
        for id in ids {
            let bytes = if left == 0 { None } else { self.values().object(id, 0).await? };
            left = bytes.as_ref().map_or(left, |bytes| left.saturating_sub(bytes.len()));
            objects.push((id, bytes));
        }
        Ok(objects)
    }

    /// Fetches what this node lacks of these objects, from a node or from all. An upload holds them for
    /// [`UPLOAD_TIME`].
    pub(crate) async fn pull(
        &self,
        refs: Refs,
        from: Option<NodeId>,
        deadline: Instant,
    ) -> Result<Lacking, StoreError> {
        let hold = Hold::begin_for_client(self.values(), UPLOAD_TIME)?;
        let topology = self.inner.shards.topology();
        let from = from.map_or_else(
            || {
                let meta = topology.meta();
                let others = meta.nodes().filter(|node| !node.state.is_gone() && node.id != topology.node());
                others.map(|node| node.id).collect()
            },
            |node| vec![node],
        );
        let time_left = deadline.saturating_duration_since(Instant::now());
        let missing = match hold.gather(&refs, from, time_left).await {
            Ok(()) => Vec::new(),
            Err(StoreError::ObjectsMissing { .. }) => hold.need(refs.ids().collect()).await?,
            Err(error) => return Err(error),
        };
        Ok(Lacking { upload: hold.upload(), missing })
    }

    /// The objects with these ids that belong to the present value of a record. `None` without a record.
    pub(crate) async fn objects_of(
        &self,
        collection: &str,
        key: &Bytes,
        ids: &[ObjectId],
        encoding: Encoding,
        deadline: Instant,
    ) -> Result<Option<RecordObjects>, StoreError> {
        let mut version = None;
        for _ in 0..TRIES_MAX {
            let Some(found) = self.get_one(collection, key.clone(), deadline).await? else { return Ok(None) };
            let Content::Large(value) = &found.value.content else {
                let objects = ids.iter().map(|_| None).collect();
                return Ok(Some(RecordObjects { hold: None, from: Vec::new(), objects, encoding }));
            };
            let hold = Hold::begin(self.values())?;
            let time_left: Duration = deadline.saturating_duration_since(Instant::now());
            let from = self.nodes_of(found.shard);
            match hold.gather(&value.refs(), from.clone(), time_left).await {
                Ok(()) => {
                    let known = hold.find(value, &ids.iter().copied().collect(), &from).await?;
                    let objects = ids.iter().map(|id| known.get(id).copied()).collect();
                    return Ok(Some(RecordObjects { hold: Some(hold), from, objects, encoding }));
                }
                Err(StoreError::ObjectsMissing { .. }) if version.replace(found.version) != Some(found.version) => {}
                Err(StoreError::ObjectsMissing { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::ObjectsUnavailable)
    }
}

impl RecordObjects {
    /// The next frames; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(object) = self.objects.front() {
            bytes += object.as_ref().map_or(flotilla_api::FRAME_HEADER_BYTES, frame_bytes);
            if bytes > FRAMES_BYTES_MAX && !batch.is_empty() {
                break;
            }
            batch.extend(self.objects.pop_front());
        }
        if batch.is_empty() {
            return Ok(None);
        }
        match &mut self.hold {
            Some(hold) => {
                hold.renew()?;
                hold.load_frames(batch, self.encoding, &self.from).await.map(Some)
            }
            None => Values::absent_frames(batch.len(), self.encoding).map(Some),
        }
    }
}

impl Hold {
    /// Those of these objects that are part of a value whose objects are held. Lists that are damaged here come from
    /// other nodes again.
    async fn find(
        &self,
        value: &ValueRef,
        ids: &BTreeSet<ObjectId>,
        from: &[NodeId],
    ) -> Result<BTreeMap<ObjectId, Need>, StoreError> {
        for _ in 0..RESTORED_MAX {
            let (value, ids) = (value.clone(), ids.clone());
            match self.values().work(0, move |objects| find(objects, &value, &ids)).await?? {
                Ok(found) => return Ok(found),
                Err(Damaged(list)) => drop(self.restore(list, from).await?),
            }
        }
        Err(StoreError::ObjectsUnavailable)
    }

    /// The frames of objects that are held. Those that are damaged here come from other nodes again.
    async fn load_frames(
        &self,
        objects: Vec<Option<Need>>,
        encoding: Encoding,
        from: &[NodeId],
    ) -> Result<Bytes, StoreError> {
        for _ in 0..RESTORED_MAX {
            match self.values().load_frames(objects.clone(), encoding).await? {
                Ok(frames) => return Ok(frames),
                Err(Damaged(object)) => drop(self.restore(object, from).await?),
            }
        }
        Err(StoreError::ObjectsUnavailable)
    }
}

fn find(
    objects: &dyn ValueObjects,
    value: &ValueRef,
    ids: &BTreeSet<ObjectId>,
) -> Result<Result<BTreeMap<ObjectId, Need>, Damaged>, StoreError> {
    let mut plan = Plan::new(value);
    let mut found = BTreeMap::new();
    loop {
        let level = plan.level().to_vec();
        for need in &level {
            if ids.contains(&need.id) {
                found.entry(need.id).or_insert(*need);
            }
        }
        if found.len() == ids.len() {
            return Ok(Ok(found));
        }
        for need in level.iter().filter(|need| need.kind != flotilla_values::Kind::Chunk) {
            let list = match held_object(objects, need)? {
                Ok(list) => list,
                Err(damaged) => return Ok(Err(damaged)),
            };
            plan.supply(need, &list).map_err(|_| StoreError::ObjectsUnavailable)?;
        }
        if !plan.descend().map_err(|_| StoreError::ObjectsUnavailable)? {
            return Ok(Ok(found));
        }
    }
}

/// Counts what was asked for and was here, or not.
fn count(refs: &[ObjectRef], missing: &[ObjectId]) {
    let missing: BTreeSet<_> = missing.iter().collect();
    let (absent, here): (Vec<&ObjectRef>, Vec<&ObjectRef>) =
        refs.iter().partition(|reference| missing.contains(&reference.id));
    metrics::counter!("flotilla_client_value_need_objects_total", "here" => "true").increment(here.len() as u64);
    metrics::counter!("flotilla_client_value_need_objects_total", "here" => "false").increment(absent.len() as u64);
    // If something is absent below a list that is here, it is not known how much of the list's bytes is here.
    let knows_lists = absent.len() == missing.len();
    let is_known = |reference: &&&ObjectRef| reference.height == 0 || knows_lists;
    let saved: u64 = here.iter().filter(is_known).map(|reference| reference.bytes).sum();
    metrics::counter!("flotilla_client_value_saved_bytes_total").increment(saved);
}
