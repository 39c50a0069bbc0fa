//! Cases of splits: a replica gives up its upper keys to a new one, and both name the same tables.

use std::collections::BTreeSet;

use super::{
    Bytes, Checkpoint, CheckpointFormat, Choices, FLUSHES, Folding, Holder, KeyRange, LogIndex, Manifest, Model,
    ObjectId, ReplicaId, Storage, TableRef, Tables, WriteSet, bytes, empty_checkpoint, position,
};
use crate::{Fold, KeyRanges, SplitOff, StateEngine};

pub(super) fn run(storage: &mut Storage<'_>) {
    let internal = KeyRange::internal().start;
    // Keys that are held by chance, one that never is, those before and after all, and of the machine.
    for (number, at) in
        ["50", "17", "505", "", "zz"].map(bytes).into_iter().chain([internal, internal_key(3)]).enumerate()
    {
        both_replicas_have_their_keys(storage, 400 + 10 * number as u64, &at);
    }
    a_replica_is_split_again_and_again(storage);
    a_fold_of_before_a_split_is_clipped(storage);
    the_base_of_a_fold_behind_a_split_is_the_same_one_everywhere(storage);
    a_split_that_was_not_installed_is_met_again(storage);
    a_split_waits_for_the_frozen_memtable(storage);
    what_a_split_built_stays_until_it_is_installed(storage);
    if storage.format == CheckpointFormat::Manifests {
        a_split_writes_one_run(storage);
        folds_of_both_replicas_give_back_what_clips_hide(storage);
    }
}

/// Checkpoints for which a replica goes on: enough for every implementation to merge and to fold.
const ROUNDS: u64 = 8;

fn internal_key(number: u64) -> Bytes {
    [&KeyRange::internal().start[..], format!("{number:02}").as_bytes()].concat().into()
}

/// Every key that the cases write.
fn all_keys() -> Vec<Bytes> {
    (0..100).map(|number| bytes(&format!("{number:02}"))).chain((0..10).map(internal_key)).collect()
}

fn restricted(model: &Model, keys: &KeyRanges) -> Model {
    let own = model.range(&KeyRange::all()).into_iter().filter(|(key, _)| keys.contains(key));
    let mut restricted = Model::default();
    restricted.write(&own.map(|(key, value)| (key, Some(value.into()))).collect());
    restricted
}

fn tables_of(checkpoint: &Checkpoint) -> &[TableRef] {
    let Tables::Manifests(tables) = &checkpoint.tables else { panic!("a split checkpoint has manifests") };
    tables
}

fn manifests_of(checkpoint: &Checkpoint) -> BTreeSet<ObjectId> {
    checkpoint.tables.objects().collect()
}

/// The base that the log ordered.
fn base_of(checkpoint: &Checkpoint, fold: u64) -> Vec<TableRef> {
    tables_of(checkpoint).iter().filter(|table| table.fold == Some(LogIndex(fold))).cloned().collect()
}

/// A replica, and what it should have.
pub(super) struct Part {
    pub(super) id: ReplicaId,
    format: CheckpointFormat,
    pub(super) durable: Checkpoint,
    pub(super) keys: KeyRanges,
    pub(super) model: Model,
    pub(super) index: u64,
}

impl Part {
    pub(super) fn new(engine: &dyn StateEngine, format: CheckpointFormat, id: u64) -> Self {
        let id = ReplicaId(id);
        let durable = empty_checkpoint(id, 0, 0);
        engine.open(id, &durable).expect("a new replica opens");
        Self { id, format, durable, keys: KeyRanges::all(), model: Model::default(), index: 0 }
    }

    fn write_set(&mut self, engine: &dyn StateEngine, records: WriteSet) {
        self.index += 1;
        self.model.write(&records);
        engine.write(self.id, records, LogIndex(self.index)).expect("an open replica takes writes");
    }

    /// Writes and deletes some of its keys.
    pub(super) fn write(&mut self, engine: &dyn StateEngine, choices: &mut Choices) {
        let keys: Vec<_> = all_keys().into_iter().filter(|key| self.keys.contains(key)).collect();
        let records = (0..20).map(|_| {
            let key = keys[choices.below(keys.len() as u64) as usize].clone();
            let value = (choices.below(4) > 0).then(|| format!("{} {}", self.index, "v".repeat(30)));
            (key, value.map(|value| bytes(&value).into()))
        });
        let records = records.collect();
        self.write_set(engine, records);
    }

    fn freeze(&self, engine: &dyn StateEngine) -> bool {
        let position = position(self.id, self.index, 1);
        engine.freeze(self.id, position, bytes("system")).expect("an open replica freezes")
    }

    fn build(&self, engine: &dyn StateEngine) -> Checkpoint {
        engine.build(self.id, self.format).expect("a frozen memtable is built")
    }

    fn install(&mut self, engine: &dyn StateEngine, built: Checkpoint) {
        self.durable = built;
        engine.install_checkpoint(self.id, &self.durable).expect("a built checkpoint is installed");
    }

    pub(super) fn flush(&mut self, engine: &dyn StateEngine) {
        assert!(self.freeze(engine), "nothing else is frozen");
        let built = self.build(engine);
        self.install(engine, built);
    }

    pub(super) fn compact(&self, engine: &dyn StateEngine, folding: Folding) -> bool {
        engine.compact(self.id, folding, &|| false).expect("an open replica is compacted")
    }

    pub(super) fn pin_fold(&mut self, engine: &dyn StateEngine) -> u64 {
        self.index += 1;
        let fold = Fold { index: LogIndex(self.index), piece_bytes: 64 };
        engine.pin_fold(self.id, fold).expect("an open replica pins its records");
        self.index
    }

    /// Goes on for some checkpoints, with compactions and folds.
    pub(super) fn go_on(&mut self, engine: &dyn StateEngine, choices: &mut Choices) {
        for round in 0..ROUNDS {
            self.write(engine, choices);
            if round % 4 == 1 {
                self.pin_fold(engine);
                self.write(engine, choices);
            }
            self.flush(engine);
            self.compact(engine, if round % 3 == 0 { Folding::Logged } else { Folding::Local });
        }
        self.assert_holds(engine);
    }

    fn freeze_split(&mut self, engine: &dyn StateEngine, at: &Bytes, new: u64) -> bool {
        let split = SplitOff { at: at.clone(), position: position(ReplicaId(new), 1, 1), system: bytes("new system") };
        let position = position(self.id, self.index, 1);
        engine.freeze_split(self.id, position, bytes("system"), split).expect("an open replica freezes")
    }

    /// What belongs to the new replica after the freeze: it is not open yet.
    fn give_up(&mut self, at: &Bytes, new: u64) -> Self {
        let (left, right) = self.keys.split_at(at);
        let model = restricted(&self.model, &right);
        (self.keys, self.model) = (left.clone(), restricted(&self.model, &left));
        let (id, format) = (ReplicaId(new), self.format);
        Self { id, format, durable: empty_checkpoint(id, 0, 0), keys: right, model, index: 1 }
    }

    /// Splits, and opens the new replica.
    pub(super) fn split(&mut self, engine: &dyn StateEngine, choices: &mut Choices, at: &Bytes, new: u64) -> Self {
        assert!(engine.built_split(self.id).is_none());
        assert!(self.freeze_split(engine, at, new), "nothing else is frozen");
        let mut right = self.give_up(at, new);
        // Writes and compactions go on.
        self.write(engine, choices);
        let mut compact = || choices.below(2) == 0 && self.compact(engine, Folding::Local);
        compact();
        let built = self.build(engine);
        compact();
        right.durable = engine.built_split(self.id).expect("the memtable was frozen by a split");
        assert_eq!(right.durable.position, position(right.id, 1, 1));
        assert_eq!(engine.system(&right.durable).expect("just built"), bytes("new system"));
        assert!(tables_of(&right.durable).iter().all(|table| table.fold.is_none()), "its log has ordered no fold");
        // The new one is opened before the other's checkpoint is installed, or after.
        if choices.below(2) == 0 {
            right.open(engine);
        }
        engine.hold(Holder::Checkpoint(right.id), &right.durable.objects().collect::<Vec<_>>());
        self.install(engine, built);
        assert!(engine.built_split(self.id).is_none(), "it is installed");
        right.open(engine);
        self.assert_holds(engine);
        right.assert_holds(engine);
        right
    }

    pub(super) fn open(&self, engine: &dyn StateEngine) {
        engine.open(self.id, &self.durable).expect("a replica opens from its durable checkpoint");
        let objects: Vec<_> = self.durable.objects().collect();
        assert!(engine.missing(&objects).is_empty());
    }

    /// Opens it after a restart, from its last checkpoint.
    fn reopen(&mut self, engine: &dyn StateEngine, choices: &mut Choices) {
        self.flush(engine);
        // Is lost.
        let (model, index) = (self.model.clone(), self.index);
        self.write(engine, choices);
        (self.model, self.index) = (model, index);
    }

    pub(super) fn assert_holds(&self, engine: &dyn StateEngine) {
        let reader = engine.reader(self.id).expect("an open replica is readable");
        let scan = |range: &KeyRange| reader.scan(range, usize::MAX, usize::MAX).expect("an open replica is readable");
        assert_eq!(scan(&KeyRange::all()), self.model.range(&KeyRange::all()), "{}", self.id);
        for key in all_keys() {
            assert_eq!(reader.get(&key).expect("an open replica is readable"), self.model.get(&key), "{key:?}");
            let range = KeyRange { start: key, end: bytes("75") };
            assert_eq!(scan(&range), self.model.range(&range));
        }
    }
}

/// Ends the engine without warning after checkpoints of these replicas, and opens them again.
pub(super) fn restart(
    storage: &mut Storage<'_>,
    engine: Box<dyn StateEngine>,
    choices: &mut Choices,
    parts: &mut [Part],
) -> Box<dyn StateEngine> {
    parts.iter_mut().for_each(|part| part.reopen(&*engine, choices));
    drop(engine);
    let engine = (storage.open)();
    for part in &*parts {
        part.open(&*engine);
        part.assert_holds(&*engine);
    }
    engine
}

fn both_replicas_have_their_keys(storage: &mut Storage<'_>, id: u64, at: &Bytes) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(id);
    let mut left = Part::new(&*engine, storage.format, id);
    left.go_on(&*engine, &mut choices);
    left.write(&*engine, &mut choices);
    let right = left.split(&*engine, &mut choices, at, id + 1);
    let parts = &mut [left, right];
    // From the checkpoints of the split, and from later ones.
    for _ in 0..2 {
        engine = restart(storage, engine, &mut choices, parts);
        for part in &mut *parts {
            part.go_on(&*engine, &mut choices);
        }
        for part in &*parts {
            part.assert_holds(&*engine);
        }
    }
}

fn a_replica_is_split_again_and_again(storage: &mut Storage<'_>) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(11);
    let mut parts = vec![Part::new(&*engine, storage.format, 500)];
    parts[0].go_on(&*engine, &mut choices);
    for (number, (which, at)) in
        [(0, "80"), (0, "40"), (1, "90"), (2, "60"), (0, "20"), (3, "95")].into_iter().enumerate()
    {
        for part in &mut parts {
            part.write(&*engine, &mut choices);
            if number % 2 == 0 {
                part.flush(&*engine);
            }
            part.compact(&*engine, Folding::Local);
        }
        // The base of a fold from before may be named after it.
        parts[which].pin_fold(&*engine);
        let new = parts[which].split(&*engine, &mut choices, &bytes(at), 501 + number as u64);
        parts.push(new);
        if number % 3 == 2 {
            engine = restart(storage, engine, &mut choices, &mut parts);
        }
    }
    for part in &mut parts {
        part.go_on(&*engine, &mut choices);
    }
    restart(storage, engine, &mut choices, &mut parts);
}

/// Whether its base is made before the checkpoint of the split is built, or after.
fn a_fold_of_before_a_split_is_clipped(storage: &mut Storage<'_>) {
    for id in [520, 522, 524, 526] {
        let engine = (storage.open)();
        let mut choices = Choices::new(id);
        let mut left = Part::new(&*engine, CheckpointFormat::Manifests, id);
        for _ in 0..3 {
            left.write(&*engine, &mut choices);
            left.flush(&*engine);
        }
        left.write(&*engine, &mut choices);
        let fold = left.pin_fold(&*engine);
        left.write(&*engine, &mut choices);
        let right = left.split(&*engine, &mut choices, &bytes("50"), id + 1);
        left.compact(&*engine, Folding::Logged);
        left.flush(&*engine);
        let base = base_of(&left.durable, fold);
        assert!(
            !base.is_empty() && base.iter().all(|table| !table.clip.contains(b"50") && !table.clip.contains(b"99"))
        );
        left.assert_holds(&*engine);
        restart(storage, engine, &mut choices, &mut [left, right]);
    }
}

/// Whether the checkpoint of the split was installed before the fold, after it, or before the replica was opened.
fn the_base_of_a_fold_behind_a_split_is_the_same_one_everywhere(storage: &mut Storage<'_>) {
    let mut bases = Vec::new();
    for (number, flushes_per) in [1, 2, 9].into_iter().enumerate() {
        let mut engine = (storage.open)();
        let mut choices = Choices::new(17);
        let new = 535 + number as u64;
        let mut left = Part::new(&*engine, storage.format, 530 + number as u64);
        for round in 1..6 {
            left.write(&*engine, &mut choices);
            if round % flushes_per == 0 {
                left.flush(&*engine);
                left.compact(&*engine, Folding::Local);
            }
        }
        assert!(left.freeze_split(&*engine, &bytes("50"), new), "nothing else is frozen");
        left.give_up(&bytes("50"), new);
        left.write(&*engine, &mut choices);
        let early = (number != 1).then(|| left.build(&*engine));
        if let Some(built) = early.clone() {
            left.install(&*engine, built);
        }
        if number == 2 {
            drop(engine);
            engine = (storage.open)();
            left.open(&*engine);
            // The log repeats what came after the split.
            let again = left.model.range(&KeyRange::all());
            let again = again.into_iter().map(|(key, value)| (key, Some(value.into())));
            let gone = all_keys().into_iter().filter(|key| left.model.get(key).is_none()).map(|key| (key, None));
            let records = again.chain(gone).filter(|(key, _)| left.keys.contains(key)).collect();
            engine.write(left.id, records, LogIndex(left.index)).expect("an open replica takes writes");
        }
        let fold = left.pin_fold(&*engine);
        if early.is_none() {
            let built = left.build(&*engine);
            left.install(&*engine, built);
        }
        left.assert_holds(&*engine);
        left.write(&*engine, &mut choices);
        left.flush(&*engine);
        assert!(left.compact(&*engine, Folding::Logged));
        left.flush(&*engine);
        left.assert_holds(&*engine);
        let base = base_of(&left.durable, fold);
        assert!(base.len() == 1 && base[0].clip == KeyRange::all(), "{base:?}");
        bases.push((fold, base));
    }
    assert!(bases.iter().all(|base| *base == bases[0]), "{bases:?}");
}

/// The new replica's checkpoint is durable already.
fn a_split_that_was_not_installed_is_met_again(storage: &mut Storage<'_>) {
    let mut engine = (storage.open)();
    let mut choices = Choices::new(37);
    let mut left = Part::new(&*engine, storage.format, 545);
    left.go_on(&*engine, &mut choices);
    let (before, records) = (left.durable.clone(), all_keys().into_iter().step_by(3));
    let records: WriteSet = records.map(|key| (key, Some("again".into()))).collect();
    left.write_set(&*engine, records.clone());
    assert!(left.freeze_split(&*engine, &bytes("50"), 546), "nothing else is frozen");
    left.build(&*engine);
    let durable = engine.built_split(left.id).expect("it is built");
    drop(engine);
    engine = (storage.open)();
    engine.hold(Holder::Checkpoint(ReplicaId(546)), &durable.objects().collect::<Vec<_>>());
    left.durable = before;
    left.open(&*engine);
    let reader = engine.reader(left.id).expect("an open replica is readable");
    let all = reader.scan(&KeyRange::all(), usize::MAX, usize::MAX).expect("an open replica is readable");
    assert!(all.iter().any(|(key, _)| key.starts_with(b"9")), "nothing is given up yet");
    drop(reader);
    engine.write(left.id, records, LogIndex(left.index)).expect("an open replica takes writes");
    left.assert_holds(&*engine);
    assert!(left.freeze_split(&*engine, &bytes("50"), 546), "nothing else is frozen");
    let right = Part { durable, ..left.give_up(&bytes("50"), 546) };
    let built = left.build(&*engine);
    left.install(&*engine, built);
    right.open(&*engine);
    let mut parts = [left, right];
    parts.iter_mut().for_each(|part| part.go_on(&*engine, &mut choices));
    restart(storage, engine, &mut choices, &mut parts);
}

fn a_split_waits_for_the_frozen_memtable(storage: &mut Storage<'_>) {
    let engine = (storage.open)();
    let mut choices = Choices::new(19);
    let mut part = Part::new(&*engine, storage.format, 540);
    part.write(&*engine, &mut choices);
    assert!(part.freeze(&*engine));
    assert!(!part.freeze_split(&*engine, &bytes("50"), 541));
    let built = part.build(&*engine);
    assert!(engine.built_split(part.id).is_none());
    part.install(&*engine, built);
    // Nothing was given up.
    part.go_on(&*engine, &mut choices);
    assert!(part.freeze_split(&*engine, &bytes("50"), 541), "it is installed");
    assert!(!part.freeze(&*engine) && !part.freeze_split(&*engine, &bytes("20"), 542), "one is frozen already");
    assert!(engine.built_split(part.id).is_none(), "it is not built");
    let right = part.give_up(&bytes("50"), 541);
    let first = part.build(&*engine);
    let before = engine.built_split(part.id).expect("it is built");
    let again = part.build(&*engine);
    assert_eq!((&again.position, engine.built_split(part.id).as_ref()), (&first.position, Some(&before)));
    let right = Part { durable: before, ..right };
    right.open(&*engine);
    part.install(&*engine, again);
    // The records of another checkpoint are not split.
    part.flush(&*engine);
    for part in [&part, &right] {
        part.assert_holds(&*engine);
    }
    let snapshot = empty_checkpoint(part.id, 99, 1);
    engine.install_snapshot(part.id, &snapshot).expect("it has no objects");
    let mut part = Part { durable: snapshot, keys: KeyRanges::all(), model: Model::default(), index: 99, ..part };
    part.go_on(&*engine, &mut choices);
    assert!(
        engine
            .freeze_split(
                ReplicaId(549),
                position(part.id, 1, 1),
                Bytes::new(),
                SplitOff { at: bytes("5"), position: position(part.id, 1, 1), system: Bytes::new() }
            )
            .is_err(),
        "it is not open"
    );
}

fn what_a_split_built_stays_until_it_is_installed(storage: &mut Storage<'_>) {
    let engine = (storage.open)();
    let mut choices = Choices::new(23);
    let mut left = Part::new(&*engine, storage.format, 550);
    let mut other = Part::new(&*engine, storage.format, 551);
    left.go_on(&*engine, &mut choices);
    assert!(left.freeze_split(&*engine, &bytes(""), 552), "nothing else is frozen");
    let right = left.give_up(&bytes(""), 552);
    let built = left.build(&*engine);
    let right = Part { durable: engine.built_split(left.id).expect("it is built"), ..right };
    let objects: Vec<_> = right.durable.objects().collect();
    // Who had them held lets go.
    let offer = Holder::Offer { from: left.id, to: other.id };
    engine.hold(offer, &objects);
    engine.hold(offer, &[]);
    (0..3).for_each(|_| other.go_on(&*engine, &mut choices));
    assert!(engine.missing(&objects).is_empty());
    engine.hold(Holder::Checkpoint(right.id), &objects);
    left.install(&*engine, built);
    engine.destroy(left.id).expect("an open replica is destroyed");
    other.go_on(&*engine, &mut choices);
    right.open(&*engine);
    right.assert_holds(&*engine);
}

fn a_split_writes_one_run(storage: &mut Storage<'_>) {
    let engine = (storage.open)();
    let mut choices = Choices::new(29);
    let mut left = Part::new(&*engine, storage.format, 560);
    left.go_on(&*engine, &mut choices);
    left.flush(&*engine);
    left.flush(&*engine);
    let before = manifests_of(&left.durable);
    let mut right = left.split(&*engine, &mut choices, &bytes("50"), 561);
    assert_eq!(&manifests_of(&left.durable) | &manifests_of(&right.durable), before, "nothing was frozen");
    left.flush(&*engine);
    for (part, at, new) in [(&mut left, "25", 562), (&mut right, "75", 563)] {
        part.write(&*engine, &mut choices);
        let before = manifests_of(&part.durable);
        let new = part.split(&*engine, &mut choices, &bytes(at), new);
        let after = &manifests_of(&part.durable) | &manifests_of(&new.durable);
        assert_eq!(after.difference(&before).count(), 1, "the run of the frozen records");
    }
}

fn folds_of_both_replicas_give_back_what_clips_hide(storage: &mut Storage<'_>) {
    let engine = (storage.open)();
    let mut choices = Choices::new(31);
    let mut left = Part::new(&*engine, storage.format, 570);
    let value = |number: u64| Some(bytes(&format!("{number} {}", "v".repeat(400))).into());
    left.write_set(&*engine, all_keys().into_iter().map(|key| (key, value(1))).collect());
    left.flush(&*engine);
    let fold = left.pin_fold(&*engine);
    left.flush(&*engine);
    assert!(left.compact(&*engine, Folding::Logged));
    left.flush(&*engine);
    assert_eq!(base_of(&left.durable, fold), tables_of(&left.durable), "one base");
    let manifest = engine.object(tables_of(&left.durable)[0].manifest).expect("it is named");
    let pieces: Vec<_> = Manifest::decode(manifest).expect("it is a manifest").pieces;
    let whole = engine.usage(left.id).checkpoint_bytes;
    let right = left.split(&*engine, &mut choices, &bytes("50"), 571);
    let mut parts = [left, right];
    for part in &mut parts {
        let shown = engine.usage(part.id).checkpoint_bytes;
        assert!(shown < whole * 2 / 3, "{shown} of {whole} bytes");
    }
    let due = |part: &Part| engine.compaction_due(part.id).fold;
    assert!(parts.iter().all(|part| due(part).is_some()), "a fold would give back the other half");
    let held = |part: &Part| {
        let objects = part.durable.tables.objects();
        let manifests = objects.map(|id| Manifest::decode(engine.object(id).expect("named")).expect("a manifest"));
        // Both have the same records of the machine.
        let pieces = manifests.flat_map(|manifest| manifest.pieces);
        let of_users = pieces.filter(|piece| piece.first_key < KeyRange::internal().start);
        of_users.map(|piece| piece.id).collect::<BTreeSet<_>>()
    };
    for part in &mut parts {
        part.pin_fold(&*engine);
        part.flush(&*engine);
        assert!(part.compact(&*engine, Folding::Logged));
        part.flush(&*engine);
        part.assert_holds(&*engine);
        assert!(due(part).is_none(), "nothing is hidden any more");
    }
    assert!(held(&parts[0]).is_disjoint(&held(&parts[1])), "nothing of the other half is needed");
    // Garbage is collected now and then. Overwrites leave none of the old pieces.
    let ids: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
    for round in 2..2 + 4 * FLUSHES {
        for part in &mut parts {
            let keys = all_keys().into_iter().filter(|key| part.keys.contains(key));
            part.write_set(&*engine, keys.map(|key| (key, value(round))).collect());
            part.pin_fold(&*engine);
            part.flush(&*engine);
            part.compact(&*engine, Folding::Logged);
            part.flush(&*engine);
        }
        if ids.iter().all(|id| engine.object(*id).is_err()) {
            return;
        }
    }
    panic!("pieces stay that no replica needs");
}
