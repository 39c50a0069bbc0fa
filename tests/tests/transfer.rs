//! `kv import` and `kv export`, from a folder to a folder and through JSON lines.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    process::{Command, Output},
};

use flotilla_local_cluster::Cluster;
use serde_json::Value;

use flotilla_tests::support::{binary, client, start};

/// Small files in the tree.
const FILES: usize = 300;
/// Sizes of a value close to the limit, and above it.
const BIG_BYTES: usize = 3 << 20;
const TOO_BIG_BYTES: usize = 5 << 20;

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
    fs::write(root.join("too big"), vec![b'x'; TOO_BIG_BYTES]).expect("a file");
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
