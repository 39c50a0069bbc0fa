//! Ids that no release may change: values that are cut otherwise share nothing with those that are stored.

use flotilla_types::ObjectId;

use super::{cut, random};
use crate::{Chunking, ObjectKind};

/// One line for a content: the lengths of the first chunks, how many objects there are, and hashes of all ids
/// and of the reference.
fn line(chunking: Chunking, content: &[u8]) -> String {
    let (value, objects) = cut(chunking, content);
    let is_chunk = |kind: &ObjectKind| matches!(kind, ObjectKind::Chunk { .. });
    let lens = objects.iter().filter(|object| is_chunk(&object.kind)).take(4).map(|object| object.bytes.len());
    let ids: Vec<u8> = objects.iter().flat_map(|object| *object.id.as_bytes()).collect();
    let hash = |bytes: &[u8]| ObjectId::of(bytes).to_string()[..16].to_owned();
    format!("{:?} {} {} {}", lens.collect::<Vec<_>>(), objects.len(), hash(&ids), hash(&value.encode()))
}

/// Text as programs write it.
fn text() -> Vec<u8> {
    (0..60_000_u32)
        .flat_map(|n| format!("{{\"id\": {n}, \"name\": \"item {}\"}}\n", n * n % 977).into_bytes())
        .collect()
}

#[test]
fn no_release_cuts_differently() {
    let contents = [random(1, 0), random(1, 1), random(1, 100_000), random(1, 3 << 20), vec![0; 3 << 20], text()];
    let chunkings = [Chunking::AVERAGE_16_KIB, Chunking::AVERAGE_64_KIB, Chunking::AVERAGE_256_KIB];
    let lines: Vec<_> =
        chunkings.iter().flat_map(|chunking| contents.iter().map(|content| line(*chunking, content))).collect();
    assert_eq!(lines, GOLDEN, "\n{lines:#?}");
}

const GOLDEN: [&str; 18] = [
    "[] 0 af1349b9f5f9a1a6 b88dbcca2e5c0ec6",
    "[1] 1 3a43381a563caf10 3307c411efb3aaa4",
    "[27178, 7652, 41830, 6744] 5 79933f9992c322b3 5dab26ce906e31bb",
    "[27178, 7652, 41830, 6744] 155 76f60c1e353149d4 f1a9a6feb79acc2f",
    "[65536, 65536, 65536, 65536] 48 cfe807f491012ccd c89ac4dc811bcfbc",
    "[18471, 20860, 43217, 13251] 104 31ee3935d55410c6 8c61368b2ad94a49",
    "[] 0 af1349b9f5f9a1a6 b88dbcca2e5c0ec6",
    "[1] 1 3a43381a563caf10 3307c411efb3aaa4",
    "[76660, 23340] 2 33ac6bbdf3728547 9e5d70b4e591703e",
    "[76660, 159933, 188476, 66903] 38 4e563a458e202810 8a1b7f321661695b",
    "[262144, 262144, 262144, 262144] 12 0a7be7e191b07f78 65a3df645944aca4",
    "[95799, 93001, 86014, 93133] 25 03e786817cd5fe7c f4c266b7d0975e3f",
    "[] 0 af1349b9f5f9a1a6 b88dbcca2e5c0ec6",
    "[1] 1 3a43381a563caf10 3307c411efb3aaa4",
    "[100000] 1 af820204099da822 87d78eae816a4501",
    "[491952, 274245, 519854, 255535] 9 64a46ef03e0543d2 e298678f8b28e846",
    "[1048576, 1048576, 1048576] 3 b8c7ede8af4f607f 776d4d88b73f9d36",
    "[278754, 506521, 77642, 444355] 7 3beb358aa7e64477 a71224380c9c3759",
];
