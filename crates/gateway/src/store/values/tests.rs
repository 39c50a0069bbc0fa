//! Writing and reading values over objects in memory.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use flotilla_values::{Chunking, List, ValueRef};
use futures_util::TryStreamExt as _;

use super::{memory::MemoryObjects, reader::AHEAD_MAX, *};

const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_secs(30);

/// Bytes that no two parts have in common.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

async fn write(values: &Values, content: &[u8], piece: usize) -> (ValueRef, Hold) {
    let mut writer = writer(values, u64::MAX);
    for piece in content.chunks(piece) {
        writer.push(Bytes::copy_from_slice(piece)).await.expect("stored");
    }
    let (value, hold) = writer.finish().await.expect("stored");
    hold.sync().await.expect("durable");
    (value, hold)
}

fn writer(values: &Values, bytes_max: u64) -> ValueWriter {
    ValueWriter::new(Hold::begin(values).expect("an upload"), Chunking::default(), bytes_max)
}

async fn read(values: &Values, value: &ValueRef, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
    let reader = ValueReader::open(values, value, range, Vec::new(), SOON).await?;
    Ok(reader.into_stream().try_collect::<Vec<_>>().await?.concat())
}

#[tokio::test]
async fn a_value_is_read_as_it_was_written_in_whole_and_in_parts() {
    let here = Arc::new(MemoryObjects::default());
    let values = here.values(Vec::new());
    for bytes in [0, 1, 5_000, 300_000, 3 * MIB] {
        let content = content(bytes);
        let (value, hold) = write(&values, &content, 7_777).await;
        here.collect();
        assert!(here.is_durable(), "{bytes}");
        let all = bytes as u64;
        for range in
            [0..all, 0..all.min(1), all / 2..all / 2 + all.min(9) / 2, all.saturating_sub(70_000)..all, all..all]
        {
            let part = content[range.start as usize..range.end as usize].to_vec();
            assert_eq!(read(&values, &value, range.clone()).await, Ok(part), "{range:?}");
        }
        drop(hold);
        here.collect();
        assert_eq!((here.ids().len(), here.uploads().len()), (0, 0), "nothing holds it any more");
    }
}

#[tokio::test]
async fn a_value_that_is_too_long_is_refused_and_leaves_nothing() {
    let here = Arc::new(MemoryObjects::default());
    let mut writer = writer(&here.values(Vec::new()), MIB as u64);
    let content = Bytes::from(content(MIB + 1));
    assert_eq!(writer.push(content.slice(..MIB)).await, Ok(()));
    assert!(!here.ids().is_empty(), "it is stored while it arrives");
    assert_eq!(writer.push(content.slice(MIB..)).await, Err(StoreError::ValueTooLarge { limit_bytes: MIB as u64 }));
    drop(writer);
    here.collect();
    assert!(here.ids().is_empty());
}

#[tokio::test]
async fn a_writer_keeps_one_batch_and_nothing_once_it_has_settled() {
    let here = Arc::new(MemoryObjects::default());
    let mut writer = writer(&here.values(Vec::new()), u64::MAX);
    for piece in content(2 * MIB + 1_000).chunks(50_000) {
        writer.push(Bytes::copy_from_slice(piece)).await.expect("stored");
        assert!(writer.batch_bytes() <= 256 << 10);
    }
    assert!(writer.batch_bytes() > 0);
    writer.settle().await.expect("stored");
    assert_eq!(writer.batch_bytes(), 0);
}

#[tokio::test]
async fn a_writer_does_not_keep_the_buffers_of_short_pieces() {
    let here = Arc::new(MemoryObjects::default());
    let mut writer = writer(&here.values(Vec::new()), u64::MAX);
    let buffer = Bytes::from(vec![7; MIB]);
    for _ in 0..100 {
        writer.push(buffer.slice(..1)).await.expect("kept");
    }
    assert!(buffer.is_unique());
}

#[tokio::test]
async fn what_is_absent_is_fetched_and_held_while_it_is_read() {
    let (there, here) = (Arc::new(MemoryObjects::default()), Arc::new(MemoryObjects::default()));
    let content = content(3 * MIB);
    let (value, _hold) = write(&there.values(Vec::new()), &content, MIB).await;
    assert!(matches!(value.list(), List::Root(_)));
    let values = here.values(vec![there.clone()]);
    let reader = ValueReader::open(&values, &value, 0..value.bytes(), Vec::new(), SOON).await.expect("fetched");
    there.remove(value.refs()[0].id);
    here.collect();
    assert_eq!(reader.into_stream().try_collect::<Vec<_>>().await.expect("held").concat(), content);
    here.collect();
    let again = read(&values, &value, 0..value.bytes()).await;
    assert_eq!(again, Ok(content), "it is kept for the next reader, whom nobody else could serve");
    // Until others came.
    for byte in 0..KEPT_MAX as u8 {
        let (other, _hold) = write(&there.values(Vec::new()), &[byte; 10], 10).await;
        assert_eq!(read(&values, &other, 0..10).await, Ok(vec![byte; 10]));
    }
    assert_eq!(here.uploads().len(), KEPT_MAX);
    here.collect();
    let missing = read(&values, &value, 0..value.bytes()).await;
    assert_eq!(missing, Err(StoreError::ObjectsMissing { missing: value.refs().ids().collect() }));
}

/// Objects are found damaged when they are read: they are here when a reader is opened, and are not later.
#[tokio::test]
async fn what_is_damaged_while_it_is_read_comes_from_elsewhere() {
    let (there, here) = (Arc::new(MemoryObjects::default()), Arc::new(MemoryObjects::default()));
    let content = content(3 * MIB);
    let (value, _hold) = write(&there.values(Vec::new()), &content, MIB).await;
    for others in [vec![there.clone()], Vec::new()] {
        for range in [0..value.bytes(), value.bytes() / 2..value.bytes() / 2 + 100_000] {
            let values = here.values(others.clone());
            write(&values, &content, MIB).await.1.leave();
            let reader = ValueReader::open(&values, &value, range.clone(), Vec::new(), SOON).await.expect("here");
            here.ids().into_iter().for_each(|id| here.remove(id));
            let read = reader.into_stream().try_collect::<Vec<_>>().await.map(|parts| parts.concat());
            let part = content[range.start as usize..range.end as usize].to_vec();
            let expected = if others.is_empty() { Err(StoreError::ObjectsUnavailable) } else { Ok(part) };
            assert!(read == expected, "{range:?} with {} other nodes: {:?}", others.len(), read.map(|read| read.len()));
        }
    }
}

#[tokio::test]
async fn what_is_read_stays_to_its_end_although_nothing_else_holds_it_any_more() {
    let here = Arc::new(MemoryObjects::default());
    let values = here.values(Vec::new());
    let content = content(3 * MIB);
    for range in [0..content.len() as u64, 5..200_000] {
        let (value, hold) = write(&values, &content, MIB).await;
        let reader = ValueReader::open(&values, &value, range.clone(), Vec::new(), SOON).await.expect("here");
        drop(hold);
        here.collect();
        let read = reader.into_stream().try_collect::<Vec<_>>().await.expect("held").concat();
        assert!(read == content[range.start as usize..range.end as usize]);
        here.collect();
        assert!(here.ids().is_empty());
    }
}

#[tokio::test]
async fn a_small_part_reads_its_chunks_and_the_lists_on_its_way() {
    let here = Arc::new(MemoryObjects::default());
    let values = here.values(Vec::new());
    let content = content(8 * MIB);
    let (value, _hold) = write(&values, &content, MIB).await;
    let before = here.reads();
    assert_eq!(read(&values, &value, 100..101).await.as_deref(), Ok(&content[100..101]));
    assert!(here.reads() - before <= 3, "root, leaf, chunk: {}", here.reads() - before);
    // Of what the part needs, a chunk is missing.
    let last = value.bytes() - 1..value.bytes();
    for id in here.ids() {
        let is_chunk = here.object(id).is_ok_and(|bytes| !bytes.starts_with(b"FLVL"));
        if is_chunk {
            here.remove(id);
        }
    }
    assert!(
        matches!(read(&values, &value, last).await, Err(StoreError::ObjectsMissing { missing }) if missing.len() == 1)
    );
}

#[tokio::test]
async fn chunks_are_read_a_few_ahead_of_a_client_that_does_not_read() {
    let here = Arc::new(MemoryObjects::default());
    let values = here.values(Vec::new());
    let (value, _hold) = write(&values, &content(8 * MIB), MIB).await;
    let mut reader = ValueReader::open(&values, &value, 0..value.bytes(), Vec::new(), SOON).await.expect("here");
    let before = here.reads();
    reader.next().await.expect("a chunk").expect("a chunk");
    // Whatever is under way has all of the disk's turns before this.
    let all = values.in_work.acquire_many(IN_WORK_BYTES_MAX as u32).await.expect("all turns");
    assert!(here.reads() - before <= 2 + 1 + AHEAD_MAX, "{}", here.reads() - before);
    drop(all);
    assert!(reader.next().await.expect("a chunk").is_some());
}

#[tokio::test]
async fn an_upload_that_a_client_began_outlives_the_call_and_one_that_ended_is_refused() {
    let here = Arc::new(MemoryObjects::default());
    let values = here.values(Vec::new());
    let hold = Hold::begin(&values).expect("an upload");
    let upload = hold.upload();
    hold.leave();
    drop(Hold::of(&values, upload).expect("it goes on"));
    assert_eq!(here.uploads(), [upload]);
    here.end_upload(upload);
    assert_eq!(Hold::of(&values, upload).err(), Some(StoreError::UploadEnded));
}
