//! Random histories against a model: what is reachable is never collected, what is not goes within two
//! passes, and every count equals a recount.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use flotilla_types::{Holder, ObjectId, ReplicaId};
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{segment_files, small};
use crate::{ObjectStore, Options, Scope, ScrubPass, UploadBounds, UploadError, load::segment_path, segment::Lengths};

/// Objects that a history uses. Each has children among those before it, and every other one may be compressed.
const OBJECTS: usize = 14;
const HOLDERS: u64 = 3;
const UPLOADS: u64 = 3;
/// Uploads at a time.
const UPLOADS_MAX: usize = 2;

type Set = BTreeSet<usize>;

#[derive(Debug, Clone)]
enum Step {
    Store(usize),
    Import(usize),
    Pin(usize),
    Unpin(usize),
    Hold(u64, Set),
    LetGo(u64),
    /// An upload begins, or goes on, for so many seconds.
    Begin(u64, u64),
    Renew(u64, u64),
    /// An upload asks which objects are missing; the others are held for it.
    Need(u64, Set),
    EndUpload(u64),
    /// Seconds pass.
    Pass(u64),
    Sync,
    Collect(Scope),
    AllowCompression,
    /// The process is killed and starts again.
    Restart,
    /// So is the machine; the choices say what became of what no fsync covered.
    PowerLoss(Vec<u8>),
    /// A byte of an object changes, which may be noticed at once.
    Damage(usize, bool),
    /// The scrub goes on for this many bytes.
    Scrub(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let object = 0..OBJECTS;
    let some = proptest::collection::btree_set(0..OBJECTS, 0..4);
    prop_oneof![
        8 => object.clone().prop_map(Step::Store),
        4 => object.clone().prop_map(Step::Import),
        2 => object.clone().prop_map(Step::Pin),
        8 => object.clone().prop_map(Step::Unpin),
        6 => (0..HOLDERS, some).prop_map(|(holder, some)| Step::Hold(holder, some)),
        3 => (0..HOLDERS).prop_map(Step::LetGo),
        4 => (0..UPLOADS, 1..40_u64).prop_map(|(upload, seconds)| Step::Begin(upload, seconds)),
        1 => (0..UPLOADS, 1..40_u64).prop_map(|(upload, seconds)| Step::Renew(upload, seconds)),
        6 => (0..UPLOADS, proptest::collection::btree_set(0..OBJECTS, 1..5))
            .prop_map(|(upload, some)| Step::Need(upload, some)),
        1 => (0..UPLOADS).prop_map(Step::EndUpload),
        2 => (1..30_u64).prop_map(Step::Pass),
        4 => Just(Step::Sync),
        5 => prop_oneof![Just(Scope::All), Just(Scope::SinceOpen)].prop_map(Step::Collect),
        1 => Just(Step::AllowCompression),
        1 => Just(Step::Restart),
        1 => vec(any::<u8>(), 1..8).prop_map(Step::PowerLoss),
        2 => (object, any::<bool>()).prop_map(|(object, noticed)| Step::Damage(object, noticed)),
        3 => prop_oneof![1..3_000_u64, Just(u64::MAX)].prop_map(Step::Scrub),
    ]
}

/// What must be true, at least, of a store.
#[derive(Debug, Default)]
struct Model {
    pins: BTreeMap<usize, u32>,
    roots: BTreeMap<u64, Set>,
    /// The deadline of each upload, and what it holds.
    uploads: BTreeMap<u64, (Instant, Set)>,
    /// Objects that are present and intact.
    present: Set,
    /// Those that are durable.
    durable: Set,
    /// Those of earlier runs.
    inherited: Set,
    /// Objects of which the store knows the children: present, or held ever since they were.
    known: Set,
    /// Objects whose damage the store may not have noticed: it takes them as verified.
    unnoticed: Set,
}

struct Test {
    dir: TempDir,
    /// A link to every segment file that ever was.
    links: TempDir,
    options: Options,
    children: Vec<Set>,
    store: Option<ObjectStore>,
    pass: Option<ScrubPass>,
    now: Instant,
    model: Model,
}

impl Test {
    fn new(live_percent_min: u8, edges: &[u16]) -> Self {
        let dir = memory_dir();
        let uploads = UploadBounds { uploads_max: UPLOADS_MAX, ..UploadBounds::default() };
        let options = Options { live_percent_min, uploads, ..small() };
        let store = ObjectStore::open(dir.path(), options.clone()).unwrap();
        let children = (0..OBJECTS).map(|n| (0..n).filter(|child| edges[n] >> child & 1 == 1).collect()).collect();
        let links = memory_dir();
        let (now, model) = (Instant::now(), Model::default());
        Self { dir, links, options, children, store: Some(store), pass: None, now, model }
    }

    fn store(&self) -> &ObjectStore {
        self.store.as_ref().unwrap()
    }

    fn bytes(n: usize) -> Vec<u8> {
        vec![n as u8; 300 + 80 * n]
    }

    fn id(n: usize) -> ObjectId {
        ObjectId::of(&Self::bytes(n))
    }

    fn child_ids(&self, n: usize) -> Vec<ObjectId> {
        self.children[n].iter().map(|child| Self::id(*child)).collect()
    }

    /// What is reachable by the children of these objects.
    fn closure(&self, through: impl Fn(usize) -> bool) -> Set {
        let held = self.model.roots.values().chain(self.model.uploads.values().map(|(_, held)| held));
        self.closure_of(self.model.pins.keys().chain(held.flatten()).copied().collect(), through)
    }

    fn closure_of(&self, mut queue: Vec<usize>, through: impl Fn(usize) -> bool) -> Set {
        let mut reached = Set::new();
        while let Some(n) = queue.pop() {
            if reached.insert(n) && through(n) {
                queue.extend(&self.children[n]);
            }
        }
        reached
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Store(n) => {
                let (bytes, children) = (Self::bytes(*n), self.child_ids(*n));
                let put = if n % 2 == 0 { ObjectStore::put } else { ObjectStore::put_compressible };
                assert_eq!(put(self.store(), &bytes, &children).unwrap(), Self::id(*n));
                self.stored(*n);
            }
            Step::Import(n) => {
                let (bytes, children) = (Self::bytes(*n), self.child_ids(*n));
                let import = if n % 2 == 0 { ObjectStore::import } else { ObjectStore::import_compressible };
                import(self.store(), Self::id(*n), &bytes, &children).unwrap();
                self.stored(*n);
                self.unpin(*n);
            }
            Step::Pin(n) => {
                let pinned = self.store().pin(Self::id(*n));
                assert!(pinned || !self.model.durable.contains(n), "{n} is durable");
                if pinned {
                    *self.model.pins.entry(*n).or_default() += 1;
                }
            }
            Step::Unpin(n) => self.unpin(*n),
            Step::Hold(holder, roots) => {
                self.store().hold(Holder::Receiver(ReplicaId(*holder)), roots.iter().map(|n| Self::id(*n)));
                self.model.roots.insert(*holder, roots.clone());
            }
            Step::LetGo(holder) => {
                self.store().let_go(Holder::Receiver(ReplicaId(*holder)));
                self.model.roots.remove(holder);
            }
            Step::Sync => {
                self.store().sync().unwrap();
                self.model.durable.clone_from(&self.model.present);
            }
            Step::Begin(upload, seconds) => self.begin(*upload, Duration::from_secs(*seconds)),
            Step::Renew(upload, seconds) => self.renew(*upload, Duration::from_secs(*seconds)),
            Step::Need(upload, some) => self.need(*upload, some),
            Step::EndUpload(upload) => {
                self.store().end_upload(*upload);
                self.model.uploads.remove(upload);
            }
            Step::Pass(seconds) => self.now += Duration::from_secs(*seconds),
            Step::Collect(scope) => {
                self.store().end_due_uploads(self.now);
                self.end_due_uploads();
                self.store().collect(*scope).unwrap();
                self.collected(*scope);
            }
            Step::AllowCompression => self.store().allow_compression(),
            Step::Restart => {
                self.store = None;
                self.reopen();
            }
            Step::PowerLoss(choices) => {
                let synced = std::mem::take(&mut *self.store().synced_bytes.lock());
                self.store = None;
                self.lose_power(&synced, choices);
                let durable = self.model.durable.clone();
                self.model.present.retain(|n| durable.contains(n));
                self.reopen();
            }
            Step::Damage(n, noticed) => self.damage(*n, *noticed),
            Step::Scrub(bytes_max) => self.scrub(*bytes_max),
        }
        self.link();
        self.check();
    }

    fn end_due_uploads(&mut self) {
        let now = self.now;
        self.model.uploads.retain(|_, (deadline, _)| *deadline > now);
    }

    fn begin(&mut self, upload: u64, time: Duration) {
        let begun = self.store().begin_upload(upload, self.now, time);
        self.end_due_uploads();
        let goes_on = self.model.uploads.contains_key(&upload);
        if goes_on || self.model.uploads.len() < UPLOADS_MAX {
            begun.unwrap();
            self.model.uploads.entry(upload).or_insert((self.now, Set::new())).0 = self.now + time;
        } else {
            assert!(matches!(begun, Err(UploadError::TooManyUploads(UPLOADS_MAX))));
        }
    }

    fn renew(&mut self, upload: u64, time: Duration) {
        let renewed = self.store().renew_upload(upload, self.now, time);
        self.end_due_uploads();
        assert_eq!(renewed.is_ok(), self.model.uploads.contains_key(&upload));
        if let Some((deadline, _)) = self.model.uploads.get_mut(&upload) {
            *deadline = self.now + time;
        }
    }

    /// An answer names what is absent, below what is present as well; what else was asked for is held.
    fn need(&mut self, upload: u64, some: &Set) {
        let ids: Vec<_> = some.iter().map(|n| Self::id(*n)).collect();
        let answer = self.store().need(upload, self.now, &ids);
        self.end_due_uploads();
        let Some((_, held)) = self.model.uploads.get_mut(&upload) else {
            return assert!(matches!(answer, Err(UploadError::Ended(ended)) if ended == upload));
        };
        let answer = answer.unwrap();
        let is_missing = |n: &usize| answer.contains(&Self::id(*n));
        held.extend(some.iter().filter(|n| !is_missing(n)));
        let is_present = |n| self.model.present.contains(&n);
        let certain = self.closure_of(some.iter().copied().collect(), is_present);
        for n in &certain {
            // More may have survived a loss of power than had to.
            let is_here = || self.store().get(Self::id(*n)).is_ok_and(|bytes| bytes == Self::bytes(*n));
            assert!(is_missing(n) || self.model.unnoticed.contains(n) || is_here(), "{n} is missing");
        }
        let below = self.closure_of(some.iter().copied().collect(), |_| true);
        assert!(below.iter().all(|n| !is_missing(n) || !is_present(*n)), "what is here is not missing");
        assert!(answer.iter().all(|id| below.iter().any(|n| Self::id(*n) == *id)), "nobody needs it");
        assert_eq!(answer.iter().collect::<BTreeSet<_>>().len(), answer.len(), "each once");
    }

    fn stored(&mut self, n: usize) {
        *self.model.pins.entry(n).or_default() += 1;
        self.model.known.insert(n);
        if !self.model.unnoticed.contains(&n) {
            self.model.present.insert(n);
        }
    }

    fn unpin(&mut self, n: usize) {
        self.store().unpin(Self::id(n));
        if let Some(pins) = self.model.pins.get_mut(&n) {
            *pins -= 1;
        }
        self.model.pins.retain(|_, pins| *pins > 0);
    }

    fn collected(&mut self, scope: Scope) {
        let mut kept = self.closure(|n| self.model.known.contains(&n));
        match scope {
            Scope::SinceOpen => kept.extend(&self.model.inherited),
            // It may have moved them into segments of this run.
            Scope::All => self.model.inherited.clear(),
        }
        for set in [&mut self.model.present, &mut self.model.durable, &mut self.model.inherited] {
            set.retain(|n| kept.contains(n));
        }
    }

    fn damage(&mut self, n: usize, noticed: bool) {
        let Some(entry) = self.store().index.read().entry(Self::id(n)) else { return };
        let path = segment_path(self.dir.path(), entry.location.segment);
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0xFF], entry.location.offset).unwrap();
        for set in [&mut self.model.present, &mut self.model.durable, &mut self.model.inherited] {
            set.remove(&n);
        }
        self.model.unnoticed.insert(n);
        if noticed {
            assert!(self.store().get(Self::id(n)).is_err());
            self.model.unnoticed.remove(&n);
        }
    }

    /// A pass that is not interrupted finds all that is damaged, and no pass anything else.
    fn scrub(&mut self, bytes_max: u64) {
        let mut pass = self.pass.take().unwrap_or_default();
        if bytes_max == u64::MAX || pass.progress_bytes() == (0, 0) {
            pass = self.store().begin_scrub();
        }
        let scrubbed = self.store().scrub(&mut pass, bytes_max).unwrap();
        for id in scrubbed.damaged {
            let n = (0..OBJECTS).find(|n| Self::id(*n) == id).unwrap();
            assert!(!self.model.present.contains(&n), "{n} is intact");
            self.model.unnoticed.remove(&n);
        }
        if bytes_max == u64::MAX {
            assert!(scrubbed.ended);
            for n in 0..OBJECTS {
                let Some(entry) = self.store().index.read().entry(Self::id(n)) else { continue };
                let file = fs::File::open(segment_path(self.dir.path(), entry.location.segment)).unwrap();
                let Lengths { stored, .. } = entry.location.lengths;
                let mut bytes = vec![0; stored as usize];
                file.read_exact_at(&mut bytes, entry.location.offset).unwrap();
                let plain = self.store().compression.plain_of(bytes.into(), entry.location.lengths);
                assert!(
                    plain.is_some_and(|plain| plain == Self::bytes(n)) || !entry.stored.synced,
                    "{n} is damaged and was not found"
                );
            }
        }
        self.pass = Some(pass).filter(|_| !scrubbed.ended);
    }

    /// What no fsync covered is there, or cut, or not what was written; deleted files may be back.
    fn lose_power(&self, synced: &BTreeMap<u64, u64>, choices: &[u8]) {
        let mut choices = choices.iter().cycle();
        let mut choose = || usize::from(*choices.next().unwrap());
        for path in segment_files(self.dir.path()) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            let (bytes, synced) = (file.metadata().unwrap(), synced.get(&file.metadata().unwrap().ino()));
            let Some(synced) = synced.copied() else {
                fs::remove_file(&path).unwrap();
                continue;
            };
            let unsynced = (bytes.len() - synced) as usize;
            match choose() % 4 {
                0 => file.set_len(synced).unwrap(),
                1 => file.set_len(synced + (choose() * 7 % (unsynced + 1)) as u64).unwrap(),
                2 => {
                    let from = choose() * 7 % (unsynced + 1);
                    file.write_all_at(&vec![0; unsynced - from], synced + from as u64).unwrap();
                }
                _ => {}
            }
        }
        for link in segment_files(self.links.path()) {
            let path = self.dir.path().join(link.file_name().unwrap());
            if choose() % 2 == 0 && !path.exists() {
                fs::hard_link(link, path).unwrap();
            }
        }
    }

    fn link(&self) {
        for path in segment_files(self.dir.path()) {
            let link = self.links.path().join(path.file_name().unwrap());
            if ino(&link) != ino(&path) {
                let _ = fs::remove_file(&link);
                fs::hard_link(path, link).unwrap();
            }
        }
    }

    fn reopen(&mut self) {
        let store = ObjectStore::open(self.dir.path(), self.options.clone()).unwrap();
        for path in segment_files(self.dir.path()) {
            let metadata = fs::metadata(path).unwrap();
            store.synced_bytes.lock().insert(metadata.ino(), metadata.len());
        }
        self.store = Some(store);
        self.pass = None;
        let present = std::mem::take(&mut self.model.present);
        self.model = Model {
            durable: present.clone(),
            inherited: present.clone(),
            known: present.clone(),
            present,
            ..Model::default()
        };
    }

    fn check(&mut self) {
        let reachable = self.closure(|n| self.model.known.contains(&n));
        let present = self.model.present.clone();
        self.model.known.retain(|n| present.contains(n) || reachable.contains(n));
        let index = self.store().index.read();
        index.audit();
        for n in &reachable {
            assert!(index.is_held(Self::id(*n)), "{n} is held");
        }
        let mut children: Vec<Vec<ObjectId>> = self.model.known.iter().map(|n| self.child_ids(*n)).collect();
        children.iter_mut().for_each(|children| children.sort_unstable());
        let known: Vec<_> = self.model.known.iter().map(|n| index.children(Self::id(*n))).collect();
        assert_eq!(known, children);
        drop(index);
        for n in &self.model.present {
            assert_eq!(self.store().get(Self::id(*n)).unwrap(), Self::bytes(*n), "object {n}");
        }
    }

    /// After two passes, garbage is only in the active segment, in those that are dense, and in those that
    /// the second pass closed.
    fn finish(&mut self) {
        self.run(&Step::Sync);
        self.run(&Step::Collect(Scope::All));
        let live_min = self.options.segment_bytes * u64::from(self.options.live_percent_min) / 100;
        let closed_before = {
            let tables = &self.store().index.read().tables;
            tables.candidates(u64::MAX, true)
        };
        self.run(&Step::Collect(Scope::All));
        let reachable = self.closure(|_| true);
        let index = self.store().index.read();
        for n in (0..OBJECTS).filter(|n| !reachable.contains(n)) {
            let Some(entry) = index.entry(Self::id(n)) else { continue };
            let segment = entry.location.segment;
            let Some(candidate) = index.tables.candidate(segment) else { continue };
            let stays = candidate.live_bytes >= live_min || !closed_before.contains(&segment);
            assert!(stays, "{n} is garbage in segment {segment} with {} live bytes", candidate.live_bytes);
        }
    }
}

/// In memory if possible: what an fsync covers is noted, and a disk takes long for so many.
fn memory_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn ino(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reachable_objects_stay_and_others_go(
        live_percent_min in prop_oneof![Just(50u8), Just(100)],
        edges in vec(any::<u16>().prop_flat_map(|some| any::<u16>().prop_map(move |other| some & other)), OBJECTS),
        steps in vec(step(), 1..80),
    ) {
        let mut test = Test::new(live_percent_min, &edges);
        for step in &steps {
            test.run(step);
        }
        test.finish();
    }
}
