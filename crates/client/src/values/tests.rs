//! Puts and gets against a gateway that keeps everything in memory.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    time::Duration,
};

use bytes::Bytes;
use flotilla_fake_gateway::FakeGateway;
use flotilla_types::ObjectId;
use flotilla_values::Chunking;
use tempfile::TempDir;

use super::{LocalValue, ValueCache, ValueReader, ValueSource};
use crate::{Client, ClientError, ClientOptions, PutOptions, StoredValue};

const MIB: usize = 1 << 20;
const COLLECTION: &str = "default";

/// Bytes without any pattern, the same ones for a seed.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

fn client(gateways: &[&FakeGateway]) -> Client {
    let endpoints = gateways.iter().map(|gateway| gateway.endpoint());
    let options = ClientOptions { value_timeout: Duration::from_secs(60), ..ClientOptions::new(endpoints) };
    Client::new(options).expect("a client")
}

async fn prepare(client: &Client, content: &[u8]) -> LocalValue {
    client.prepare(COLLECTION, Bytes::copy_from_slice(content)).await.expect("a value")
}

async fn put(client: &Client, key: &str, content: &[u8]) -> StoredValue {
    let value = prepare(client, content).await;
    client.put_value(COLLECTION, key.as_bytes(), &value, &PutOptions::default()).await.expect("stored")
}

async fn read(reader: &mut ValueReader) -> Vec<u8> {
    let mut read = Vec::new();
    reader.copy_to(&mut read).await.expect("a value");
    read
}

async fn get(client: &Client, key: &str, cache: Option<&ValueCache>) -> (Vec<u8>, ValueReader) {
    let found = client.get_value(COLLECTION, key.as_bytes(), cache).await.expect("an answer");
    let mut reader = found.expect("a record");
    (read(&mut reader).await, reader)
}

fn cache() -> (TempDir, ValueCache) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = ValueCache::open(folder.path().join("cache"), 1 << 30).expect("a cache");
    (folder, cache)
}

#[tokio::test]
async fn an_unchanged_value_costs_one_question_and_a_change_what_changed() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let mut content = random(1, 24 * MIB);
    let first = put(&client, "v1", &content).await;
    assert_eq!(first.transfer.objects_here, 0);
    assert_eq!(gateway.get(COLLECTION, b"v1").expect("a record").0, content);
    assert!(first.transfer.sent_bytes >= content.len() as u64);

    gateway.take_traffic();
    let again = put(&client, "v2", &content).await;
    let traffic = gateway.take_traffic();
    assert_eq!((traffic.calls, traffic.batches, again.transfer.objects_moved), (2, 0, 0));
    assert!(traffic.received + traffic.sent < content.len() as u64 / 500, "{traffic:?} is 0.2% or more");
    assert!(traffic.received >= again.transfer.sent_bytes, "{traffic:?} {again:?}");

    content.splice(10 * MIB..10 * MIB, random(2, 100));
    let changed = put(&client, "v3", &content).await;
    let traffic = gateway.take_traffic();
    assert_eq!(gateway.get(COLLECTION, b"v3").expect("a record").0, content);
    assert!(changed.transfer.objects_moved <= 8, "{changed:?}");
    assert!(traffic.received < content.len() as u64 / 100, "{traffic:?}");
    assert!(changed.transfer.saved_bytes() > content.len() as u64 / 100 * 99);
}

#[tokio::test]
async fn a_small_value_goes_as_a_whole_in_one_call() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let stored = put(&client, "k", b"small").await;
    assert_eq!((stored.transfer.sent_bytes, gateway.take_traffic().calls), (5, 1));
    put(&client, "k", &random(1, 4_096)).await;
    assert_eq!(gateway.objects(), 0, "the collection stores longer ones in objects");
    put(&client, "k", &random(1, 4_097)).await;
    assert_eq!((gateway.objects(), gateway.reference(COLLECTION, b"k").map(|value| value.bytes())), (1, Some(4_097)));
}

#[tokio::test]
async fn a_value_goes_as_a_whole_to_nodes_that_do_not_know_the_calls() {
    let gateway = FakeGateway::start().await;
    gateway.forget_the_calls_about_objects();
    let client = client(&[&gateway]);
    let content = random(1, 3 * MIB);
    let stored = put(&client, "k", &content).await;
    assert_eq!(gateway.get(COLLECTION, b"k").expect("a record").0, content);
    assert!(stored.transfer.sent_bytes >= content.len() as u64);
    gateway.take_traffic();
    put(&client, "k", &content).await;
    assert_eq!(gateway.take_traffic().calls, 1, "that they do not is remembered");

    let value = prepare(&client, &random(2, 5 * MIB)).await;
    let refused = client.put_value(COLLECTION, b"k", &value, &PutOptions::default()).await;
    let problem = refused.expect_err("it is too long");
    assert_eq!(problem.problem().expect("a problem").status, 413);
    let (_folder, cache) = cache();
    assert!(get(&client, "k", Some(&cache)).await.0 == content);
}

#[tokio::test]
async fn a_collection_that_cuts_otherwise_gets_its_cuts_or_the_whole_value() {
    let gateway = FakeGateway::start().await;
    let content = random(1, 3 * MIB);
    gateway.set_chunking(Chunking::AVERAGE_64_KIB, Some("16KiB/64KiB/256KiB"));
    let stored = put(&client(&[&gateway]), "k", &content).await;
    assert!((10..100).contains(&stored.transfer.objects_moved), "{stored:?}");
    assert_eq!(gateway.reference(COLLECTION, b"k").expect("a reference").bytes(), content.len() as u64);

    // It says what this client does not know, or not what it does.
    for chunk in ["by lines", "4KiB/16KiB/64KiB"] {
        gateway.set_chunking(Chunking::AVERAGE_256_KIB, Some(chunk));
        put(&client(&[&gateway]), chunk, &content).await;
        assert!(gateway.get(COLLECTION, chunk.as_bytes()).expect("a record").0 == content, "{chunk}");
    }
}

#[tokio::test]
async fn equal_parts_of_a_value_travel_once_and_an_empty_one_is_a_value() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let content = [random(1, 100_000).repeat(30), vec![0; 5 * MIB]].concat();
    let stored = put(&client, "k", &content).await;
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == content);
    assert!(stored.transfer.sent_bytes < 400_000, "{stored:?}");
    put(&client, "empty", b"").await;
    let (_folder, cache) = cache();
    for cache in [None, Some(&cache)] {
        assert!(get(&client, "k", cache).await.0 == content);
        assert_eq!(get(&client, "empty", cache).await.0, b"");
    }
}

#[tokio::test]
async fn an_upload_that_ended_is_begun_again() {
    let gateway = FakeGateway::start().await;
    gateway.end_uploads_after(2);
    let content = random(1, 6 * MIB);
    put(&client(&[&gateway]), "k", &content).await;
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == content);
}

#[tokio::test]
async fn calls_that_fail_are_repeated() {
    let gateway = FakeGateway::start().await;
    let content = random(1, 3 * MIB);
    gateway.fail("/v1/rpc", 2, 503);
    gateway.fail("/v1/uploads", 2, 503);
    gateway.fail("/v1/kv/", 2, 409);
    put(&client(&[&gateway]), "k", &content).await;
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == content);
}

#[tokio::test]
async fn another_node_takes_over_if_one_fails() {
    let (first, second) = (FakeGateway::start().await, FakeGateway::start().await);
    let client = client(&[&first, &second]);
    first.fail("/v1/uploads", u32::MAX, 503);
    let content = random(1, 3 * MIB);
    put(&client, "k", &content).await;
    assert!(second.get(COLLECTION, b"k").expect("a record").0 == content);
    assert!(first.get(COLLECTION, b"k").is_none());
}

#[tokio::test]
async fn a_condition_that_does_not_hold_is_an_error_and_a_media_type_is_kept() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let value = prepare(&client, &random(1, MIB)).await;
    let media_type = Some("application/x-tar".to_owned());
    let options = PutOptions { if_absent: true, media_type, ..PutOptions::default() };
    client.put_value(COLLECTION, b"k", &value, &options).await.expect("there was none");
    assert_eq!(gateway.get(COLLECTION, b"k").expect("a record").1, "application/x-tar");
    let again = client.put_value(COLLECTION, b"k", &value, &options).await;
    assert_eq!(again.expect_err("there is one").problem().expect("a problem").status, 412);

    let (_folder, cache) = cache();
    for cache in [None, Some(&cache)] {
        assert_eq!(get(&client, "k", cache).await.1.media_type.as_deref(), Some("application/x-tar"));
    }
    for bad in ["", "a\nb", flotilla_api::VALUE_REF_MEDIA_TYPE, &"x".repeat(256)] {
        let options = PutOptions { media_type: Some(bad.to_owned()), ..PutOptions::default() };
        let put = client.put_value(COLLECTION, b"k", &value, &options).await;
        assert!(matches!(put, Err(ClientError::InvalidMediaType(_))), "{bad:?}");
    }
}

#[tokio::test]
async fn what_can_be_compressed_is_compressed() {
    let gateway = FakeGateway::start().await;
    let text: Vec<u8> = (0..200_000_u32).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
    let client = client(&[&gateway]);
    let stored = put(&client, "k", &text).await;
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == text);
    let traffic = gateway.take_traffic();
    // Lists consist of ids, which do not get shorter.
    assert!(traffic.compressed >= 2 && traffic.compressed + 1 >= traffic.batches, "{traffic:?}");
    assert!(stored.transfer.sent_bytes < text.len() as u64 / 2, "{stored:?}");
    let (_folder, cache) = cache();
    let (read, reader) = get(&client, "k", Some(&cache)).await;
    assert!(read == text && reader.transfer().received_bytes < text.len() as u64, "{:?}", reader.transfer());
}

#[tokio::test]
async fn a_file_is_read_in_pieces_and_one_that_changes_is_not_stored() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let content = random(1, 3 * MIB);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&content).expect("written");
    client.put_file(COLLECTION, b"k", file.path(), &PutOptions::default()).await.expect("stored");
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == content);

    let source = ValueSource::open(file.path()).await.expect("a file");
    file.write_all(b"more").expect("written");
    let value = client.prepare(COLLECTION, source).await.expect("a value");
    assert_eq!(value.bytes(), content.len() as u64, "what is appended later does not count");

    let replaced = random(2, 3 * MIB);
    std::fs::write(file.path(), &replaced).expect("written");
    let value =
        client.prepare(COLLECTION, ValueSource::open(file.path()).await.expect("a file")).await.expect("a value");
    for changed in [&random(3, 3 * MIB)[..], &replaced[..MIB]] {
        std::fs::write(file.path(), changed).expect("written");
        let put = client.put_value(COLLECTION, b"k", &value, &PutOptions::default()).await;
        assert!(matches!(put, Err(ClientError::SourceChanged)), "{put:?}");
    }
    assert!(gateway.get(COLLECTION, b"k").expect("a record").0 == content);
}

#[tokio::test]
async fn a_stream_is_read_to_its_end_in_memory_or_in_a_file() {
    for bytes in [0, 5, MIB, 3 * MIB + 1] {
        let content = random(1, bytes);
        let source = ValueSource::read(&content[..]).await.expect("a stream");
        assert_eq!((source.len(), source.is_empty()), (bytes as u64, bytes == 0));
        let read: Vec<u8> = source.pieces().flat_map(|piece| piece.expect("bytes")).collect();
        assert!(read == content, "{bytes}");
        let (mut reader, mut read) = (source.reader(), Vec::new());
        reader.seek(SeekFrom::End(-(bytes as i64 / 3))).expect("a place");
        reader.read_to_end(&mut read).expect("bytes");
        assert!(read == content[bytes - bytes / 3..], "{bytes}");
        assert!(source.slice(bytes as u64, 1).is_err() && source.slice(u64::MAX, 1).is_err());
    }
    let endless = ValueSource::read(tokio::io::repeat(0)).await;
    assert_eq!(endless.expect_err("it is too long").kind(), std::io::ErrorKind::FileTooLarge);
}

#[tokio::test]
async fn only_objects_that_the_cache_lacks_are_fetched() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let mut content = random(1, 8 * MIB);
    gateway.put(COLLECTION, b"k", &content);
    let (_folder, cache) = cache();
    let (read, reader) = get(&client, "k", Some(&cache)).await;
    assert!(read == content && reader.bytes == Some(content.len() as u64));
    assert_eq!(reader.transfer().objects_here, 0);

    gateway.take_traffic();
    let (read, reader) = get(&client, "k", Some(&cache)).await;
    let traffic = gateway.take_traffic();
    assert!(read == content && traffic.calls == 1, "{traffic:?}");
    assert!(traffic.sent + traffic.received < 2_000, "{traffic:?}");
    assert_eq!((reader.transfer().objects_moved, reader.transfer().value_bytes), (0, content.len() as u64));

    content.splice(MIB..MIB, random(2, 100));
    gateway.put(COLLECTION, b"k", &content);
    let (read, reader) = get(&client, "k", Some(&cache)).await;
    let traffic = gateway.take_traffic();
    assert!(read == content && traffic.sent < content.len() as u64 / 20, "{traffic:?}");
    assert!(reader.transfer().objects_moved <= 8, "{:?}", reader.transfer());
    assert!(get(&client, "k", None).await.0 == content);
}

#[tokio::test]
async fn damage_in_the_cache_is_fetched_again_and_damage_at_a_node_is_refused() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let content = random(1, 2 * MIB);
    gateway.put(COLLECTION, b"k", &content);
    let (folder, cache) = cache();
    get(&client, "k", Some(&cache)).await;
    let files: Vec<_> = std::fs::read_dir(folder.path().join("cache"))
        .expect("a folder")
        .flat_map(|folder| std::fs::read_dir(folder.expect("a folder").path()).expect("a folder"))
        .map(|file| file.expect("a file").path())
        .collect();
    for file in files.iter().step_by(2) {
        File::create(file).expect("a file").write_all(b"damage").expect("written");
    }
    let (read, reader) = get(&client, "k", Some(&cache)).await;
    assert!(read == content);
    assert_eq!(reader.transfer().objects_moved, files.len().div_ceil(2) as u64);

    gateway.damage_an_object();
    let (_folder, empty) = self::cache();
    let mut reader = client.get_value(COLLECTION, b"k", Some(&empty)).await.expect("an answer").expect("a record");
    let mut sink = Vec::new();
    let error = reader.copy_to(&mut sink).await.expect_err("an object is not what its id says");
    assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_record_that_changes_while_it_is_read_is_told() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    // More than are fetched ahead.
    gateway.put(COLLECTION, b"k", &random(1, 16 * MIB));
    let (_folder, cache) = cache();
    let mut reader = client.get_value(COLLECTION, b"k", Some(&cache)).await.expect("an answer").expect("a record");
    reader.chunk().await.expect("a chunk");
    gateway.put(COLLECTION, b"k", b"another");
    let error = reader.copy_to(&mut tokio::io::sink()).await.expect_err("its objects are not served any more");
    assert!(matches!(error, ClientError::RecordChanged) && error.is_retryable(), "{error:?}");
    assert_eq!(get(&client, "k", Some(&cache)).await.0, b"another");
}

#[tokio::test]
async fn a_stored_value_is_recognized_by_its_reference() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let content = random(1, 8 * MIB);
    for key in ["large", ".", "small"] {
        gateway.put(COLLECTION, key.as_bytes(), if key == "large" { &content } else { b"12345" });
    }
    let has = async |key: &str, content: &[u8]| {
        let value = prepare(&client, content).await;
        client.has_value(COLLECTION, key.as_bytes(), &value).await.expect("an answer")
    };
    gateway.take_traffic();
    assert!(has("large", &content).await);
    assert!(gateway.take_traffic().sent < 2_000, "no content has to travel");
    assert!(!has("large", &content[1..]).await && !has("large", &random(2, 8 * MIB)).await);
    assert!(!has("large", b"12345").await && !has("small", &content).await && !has("none", b"").await);
    assert!(has("small", b"12345").await && !has("small", b"12346").await && !has("small", b"1234").await);
}

#[tokio::test]
async fn objects_that_are_gone_from_a_node_are_sent_again() {
    let gateway = FakeGateway::start().await;
    let client = client(&[&gateway]);
    let content = random(1, 8 * MIB);
    put(&client, "k", &content).await;
    let all = gateway.objects();
    let lost = |id: ObjectId| id.as_bytes()[0] < 64;
    gateway.lose_objects(lost);
    let gone = all - gateway.objects();
    let value = prepare(&client, &content).await;
    assert_eq!(value.bytes_there(), 0);
    let stored = client.put_value(COLLECTION, b"again", &value, &PutOptions::default()).await.expect("stored");
    assert_eq!((stored.transfer.objects_moved, gateway.objects()), (gone as u64, all));
    assert_eq!(value.bytes_there(), value.bytes());
    assert!(gone > 0 && gateway.get(COLLECTION, b"again").expect("a record").0 == content);
}
