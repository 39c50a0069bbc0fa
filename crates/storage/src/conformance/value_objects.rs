//! The suite of [`ValueObjects`]: what an upload holds stays until it ends, and no longer.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::ObjectId;

use super::{
    bytes, empty_checkpoint,
    references::{REPLICA, collect},
};
use crate::{EngineError, StateEngine, UploadError, ValueObjects};

const MINUTE: Duration = Duration::from_secs(60);

/// Runs the suite. `open` opens the same storage again, with the bounds of the suite of
/// [`references`](super::references), and with no more than 1,024 uploads at a time.
pub fn value_objects<E: StateEngine + ValueObjects>(mut open: impl FnMut() -> E) {
    let engine = open();
    let mut tested = Tested::new(&engine);
    what_is_stored_stays_until_the_upload_ends(&mut tested);
    an_upload_holds_what_it_asks_for_and_is_here(&mut tested);
    an_upload_that_has_ended_takes_nothing(&mut tested);
    only_the_bytes_of_an_object_are_stored(&tested);
    uploads_are_bounded(&tested);
    drop(engine);
    uploads_end_with_the_process(&mut open);
}

/// An engine by both of its interfaces.
struct Tested<'a> {
    values: &'a dyn ValueObjects,
    state: &'a dyn StateEngine,
    index: u64,
}

/// A list and two chunks.
struct Parts([(ObjectId, Bytes, Vec<ObjectId>); 3]);

impl Parts {
    fn new(name: &str) -> Self {
        let [first, second] = ["first", "second"].map(|part| Bytes::from(format!("{part} part of {name}").repeat(40)));
        let chunks = [&first, &second].map(|chunk| ObjectId::of(chunk));
        let list = bytes(&format!("list of the parts of {name}"));
        let root = (ObjectId::of(&list), list, chunks.to_vec());
        Self([root, (chunks[0], first, Vec::new()), (chunks[1], second, Vec::new())])
    }

    fn root(&self) -> ObjectId {
        self.0[0].0
    }

    fn ids(&self) -> Vec<ObjectId> {
        self.0.iter().map(|(id, ..)| *id).collect()
    }
}

impl<'a> Tested<'a> {
    fn new<E: StateEngine + ValueObjects>(engine: &'a E) -> Self {
        let tested = Self { values: engine, state: engine, index: 0 };
        tested.state.open(REPLICA, &empty_checkpoint(REPLICA, 0, 0)).expect("a new replica opens");
        tested
    }

    fn store(&self, upload: u64, parts: &Parts) {
        for (id, bytes, children) in &parts.0 {
            self.values.store(upload, *id, bytes.clone(), children).expect("the upload goes on");
        }
    }

    fn is_whole(&self, parts: &Parts) -> bool {
        self.state.missing(&parts.ids()).is_empty()
    }

    fn is_gone(&self, parts: &Parts) -> bool {
        self.state.missing(&parts.ids()).len() == parts.0.len()
    }

    fn collect(&mut self) {
        collect(self.state, &mut self.index);
    }
}

fn what_is_stored_stays_until_the_upload_ends(tested: &mut Tested<'_>) {
    let parts = Parts::new("stored");
    tested.values.begin_upload(1, MINUTE).expect("there are few uploads");
    // Chunks that no list names yet, as they come while a value is cut.
    for (id, bytes, children) in parts.0.iter().rev() {
        tested.values.store(1, *id, bytes.clone(), children).expect("the upload goes on");
        tested.values.sync().expect("a healthy disk");
        tested.collect();
    }
    assert!(tested.is_whole(&parts), "the upload holds them");
    assert_eq!(tested.values.need(1, &[parts.root()]).expect("the upload goes on"), []);
    for (id, bytes, _) in &parts.0 {
        assert_eq!(tested.values.object(*id).expect("it is here"), *bytes);
    }
    tested.values.end_upload(1);
    tested.collect();
    assert!(tested.is_gone(&parts), "nobody holds them");
    let absent = parts.root();
    assert!(matches!(tested.values.object(absent), Err(EngineError::Object(id)) if id == absent));
}

fn an_upload_holds_what_it_asks_for_and_is_here(tested: &mut Tested<'_>) {
    let parts = Parts::new("asked for");
    let [root, first, second] = &parts.0;
    [2, 3].into_iter().for_each(|upload| tested.values.begin_upload(upload, MINUTE).expect("there are few uploads"));
    let need = |upload, ids: &[ObjectId]| tested.values.need(upload, ids).expect("the upload goes on");
    assert_eq!(need(2, &[root.0, root.0]), [root.0], "what an absent list needs is not known");
    for (id, bytes, children) in [root, first] {
        tested.values.store(2, *id, bytes.clone(), children).expect("the upload goes on");
    }
    assert_eq!(need(3, &[root.0]), [second.0], "what a list here needs is");
    tested.values.end_upload(2);
    tested.collect();
    assert_eq!(tested.state.missing(&parts.ids()), [second.0], "the other upload holds the rest");
    tested.values.store(3, second.0, second.1.clone(), &[]).expect("the upload goes on");
    assert_eq!(tested.values.need(3, &[root.0]).expect("the upload goes on"), []);
    tested.values.end_upload(3);
    tested.collect();
    assert!(tested.is_gone(&parts));
}

fn an_upload_that_has_ended_takes_nothing(tested: &mut Tested<'_>) {
    let parts = Parts::new("ended");
    tested.values.begin_upload(4, MINUTE).expect("there are few uploads");
    tested.store(4, &parts);
    tested.values.renew_upload(4, MINUTE).expect("the upload goes on");
    tested.values.begin_upload(4, MINUTE).expect("beginning again renews it");
    assert_eq!(tested.values.need(4, &parts.ids()).expect("the upload goes on"), []);
    tested.values.renew_upload(4, Duration::ZERO).expect("the upload goes on");
    let (id, bytes, children) = &parts.0[0];
    let ended = [
        tested.values.need(4, &[]).map(drop),
        tested.values.renew_upload(4, MINUTE),
        tested.values.store(4, *id, bytes.clone(), children),
    ];
    assert!(ended.iter().all(|ended| matches!(ended, Err(UploadError::Ended(4)))), "{ended:?}");
    tested.values.end_upload(4);
    tested.collect();
    assert!(tested.is_gone(&parts));
}

fn only_the_bytes_of_an_object_are_stored(tested: &Tested<'_>) {
    let (id, other) = (ObjectId::of(b"bytes"), Bytes::from_static(b"other bytes"));
    tested.values.begin_upload(5, MINUTE).expect("there are few uploads");
    let stored = tested.values.store(5, id, other.clone(), &[]);
    assert!(matches!(stored, Err(UploadError::WrongBytes(wrong)) if wrong == id));
    assert_eq!(tested.state.missing(&[id, ObjectId::of(&other)]).len(), 2);
    tested.values.end_upload(5);
}

fn uploads_are_bounded(tested: &Tested<'_>) {
    let begun = (0..1_025).map(|upload| tested.values.begin_upload(1_000 + upload, MINUTE));
    let refused: Vec<_> = begun.filter_map(Result::err).collect();
    assert!(matches!(refused[..], [UploadError::Full]), "{refused:?}");
    (0..1_025).for_each(|upload| tested.values.end_upload(1_000 + upload));
    tested.values.begin_upload(6, MINUTE).expect("there is room again");
    tested.values.end_upload(6);
}

fn uploads_end_with_the_process<E: StateEngine + ValueObjects>(open: &mut impl FnMut() -> E) {
    let parts = Parts::new("before a restart");
    let engine = open();
    let tested = Tested::new(&engine);
    tested.values.begin_upload(7, MINUTE).expect("there are few uploads");
    tested.store(7, &parts);
    tested.values.sync().expect("a healthy disk");
    drop(engine);
    let engine = open();
    let tested = Tested::new(&engine);
    assert!(matches!(tested.values.need(7, &[]), Err(UploadError::Ended(7))));
    tested.values.begin_upload(7, MINUTE).expect("there are few uploads");
    assert_eq!(tested.values.need(7, &parts.ids()).expect("it goes on"), [], "synced objects are still here");
    tested.values.end_upload(7);
}
