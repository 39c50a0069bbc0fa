//! All versions of pieces: round trips, what their bytes are, and hostile ones.

use flotilla_hostile::{Proportion, attack, mutated};
use flotilla_types::ObjectId;
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
};

use super::*;

/// All kinds, with their versions.
const ALL: [(PieceVersion, PieceKind); 5] = [
    (PieceVersion::V1, PieceKind::Chunk),
    (PieceVersion::V1, PieceKind::RunStart),
    (PieceVersion::V1, PieceKind::RunRest),
    (PieceVersion::V2, PieceKind::Chunk),
    (PieceVersion::V2, PieceKind::Run),
];

fn finished(version: PieceVersion, kind: PieceKind, records: &[Record]) -> Finished {
    let mut writer = PieceWriter::new(version, 0);
    records.iter().for_each(|(key, value)| writer.push(key, value.as_ref()));
    writer.finish(kind)
}

pub(super) fn piece(version: PieceVersion, kind: PieceKind, records: &[Record]) -> Bytes {
    finished(version, kind, records).bytes
}

/// The footer of a piece of version 2.
pub(super) fn footer_of(piece: &Bytes) -> Bytes {
    piece.slice(footer::start(piece).unwrap() as usize..)
}

/// Records in many blocks; some are deletions if the kind allows.
pub(super) fn many_records(kind: PieceKind, count: u32) -> Vec<Record> {
    let value = |i: u32| (kind == PieceKind::Chunk || !i.is_multiple_of(7)).then(|| vec![i as u8; 100].into());
    (0..count).map(|i| (format!("key{i:05}").into(), value(i))).collect()
}

/// A few small records with deletions.
pub(super) fn any_records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = || vec(any::<u8>(), 0..12).prop_map(Bytes::from);
    btree_map(bytes(), option::of(bytes().prop_map(Value::from)), 0..12).prop_map(Vec::from_iter)
}

fn read(piece: Bytes) -> Result<Vec<Record>, &'static str> {
    PieceReader::new(piece)?.collect()
}

/// Bytes of a piece as text: printable ones as they are.
fn text(piece: &[u8]) -> String {
    piece.escape_ascii().to_string()
}

#[test]
fn pieces_round_trip_and_keep_empty_values_and_deletions_apart() {
    let records: Vec<Record> = vec![("".into(), Some("1".into())), ("a".into(), Some("".into())), ("b".into(), None)];
    for (version, kind) in [(PieceVersion::V1, PieceKind::RunRest), (PieceVersion::V2, PieceKind::Run)] {
        let bytes = piece(version, kind, &records);
        assert_eq!(PieceKind::and_count(&bytes).map(|(kind, _)| kind), Some(kind));
        assert_eq!(read(bytes).unwrap(), records);
    }
}

/// Pieces are stored and exchanged, so their bytes must not change.
#[test]
fn the_bytes_of_small_pieces_are_these() {
    let records: Vec<Record> =
        vec![("a".into(), Some("12".into())), ("bc".into(), Some("".into())), ("d".into(), None)];
    let records_text = [
        r"\x01\x00\x00\x00\x02\x00\x00\x00a12",
        r"\x02\x00\x00\x00\x00\x00\x00\x00bc",
        r"\x01\x00\x00\x00\xff\xff\xff\xffd",
    ]
    .concat();
    let footer_text = [
        // One block with its first key, and the last key.
        r"\x1e\x00\x00\x00\xa0\x84\xd2\x85\x01\x00\x00\x00a\x01\x00\x00\x00d",
        r"\x00\x02\x08\x00\x80\x80\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00",
        r"\x00\x10\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x04\x00\x00",
        r"\x00\x00\x04\x00\x00\x00\x80\x00\x01\x00\x00\x00\x00\x000\x02",
        r"\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00 \x00\x00\x00\x00@",
        r"\x03\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00*\x00\x00\x00\x03FLPCEND",
    ]
    .concat();
    let first = piece(PieceVersion::V1, PieceKind::RunStart, &records);
    assert_eq!(text(&first), [r"FLPC\x01\x00\x01\x00\x03\x00\x00\x00", &records_text].concat());
    let second = piece(PieceVersion::V2, PieceKind::Run, &records);
    assert_eq!(text(&second), [r"FLPC\x02\x00\x03\x00\x03\x00\x00\x00", &records_text, &footer_text].concat());
}

/// The same for pieces of many blocks: these are their names.
#[test]
fn the_ids_of_large_pieces_are_these() {
    let id = |(version, kind)| ObjectId::of(&piece(version, kind, &many_records(kind, 700))).to_string();
    let ids = [
        "b015e1df24c3c3c22f0f92e0e7e26b77b32e6f5b264a6a390e45e8165c11db04",
        "b46757c134ec1f1a0780cc6723c85084b3f4db017f78918dfcdaaa1b616cd5f9",
        "63e95629f8bacc3f4001c7acbfb92dcf536ffe4ccf48408c9bb25758a4911c68",
        "6a45b2820d6737156135336331c87f64b960dd445693826c8265a1eece53919c",
        "58c1bd83eefd8dc570ee0115729da29d93ed96f336f8e96238e02d6e371a97b1",
    ];
    assert_eq!(ALL.map(id), ids);
}

#[test]
fn a_finished_piece_says_what_is_in_it() {
    for (version, kind) in ALL {
        let records = many_records(kind, 100);
        let Finished { bytes, first_key, records: count, refs, footer } = finished(version, kind, &records);
        assert_eq!((&first_key, count, &refs[..]), (&records[0].0, 100, &[][..]));
        assert_eq!(footer.is_some(), version == PieceVersion::V2);
        if let Some(check) = footer {
            let stored = bytes.slice(bytes.len() - check.len as usize..);
            assert_eq!(stored, footer_of(&bytes));
            assert!(check.matches(&stored) && !check.matches(&stored[1..]));
            assert!((0..stored.len()).all(|at| {
                let mut other = stored.to_vec();
                other[at] ^= 1;
                !check.matches(&other)
            }));
        }
        let empty = finished(version, kind, &[]);
        assert_eq!((empty.first_key, empty.records), (Bytes::new(), 0));
    }
}

/// Cuts of the base must not depend on the version of its pieces.
#[test]
fn sizes_and_hashes_of_unfinished_pieces_are_the_same_in_all_versions() {
    let [mut first, mut second] = [PieceVersion::V1, PieceVersion::V2].map(|version| PieceWriter::new(version, 0));
    assert_eq!((first.last_hash(), second.last_hash()), (None, None));
    for (key, value) in &many_records(PieceKind::Run, 100) {
        first.push(key, value.as_ref());
        second.push(key, value.as_ref());
        assert_eq!(first.len_bytes(), second.len_bytes());
        assert_eq!((first.last_hash(), second.last_hash()), (Some(key_hash(key)), Some(key_hash(key))));
    }
}

#[test]
fn disorder_deletions_in_the_base_and_trailing_bytes_are_rejected() {
    let twice: Vec<Record> = vec![("a".into(), None), ("a".into(), None)];
    for (version, run) in [(PieceVersion::V1, PieceKind::RunStart), (PieceVersion::V2, PieceKind::Run)] {
        assert!(read(piece(version, run, &twice)).is_err());
        assert!(read(piece(version, PieceKind::Chunk, &twice[..1])).is_err());
        assert!(read(piece(version, run, &twice[..1])).is_ok());
        let mut longer = piece(version, run, &twice[..1]).to_vec();
        longer.push(0);
        assert!(read(longer.into()).is_err());
    }
}

#[test]
fn a_kind_of_another_version_is_not_a_piece() {
    for (version, kind) in ALL {
        let mut bytes = piece(version, kind, &[]).to_vec();
        bytes[4] = 3 - bytes[4];
        assert_eq!(PieceKind::and_count(&bytes).is_some(), kind == PieceKind::Chunk);
        bytes[4] = 4;
        assert_eq!(PieceKind::and_count(&bytes), None);
    }
}

#[test]
fn a_piece_is_refused_when_its_footer_is_not_that_of_its_records() {
    let whole = piece(PieceVersion::V2, PieceKind::Run, &many_records(PieceKind::Run, 100));
    let start = footer::start(&whole).unwrap() as usize;
    assert!(PieceIndex::of(&whole).is_ok());
    for at in start..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        assert!(PieceIndex::of(&bytes.into()).is_err(), "byte {} of the footer", at - start);
    }
    let other = piece(PieceVersion::V2, PieceKind::Run, &many_records(PieceKind::Run, 99));
    for start in [0, 11, start - 1, start + 1, whole.len() - footer::TAIL_BYTES + 1, whole.len() + 1] {
        let mut bytes = whole.to_vec();
        let at = bytes.len() - 12;
        bytes[at..at + 4].copy_from_slice(&(start as u32).to_le_bytes());
        let is_inside = (PIECE_HEADER_BYTES..=whole.len() - footer::TAIL_BYTES).contains(&start);
        assert_eq!(PieceReader::new(bytes.clone().into()).is_ok(), is_inside, "{start}");
        assert!(PieceIndex::of(&bytes.into()).is_err(), "{start}");
    }
    let exchanged = [&whole[..start], &footer_of(&other)].concat();
    assert!(PieceIndex::of(&exchanged.into()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_and_say_everything_about_their_piece(
        records in btree_map(vec(0u8..4, 0..6), option::of(vec(any::<u8>(), 0..2_000)), 0..40),
        place in select(&ALL[..]),
    ) {
        let (version, kind) = place;
        let may_delete = kind != PieceKind::Chunk;
        let records: Vec<Record> = records
            .into_iter()
            .filter(|(_, value)| may_delete || value.is_some())
            .map(|(key, value)| (key.into(), value.map(Value::from)))
            .collect();
        let bytes = piece(version, kind, &records);
        prop_assert_eq!(&read(bytes.clone()), &Ok(records.clone()));
        prop_assert_eq!(&piece(version, kind, &records), &bytes);
        let index = PieceIndex::of(&bytes).unwrap();
        if version == PieceVersion::V2 {
            prop_assert_eq!(PieceIndex::from_footer(kind, &footer_of(&bytes)), Ok(index));
        }
    }
}

fn any_refs() -> impl Strategy<Value = Refs> {
    vec((0_u8..5, 0..=ObjectRef::HEIGHT_MAX, any::<u64>()), 0..4).prop_map(|refs| {
        let of = |(id, height, bytes)| ObjectRef { id: ObjectId::of(&[id]), height, bytes };
        refs.into_iter().map(of).collect()
    })
}

/// Records of which some refer to objects.
fn any_referring_records() -> impl Strategy<Value = Vec<Record>> {
    let value = (vec(any::<u8>(), 0..12), any_refs()).prop_map(|(bytes, refs)| Value::new(bytes, refs));
    btree_map(vec(any::<u8>(), 0..12).prop_map(Bytes::from), option::of(value), 0..12).prop_map(Vec::from_iter)
}

fn refs_in(records: &[Record]) -> Vec<ObjectRef> {
    let values = records.iter().filter_map(|(_, value)| value.as_ref());
    let refs: std::collections::BTreeSet<_> = values.flat_map(|value| value.refs().to_vec()).collect();
    refs.into_iter().collect()
}

/// Pieces are stored and exchanged, so their bytes must not change.
#[test]
fn the_bytes_of_a_record_with_references_are_these() {
    let refs = [ObjectRef { id: ObjectId([7; 32]), height: 2, bytes: 258 }].into_iter().collect::<Refs>();
    let records = vec![("a".into(), Some(Value::new("12", refs.clone()))), ("b".into(), Some("3".into()))];
    let bytes = piece(PieceVersion::V2, PieceKind::Run, &records);
    let expected = [
        r"FLPC\x03\x00\x03\x00\x02\x00\x00\x00",
        r"\x01\x00\x00\x00\x02\x00\x00\x80a12\x01\x00",
        &r"\x07".repeat(32),
        r"\x02\x02\x01\x00\x00\x00\x00\x00\x00",
        r"\x01\x00\x00\x00\x01\x00\x00\x00b3",
    ]
    .concat();
    assert_eq!(text(&bytes[..footer::start(&bytes).unwrap() as usize]), expected);
    assert_eq!(read(bytes.clone()), Ok(records.clone()));
    assert_eq!(refs_of(bytes.clone()), Ok(refs.to_vec()));
    assert_eq!(finished(PieceVersion::V2, PieceKind::Run, &records).refs, [ObjectId([7; 32])]);
    // Readers see the values alone.
    let index = PieceIndex::of(&bytes).unwrap();
    let block = index.block(0).unwrap();
    let block = bytes.slice(block.offset as usize..(block.offset + block.len) as usize);
    assert_eq!(record_in(&block, b"a"), Ok(Some(Some("12".into()))));
    assert_eq!(record_in(&block, b"b"), Ok(Some(Some("3".into()))));
    assert_eq!(records_in(&block).unwrap().len(), 2);
    // The version says whether there are references, and nothing else may.
    for version in [1, 2] {
        let mut bytes = bytes.to_vec();
        bytes[4] = version;
        bytes[6] = if version == 1 { 1 } else { 3 };
        assert!(read(bytes.into()).is_err(), "version {version}");
    }
    let mut without = piece(PieceVersion::V2, PieceKind::Run, &records[1..]).to_vec();
    without[4] = 3;
    assert!(read(without.into()).is_err(), "a piece of version 3 without references");
}

#[test]
fn hostile_pieces_with_references_are_read_in_proportion_and_have_one_encoding() {
    let valid = any_referring_records().prop_map(|records| piece(PieceVersion::V2, PieceKind::Run, &records));
    attack(200, any_referring_records(), |records| {
        let bytes = piece(PieceVersion::V2, PieceKind::Run, &records);
        assert_eq!(read(bytes.clone()), Ok(records.clone()));
        assert_eq!(refs_of(bytes.clone()), Ok(refs_in(&records)));
        let index = PieceIndex::of(&bytes).unwrap();
        assert_eq!(PieceIndex::from_footer(PieceKind::Run, &footer_of(&bytes)), Ok(index));
    });
    attack(2_000, mutated(valid), |bytes| {
        let whole = Bytes::from(bytes);
        let refs = Proportion::DEFAULT.of(whole.len(), || refs_of(whole.clone()));
        if let Ok(index) = Proportion::DEFAULT.of(whole.len(), || PieceIndex::of(&whole)) {
            let records = read(whole.clone()).unwrap();
            let header = Header::of(&whole).unwrap();
            assert_eq!(piece(header.version, header.kind, &records), whole, "the records are the whole piece");
            assert_eq!((index.kind, refs), (header.kind, Ok(refs_in(&records))));
        }
    });
}

#[test]
fn hostile_pieces_are_read_in_proportion_and_in_order() {
    let valid = (any_records(), select(&ALL[..])).prop_map(|(records, (version, kind))| piece(version, kind, &records));
    attack(2_000, mutated(valid), |bytes| {
        let whole = Bytes::from(bytes);
        let records = Proportion::DEFAULT.of(whole.len(), || read(whole.clone()));
        let index = Proportion::DEFAULT.of(whole.len(), || PieceIndex::of(&whole));
        if let Ok(records) = &records {
            assert!(records.is_sorted_by(|left, right| left.0 < right.0));
        }
        if let Ok(index) = index {
            let header = Header::of(&whole).unwrap();
            assert_eq!(piece(header.version, header.kind, &records.unwrap()), whole, "the records are the whole piece");
            assert_eq!(index.kind, header.kind);
        } else if records.is_ok() {
            assert_ne!(Header::of(&whole).unwrap().version, PieceVersion::V1, "only a footer can be wrong");
        }
    });
}
