//! Transfers against a gateway in memory.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use flotilla_client::{Client, ClientOptions};
use flotilla_fake_gateway::FakeGateway;
use tempfile::TempDir;

use crate::cli::{Format, failure::Failure, kv, output::Output};

const COLLECTION: &str = "default";

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: kv::KvCommand,
}

/// Runs `flotilla kv` with these arguments.
async fn kv(gateway: &FakeGateway, arguments: &[&str]) -> Result<(), Failure> {
    let cli = Cli::try_parse_from(["kv"].iter().chain(arguments)).expect("arguments");
    let client = Client::new(ClientOptions::new([gateway.endpoint()])).expect("a client");
    kv::run(cli.command, &client, Output::new(Format::Json)).await
}

/// Bytes without any pattern, the same ones for a seed.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A folder with these files.
fn folder(files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
    folder
}

fn files_in(root: &Path) -> BTreeMap<String, Vec<u8>> {
    walkdir::WalkDir::new(root)
        .into_iter()
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(root).expect("below it").to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("a file"))
        })
        .collect()
}

/// Files of many lengths, some longer than a record holds.
fn tree() -> BTreeMap<String, Vec<u8>> {
    let lengths = [0, 10, 4_096, 4_097, 100_000, 3 << 20, 6 << 20];
    let files = lengths.into_iter().enumerate();
    files.map(|(number, len)| (format!("d{}/file {number}", number % 2), random(number as u64, len))).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn below(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

#[tokio::test]
async fn an_import_sends_what_the_cluster_lacks_and_skips_what_is_there() {
    let gateway = FakeGateway::start().await;
    let mut files = tree();
    let source = folder(&files);
    kv(&gateway, &["import", "--dir", text(source.path())]).await.expect("stored");
    for (name, content) in &files {
        assert!(gateway.get(COLLECTION, name.as_bytes()).expect("a record").0 == *content, "{name}");
    }
    gateway.take_traffic();
    kv(&gateway, &["import", "--dir", text(source.path())]).await.expect("stored");
    let traffic = gateway.take_traffic();
    assert!(traffic.batches == 0 && traffic.sent < 50_000, "only references travel: {traffic:?}");

    let large = files.get_mut("d0/file 6").expect("a file");
    large.splice(2 << 20..2 << 20, random(9, 100));
    let source = folder(&files);
    kv(&gateway, &["import", "--dir", text(source.path())]).await.expect("stored");
    let traffic = gateway.take_traffic();
    assert!((1..300_000).contains(&traffic.received), "some chunks travel: {traffic:?}");
    assert!(gateway.get(COLLECTION, b"d0/file 6").expect("a record").0 == files["d0/file 6"]);
}

#[tokio::test]
async fn a_tree_survives_a_round_trip_through_a_folder_and_through_lines() {
    let gateway = FakeGateway::start().await;
    let files = tree();
    let source = folder(&files);
    kv(&gateway, &["import", "--dir", text(source.path())]).await.expect("stored");
    let target = tempfile::tempdir().expect("a folder");
    kv(&gateway, &["export", "--dir", text(&below(&target, "tree"))]).await.expect("exported");
    assert!(files_in(&below(&target, "tree")) == files);
    let lines = below(&target, "all.jsonl");
    kv(&gateway, &["export", "--out", text(&lines)]).await.expect("exported");
    let another = FakeGateway::start().await;
    kv(&another, &["import", text(&lines)]).await.expect("stored");
    for (name, content) in &files {
        assert!(another.get(COLLECTION, name.as_bytes()).expect("a record").0 == *content, "{name}");
    }
}

#[tokio::test]
async fn an_export_with_a_cache_fetches_only_what_it_lacks() {
    let gateway = FakeGateway::start().await;
    let files = tree();
    for (name, content) in &files {
        gateway.put(COLLECTION, name.as_bytes(), content);
    }
    let target = tempfile::tempdir().expect("a folder");
    let (tree, cache) = (below(&target, "tree"), below(&target, "cache"));
    let export = ["export", "--dir", text(&tree), "--cache", text(&cache)];
    kv(&gateway, &export).await.expect("exported");
    assert!(files_in(&tree) == files);
    fs::remove_dir_all(&tree).expect("a folder");
    gateway.take_traffic();
    kv(&gateway, &export).await.expect("exported");
    assert!(files_in(&tree) == files);
    let traffic = gateway.take_traffic();
    assert!(traffic.sent < 50_000, "{traffic:?}");
}

#[tokio::test]
async fn a_value_is_put_from_a_file_and_written_to_one() {
    let gateway = FakeGateway::start().await;
    let content = random(1, 5 << 20);
    let files = BTreeMap::from([("in".to_owned(), content.clone())]);
    let folder = folder(&files);
    let (input, cache, out) = (below(&folder, "in"), below(&folder, "cache"), below(&folder, "out"));
    kv(&gateway, &["put", "k", "--file", text(&input), "--media-type", "application/x-thing"]).await.expect("stored");
    let stored = gateway.get(COLLECTION, b"k").expect("a record");
    assert!(stored.0 == content && stored.1 == "application/x-thing");

    let get = ["get", "k", "--cache", text(&cache), "--out", text(&out)];
    kv(&gateway, &get).await.expect("a value");
    assert!(fs::read(&out).expect("a file") == content);
    gateway.take_traffic();
    fs::write(&out, "old").expect("a file");
    kv(&gateway, &get).await.expect("a value");
    assert!(fs::read(&out).expect("a file") == content);
    assert!(gateway.take_traffic().sent < 2_000);

    gateway.lose_objects(|_| true);
    fs::write(&out, "old").expect("a file");
    let failed = kv(&gateway, &["get", "k", "--out", text(&out)]).await.expect_err("its objects are gone");
    assert_eq!((failed.code(), fs::read(&out).expect("a file")), (4, b"old".to_vec()), "the file is not touched");
    assert_eq!(kv(&gateway, &["get", "none", "--out", text(&out)]).await.expect_err("no such key").code(), 3);
    let rest: Vec<_> = files_in(folder.path()).into_keys().filter(|name| !name.starts_with("cache/")).collect();
    assert_eq!(rest, ["in", "out"], "no file is left behind");
}

#[tokio::test]
async fn a_link_and_a_device_are_written_through() {
    let gateway = FakeGateway::start().await;
    gateway.put(COLLECTION, b"k", b"new");
    let folder = folder(&BTreeMap::from([("file".to_owned(), b"old".to_vec())]));
    std::os::unix::fs::symlink("file", below(&folder, "link")).expect("a link");
    kv(&gateway, &["get", "k", "--out", text(&below(&folder, "link"))]).await.expect("a value");
    assert!(below(&folder, "link").is_symlink() && fs::read(below(&folder, "file")).expect("a file") == b"new");
    std::os::unix::fs::symlink("/dev/null", below(&folder, "null")).expect("a link");
    kv(&gateway, &["get", "k", "--out", text(&below(&folder, "null"))]).await.expect("a value");
    assert!(!Path::new("/dev/null").is_file());
}

#[tokio::test]
async fn equal_files_in_two_archives_travel_once() {
    let gateway = FakeGateway::start().await;
    let tar = |seed: u64| {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in [("same", random(1, 1 << 20)), ("other", random(seed, 20_000))] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, &content[..]).expect("a member");
        }
        let tar = builder.into_inner().expect("an archive");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &tar).expect("written");
        encoder.finish().expect("an archive")
    };
    let import = async |name: &str, archive: Vec<u8>| {
        let source = folder(&BTreeMap::from([(name.to_owned(), archive)]));
        kv(&gateway, &["import", "--unpack", "--dir", text(source.path())]).await.expect("stored");
        gateway.take_traffic().received
    };
    assert!(import("v1.tgz", tar(2)).await > 1 << 20);
    assert!(import("v2.tgz", tar(3)).await < 60_000);
    for name in ["v1.tgz/same", "v2.tgz/same"] {
        assert!(gateway.get(COLLECTION, name.as_bytes()).expect("a record").0 == random(1, 1 << 20));
    }
    assert!(gateway.get(COLLECTION, b"v2.tgz").is_none());
    let whole = random(4, 50_000);
    import("no.zip", whole.clone()).await;
    assert!(gateway.get(COLLECTION, b"no.zip").expect("a record").0 == whole);
}

#[tokio::test]
async fn a_file_that_is_too_long_is_refused_and_the_others_are_stored() {
    let gateway = FakeGateway::start().await;
    let source = folder(&BTreeMap::from([("a".to_owned(), b"a".to_vec()), ("z".to_owned(), b"z".to_vec())]));
    let large = fs::File::create(below(&source, "large")).expect("a file");
    large.set_len(flotilla_client::LARGE_VALUE_BYTES_MAX + 1).expect("a length");
    let refused = kv(&gateway, &["import", "--dir", text(source.path())]).await;
    assert_eq!(refused.expect_err("one is refused").code(), 1);
    assert_eq!(gateway.keys(COLLECTION), [b"a".to_vec(), b"z".to_vec()]);
}
