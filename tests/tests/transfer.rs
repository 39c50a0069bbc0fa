//! `kv import` and `kv export`, from a folder to a folder and through JSON lines.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use flotilla_api::{BatchOperation, BatchRequest, BatchVerb, ProblemType};
use flotilla_client::{Client, LARGE_VALUE_BYTES_MAX, PutOptions, ScanOptions};
use flotilla_local_cluster::Cluster;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use flotilla_tests::support::{binary, client, start};

/// Small files in the tree.
const FILES: usize = 300;
/// Length of a value that is large, but no node has refused in any version.
const BIG_BYTES: usize = 3 << 20;

/// Creates a tree with all kinds of files; returns those that can be stored.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for number in 0..FILES {
        let name = format!("dir{}/sub {}/file-{number}.txt", number % 7, number % 3);
        let content = format!("content of {number}\n").repeat(number % 40);
        files.insert(name.into_bytes(), content.into_bytes());
    }
    files.insert(b"empty".to_vec(), Vec::new());
    files.insert(b"binary".to_vec(), (0..=255).cycle().take(10_000).collect());
    files.insert("ü/日本/100% {tag}?&#".as_bytes().to_vec(), b"names".to_vec());
    files.insert(b"not-utf8-\xff\xfe".to_vec(), b"bytes".to_vec());
    files.insert(b"big".to_vec(), (0..BIG_BYTES).map(|at| (at % 251) as u8).collect());
    for (name, content) in &files {
        let path = root.join(OsStr::from_bytes(name));
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
        fs::write(path, content).expect("a file");
    }
    let too_big = fs::File::create(root.join("too big")).expect("a file");
    too_big.set_len(LARGE_VALUE_BYTES_MAX + 1).expect("a length");
    files
}

/// The files below a folder, by relative path.
fn read_tree(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below the root").as_os_str().as_bytes().to_vec();
                files.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

/// Runs a `kv` verb against node `i`; returns the exit code and the summary that it prints.
fn flotilla(cluster: &Cluster, i: usize, arguments: &[&OsStr]) -> (Option<i32>, Value, Output) {
    let mut command = Command::new(binary());
    command.arg("--addr").arg(cluster.http(i).expect("a node")).args(["-o", "json", "kv"]).args(arguments);
    let output = command.output().expect("a process");
    let account = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), account, output)
}

fn words<'a>(words: &'a [&'a str], path: &'a Path) -> Vec<&'a OsStr> {
    words.iter().map(OsStr::new).chain([path.as_os_str()]).collect()
}

#[tokio::test]
async fn import_and_export_round_trip() {
    let cluster = start(3).await;
    let folder = tempfile::tempdir().expect("a folder");
    let [source, target, lines] = ["source", "target", "all.jsonl"].map(|name| folder.path().join(name));
    fs::create_dir(&source).expect("a folder");
    let files = tree(&source);
    let count = files.len() as u64;

    let (code, account, output) = flotilla(&cluster, 1, &words(&["import", "--dir"], &source));
    assert_eq!(code, Some(1), "one file is too big: {output:?}");
    assert_eq!((account["done"].as_u64(), account["refused"].as_u64()), (Some(count), Some(1)), "{account}");
    assert!(account["refusals"][0]["name"].as_str().is_some_and(|name| name.contains("too big")), "{account}");
    for (name, content) in &files {
        let found = client(&cluster, 2).get("default", name).await.expect("a read").expect("a record");
        assert!(found.value == *content, "{:?} is not what was imported", String::from_utf8_lossy(name));
    }

    let (_, account, _) = flotilla(&cluster, 2, &words(&["import", "--dir"], &source));
    assert_eq!((account["done"].as_u64(), account["unchanged"].as_u64()), (Some(0), Some(count)), "{account}");

    let (code, account, output) = flotilla(&cluster, 3, &words(&["export", "--dir"], &target));
    assert_eq!((code, account["done"].as_u64()), (Some(0), Some(count)), "{output:?}");
    assert!(read_tree(&target) == files, "the exported tree differs");

    let (code, account, output) = flotilla(&cluster, 3, &words(&["export", "--out"], &lines));
    assert_eq!((code, account["done"].as_u64()), (Some(0), Some(count)), "{output:?}");
    for name in files.keys() {
        client(&cluster, 1).delete("default", name, None).await.expect("a deletion").expect("a record");
    }
    let (code, account, output) = flotilla(&cluster, 1, &words(&["import"], &lines));
    assert_eq!((code, account["done"].as_u64()), (Some(0), Some(count)), "{output:?}");
    fs::remove_dir_all(&target).expect("a folder");
    let (code, ..) = flotilla(&cluster, 2, &words(&["export", "--dir"], &target));
    assert_eq!(code, Some(0));
    assert!(read_tree(&target) == files, "the tree differs after a round trip through JSON lines");
}

/// Length of a value that is stored in objects.
const LARGE_BYTES: usize = 10 << 20;

/// Bytes without any pattern, the same ones for a seed.
fn random(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::from_seed([seed; 32]).fill_bytes(&mut bytes);
    bytes
}

#[tokio::test]
async fn only_the_parts_of_large_values_travel_that_the_other_side_lacks() {
    let cluster = start(3).await;
    let folder = tempfile::tempdir().expect("a folder");
    let [source, target, cache, out] = ["source", "target", "cache", "out"].map(|name| folder.path().join(name));
    fs::create_dir(&source).expect("a folder");
    let mut content = random(1, LARGE_BYTES);
    fs::write(source.join("large"), &content).expect("a file");
    let import = |node: usize| {
        let (code, account, output) = flotilla(&cluster, node, &words(&["import", "--dir"], &source));
        assert_eq!((code, account["done"].as_u64()), (Some(0), Some(1)), "{output:?}");
        account["transfer"]["sent_bytes"].as_u64().expect("a number")
    };
    assert!(import(1) >= LARGE_BYTES as u64);
    content.splice(LARGE_BYTES / 2..LARGE_BYTES / 2, random(2, 100));
    fs::write(source.join("large"), &content).expect("a file");
    let sent = import(2);
    assert!(sent < LARGE_BYTES as u64 / 20, "{sent} bytes for a small change");
    let (code, account, output) = flotilla(&cluster, 3, &words(&["import", "--dir"], &source));
    assert_eq!((code, account["unchanged"].as_u64()), (Some(0), Some(1)), "{output:?}");

    let found = client(&cluster, 3).get("default", b"large").await.expect("a read").expect("a record");
    assert!(found.value == content, "the value is not what was imported");
    let cache = cache.to_str().expect("a path in UTF-8");
    let fetched = [1, 2].map(|node| {
        let get = ["get", "large", "--cache", cache, "--out"];
        let (code, account, output) = flotilla(&cluster, node, &words(&get, &out));
        assert_eq!(code, Some(0), "{output:?}");
        assert!(fs::read(&out).expect("a file") == content, "the value is not what was imported");
        account["transfer"]["received_bytes"].as_u64().expect("a number")
    });
    assert!(fetched[0] >= LARGE_BYTES as u64 && fetched[1] < 10_000, "{fetched:?}");
    let (code, account, output) = flotilla(&cluster, 3, &words(&["export", "--cache", cache, "--dir"], &target));
    assert_eq!((code, account["done"].as_u64()), (Some(0), Some(1)), "{output:?}");
    assert!(read_tree(&target)[&b"large"[..]] == content, "the exported value differs");
}

#[tokio::test]
async fn exit_codes_distinguish_missing_from_unavailable() {
    let mut cluster = start(1).await;
    let code = |cluster: &Cluster, arguments: &[&str]| {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        let (code, _, output) = flotilla(cluster, 1, &arguments);
        assert_eq!(code == Some(0), output.stderr.is_empty(), "{output:?}");
        code
    };
    assert_eq!(code(&cluster, &["put", "k", "v"]), Some(0));
    assert_eq!(code(&cluster, &["get", "k"]), Some(0));
    assert_eq!(code(&cluster, &["get", "missing"]), Some(3));
    assert_eq!(code(&cluster, &["get"]), Some(2));
    assert_eq!(code(&cluster, &["put", "k", "w", "--if-absent"]), Some(1));
    cluster.kill(1).expect("a running node");
    assert_eq!(code(&cluster, &["get", "k"]), Some(4));
}

/// Accounts of one shard, in several pages of an export.
const ACCOUNTS: usize = 300;
const BALANCE: i64 = 1_000;

fn account(number: usize) -> String {
    format!("{{bank}}/{:03}", number % ACCOUNTS)
}

/// Moves money between two accounts of one shard, atomically.
async fn transfer(client: &Client, number: usize) -> bool {
    let add = |key, delta| BatchOperation { op: BatchVerb::Add, key, delta: Some(delta), ..BatchOperation::default() };
    let operations = vec![add(account(number * 7), -1), add(account(number * 13 + 150), 1)];
    let request = BatchRequest { collection: "default".to_owned(), conditions: Vec::new(), operations };
    client.batch(&request).await.is_ok()
}

#[tokio::test]
async fn an_export_shows_each_shard_at_one_moment_while_writes_go_on() {
    let cluster = Arc::new(start(3).await);
    for number in 0..ACCOUNTS {
        let value = BALANCE.to_string().into();
        let put = client(&cluster, 1).put("default", account(number).as_bytes(), value, &PutOptions::default()).await;
        put.expect("a put");
    }
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let movers: Vec<_> = (0..4)
        .map(|mover| {
            let (client, stop, moved) = (client(&cluster, 1 + mover % 3), stop.clone(), moved.clone());
            tokio::spawn(async move {
                for number in (mover..).step_by(4) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    moved.fetch_add(transfer(&client, number).await.into(), Ordering::Relaxed);
                }
            })
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let mut exports = 0;
    for round in 0..20 {
        let (before, lines, exported) =
            (moved.load(Ordering::Relaxed), folder.path().join("all.jsonl"), cluster.clone());
        let path = lines.clone();
        let export = move || flotilla(&exported, 1 + round % 3, &words(&["export", "--out"], &path));
        let (code, account, output) = tokio::task::spawn_blocking(export).await.expect("an export");
        assert_eq!((code, account["done"].as_u64()), (Some(0), Some(ACCOUNTS as u64)), "{output:?}");
        let text = fs::read_to_string(&lines).expect("lines");
        let values = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let sum: i64 = values
            .map(|line| line["value"].as_str().and_then(|value| value.parse::<i64>().ok()).expect("a number"))
            .sum();
        assert_eq!(sum, BALANCE * ACCOUNTS as i64, "round {round}");
        exports += u32::from(moved.load(Ordering::Relaxed) >= before + 5);
    }
    stop.store(true, Ordering::Relaxed);
    for mover in movers {
        mover.await.expect("a mover");
    }
    assert!(exports >= 10, "money moved during {exports} of 20 exports only");
}

#[tokio::test]
async fn a_snapshot_ends_with_the_process_that_keeps_it_and_the_scan_says_so() {
    let mut cluster = start(1).await;
    for key in ["a", "b", "c"] {
        client(&cluster, 1).put("default", key.as_bytes(), key.into(), &PutOptions::default()).await.expect("a put");
    }
    let mut options = ScanOptions { limit: 1, snapshot: true, ..ScanOptions::default() };
    let page = client(&cluster, 1).scan("default", &options).await.expect("a page");
    options.cursor = page.cursor;
    client(&cluster, 1).put("default", b"b", "later".into(), &PutOptions::default()).await.expect("a put");
    let page = client(&cluster, 1).scan("default", &options).await.expect("a page");
    assert_eq!(page.records.first().map(|record| record.value.clone()), Some("b".into()));
    cluster.kill(1).expect("a running node");
    cluster.start_node(1).await.expect("a start on its data");
    cluster.wait_ready().await.expect("a ready cluster");
    let error = client(&cluster, 1).scan("default", &options).await.expect_err("the snapshot has ended");
    assert_eq!(error.problem().map(|problem| problem.kind), Some(ProblemType::SnapshotExpired), "{error}");
    let all = client(&cluster, 1).scan("default", &ScanOptions::default()).await.expect("a page");
    assert_eq!(all.records.len(), 3, "a scan without a snapshot is as before");
}
