//! Random histories against a model: what is reachable is never collected, what is not goes within two
//! passes, and every count equals a recount.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use flotilla_types::{Holder, ObjectId, ReplicaId};
use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;

use super::{segment_files, small};
use crate::{ObjectStore, Options, Scope, ScrubPass, load::segment_path, segment::Lengths};

/// Objects that a history uses. Each has children among those before it, and every other one may be compressed.
const OBJECTS: usize = 14;
const HOLDERS: u64 = 3;

type Set = BTreeSet<usize>;

#[derive(Debug, Clone)]
enum Step {
    Store(usize),
    Import(usize),
    Pin(usize),
    Unpin(usize),
    Hold(u64, Set),
    LetGo(u64),
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
    model: Model,
}

impl Test {
    fn new(live_percent_min: u8, edges: &[u16]) -> Self {
        let dir = memory_dir();
        let options = Options { live_percent_min, ..small() };
        let store = ObjectStore::open(dir.path(), options.clone()).unwrap();
        let children = (0..OBJECTS).map(|n| (0..n).filter(|child| edges[n] >> child & 1 == 1).collect()).collect();
        let links = memory_dir();
        Self { dir, links, options, children, store: Some(store), pass: None, model: Model::default() }
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
        let mut queue: Vec<usize> =
            self.model.pins.keys().chain(self.model.roots.values().flatten()).copied().collect();
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
            Step::Collect(scope) => {
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
