//! What is taken apart and what is not.

use std::io::Write;

use flate2::{Compression, GzBuilder, write::GzEncoder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

/// Content of a file that comes in several archives.
const SHARED: &[u8] = b"shared content";

fn header(kind: EntryType, bytes: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes as u64);
    header.set_mode(0o640);
    header.set_mtime(1_700_000_000);
    header.set_uid(7);
    header.set_gid(8);
    header.set_username("me").expect("a name");
    header
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, content) in files {
        builder.append_data(&mut header(EntryType::Regular, content.len()), path, *content).expect("a member");
    }
    builder.into_inner().expect("an archive")
}

fn gzip_of(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().filename("origin").mtime(5).write(Vec::new(), Compression::default());
    encoder.write_all(content).expect("written");
    encoder.finish().expect("an archive")
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.set_comment("all of it").expect("a comment");
    for (path, content) in files {
        let options = SimpleFileOptions::default().unix_permissions(0o755);
        writer.start_file(*path, options.compression_method(CompressionMethod::Deflated)).expect("a member");
        writer.write_all(content).expect("written");
    }
    writer.finish().expect("an archive").into_inner()
}

/// What is sent of an archive: records by key, the number of archives taken apart, and why others are not.
#[derive(Debug, Default)]
struct Sent {
    records: Vec<(String, Vec<u8>)>,
    unpacked: usize,
    kept: Vec<String>,
}

impl Sent {
    fn of(name: &str, archive: &[u8]) -> Self {
        let mut sent = Self::default();
        let value = Content::Read(ValueSource::from(archive.to_vec()));
        let source = Source { key: name.as_bytes().to_vec(), value, expires_at_ms: None };
        assert!(take_apart(source, &mut |entry| {
            match entry {
                Entry::Record(Source { key, value: Content::Read(value), .. }) => {
                    let mut bytes = Vec::new();
                    value.reader().read_to_end(&mut bytes).expect("a value");
                    sent.records.push((String::from_utf8_lossy(&key).into_owned(), bytes));
                }
                Entry::Unpacked => sent.unpacked += 1,
                Entry::KeptWhole { reason, .. } => sent.kept.push(reason),
                other => panic!("{other:?}"),
            }
            true
        }));
        sent
    }

    fn keys(&self) -> Vec<&str> {
        self.records.iter().map(|(key, _)| key.as_str()).collect()
    }

    fn content(&self, key: &str) -> &[u8] {
        &self.records.iter().find(|(found, _)| found == key).expect("a record").1
    }

    fn manifest(&self, archive: &str) -> Value {
        serde_json::from_slice(self.content(&format!("{archive}/{MANIFEST}"))).expect("JSON")
    }

    /// Whether the archive is one record, as it was.
    fn is_kept(&self, archive: &[u8]) -> bool {
        self.unpacked == 0 && self.kept.len() == 1 && matches!(&self.records[..], [(_, kept)] if kept == archive)
    }
}

#[test]
fn files_of_a_tar_become_records_and_all_members_are_described() {
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header(EntryType::Directory, 0), "./src/", &b""[..]).expect("a member");
    // As `tar` writes it for a folder.
    let mut dotted = header(EntryType::Regular, SHARED.len());
    dotted.as_old_mut().name[..7].copy_from_slice(b"./src/b");
    dotted.set_cksum();
    builder.append(&dotted, SHARED).expect("a member");
    builder.append_link(&mut header(EntryType::Symlink, 0), "src/link", "b").expect("a member");
    builder.append_data(&mut header(EntryType::Regular, 1), "a", &b"a"[..]).expect("a member");
    let archive = builder.into_inner().expect("an archive");
    let sent = Sent::of("x/v1.tar", &archive);
    assert_eq!(sent.keys(), ["x/v1.tar/src/b", "x/v1.tar/a", "x/v1.tar/.flotilla-archive.json"]);
    assert_eq!((sent.content("x/v1.tar/src/b"), sent.unpacked), (SHARED, 1));

    let manifest = sent.manifest("x/v1.tar");
    assert_eq!((&manifest["format"], &manifest["bytes"]), (&json!("tar"), &json!(archive.len())));
    assert_eq!(manifest["blake3"], blake3::hash(&archive).to_hex().to_string());
    let members = manifest["members"].as_array().expect("members");
    let kinds: Vec<_> = members.iter().map(|member| member["kind"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["folder", "file", "link", "file"], "in order");
    let expected = json!({
        "path": "./src/b", "key": "src/b", "kind": "file", "bytes": SHARED.len(),
        "blake3": blake3::hash(SHARED).to_hex().to_string(), "mode": 0o640, "modified_at": 1_700_000_000,
        "uid": 7, "gid": 8, "user": "me",
    });
    assert_eq!((&members[1], &members[2]["link"]), (&expected, &json!("b")));
}

#[test]
fn files_of_compressed_archives_are_the_same_as_of_others() {
    let files = [("a/shared", SHARED), ("empty", b"")];
    let tar = tar_of(&files);
    for (name, archive) in [
        ("v.tar", tar.clone()),
        ("v.tgz", gzip_of(&tar)),
        ("v.TAR.GZ", gzip_of(&tar)),
        ("v.zip", zip_of(&files)),
        ("v.whl", zip_of(&files)),
    ] {
        let sent = Sent::of(name, &archive);
        assert_eq!(sent.content(&format!("{name}/a/shared")), SHARED);
        assert_eq!((sent.content(&format!("{name}/empty")), sent.records.len()), (&b""[..], 3), "{name}");
    }
    let sent = Sent::of("v.zip", &zip_of(&files));
    let manifest = sent.manifest("v.zip");
    assert_eq!(manifest["comment"], "all of it");
    let member = &manifest["members"][0];
    assert_eq!((&member["compression"], &member["bytes"]), (&json!("deflated"), &json!(SHARED.len())));
    assert!(member["modified_local"].is_string() && member["mode"].is_u64(), "{member}");
}

#[test]
fn a_compressed_file_is_a_record_below_its_own_name() {
    for content in [SHARED, b""] {
        let sent = Sent::of("data/service.json.gz", &gzip_of(content));
        assert_eq!(sent.content("data/service.json.gz/service.json"), content);
        let gzip = &sent.manifest("data/service.json.gz")["gzip"];
        assert_eq!((&gzip["name"], &gzip["modified_at"]), (&json!("origin"), &json!(5)));
    }
    assert_eq!(Sent::of("x/.gz", &gzip_of(SHARED)).content("x/.gz/content"), SHARED);
}

#[test]
fn archives_in_archives_are_taken_apart_to_a_depth() {
    let mut archive = gzip_of(SHARED);
    for name in ["3.gz", "2.zip", "1.zip"] {
        archive = zip_of(&[(name, &archive)]);
    }
    let sent = Sent::of("0.zip", &archive);
    assert_eq!((sent.unpacked, sent.kept.len()), (DEPTH_MAX as usize, 0));
    assert_eq!(sent.content("0.zip/1.zip/2.zip/3.gz"), gzip_of(SHARED));
    assert_eq!(sent.records.len(), 4, "a manifest for each archive: {:?}", sent.keys());
}

#[test]
fn what_would_lose_something_is_stored_as_it_is() {
    let tar = tar_of(&[("a", SHARED), ("b", &[7; 2_000])]);
    let twice = tar_of(&[("a", b"1"), ("./a", b"2")]);
    let (mut followed, mut cut, mut damaged) = (tar.clone(), tar.clone(), gzip_of(&tar));
    followed.extend_from_slice(&tar);
    cut.truncate(2_200);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    let zip = zip_of(&[("a", SHARED)]);
    let mut twice_in_zip = zip_of(&[("same", SHARED), ("sane", SHARED)]);
    while let Some(at) = twice_in_zip.windows(4).position(|name| name == b"sane") {
        twice_in_zip[at + 2] = b'm';
    }
    let preceded = [b"#!/bin/sh\n", &zip[..]].concat();
    let mut damaged_zip = zip.clone();
    damaged_zip[34] ^= 1;
    let up = zip_of(&[("../up", SHARED)]);
    let hidden = tar_of(&[(MANIFEST, SHARED)]);
    let long = tar_of(&[(&"long/".repeat(900), SHARED)]);
    for (name, archive) in [
        ("text.tar", &b"this is no archive"[..]),
        ("text.gz", b"neither"),
        ("text.zip", b"nor this"),
        ("empty.tar", b""),
        ("empty.zip", &zip_of(&[])),
        ("twice.tar", &twice),
        ("twice.zip", &twice_in_zip),
        ("followed.tar", &followed),
        ("cut.tar", &cut),
        ("damaged.tgz", &damaged),
        ("damaged.zip", &damaged_zip),
        ("preceded.zip", &preceded),
        ("up.zip", &up),
        ("hidden.tar", &hidden),
        ("long.tar", &long),
    ] {
        let sent = Sent::of(name, archive);
        assert!(sent.is_kept(archive), "{name}: {:?} {:?}", sent.kept, sent.keys());
    }
    assert_eq!(Sent::of("notes.txt", &tar).keys(), ["notes.txt"], "its name is no archive's");
}

#[test]
fn an_archive_that_fills_the_disk_is_stored_as_it_is() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut std::io::repeat(0).take(LARGE_VALUE_BYTES_MAX + 1), &mut encoder).expect("written");
    let archive = encoder.finish().expect("an archive");
    let sent = Sent::of("bomb.gz", &archive);
    assert!(sent.is_kept(&archive), "{:?}", sent.kept);

    // The library would keep such a name in memory.
    let bytes = 200 << 20;
    let mut named = header(EntryType::GNULongName, bytes);
    named.set_cksum();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(named.as_bytes()).expect("written");
    std::io::copy(&mut std::io::repeat(b'x').take(bytes as u64), &mut encoder).expect("written");
    let archive = encoder.finish().expect("an archive");
    let sent = Sent::of("name.tgz", &archive);
    assert!(sent.is_kept(&archive) && sent.kept[0].contains("headers"), "{:?}", sent.kept);

    let archive = tar_of(&[("a", &[1; 600]), ("b.gz", &gzip_of(&[2; 600]))]);
    let mut entries = Vec::new();
    let mut send = |entry| {
        entries.push(entry);
        true
    };
    let value = Content::Read(ValueSource::from(archive));
    let source = Source { key: b"v.tar".to_vec(), value, expires_at_ms: None };
    assert!(Unpacking { left: 1_000, send: &mut send }.entry(source, 0));
    let kept = entries.iter().filter(|entry| matches!(entry, Entry::KeptWhole { .. })).count();
    assert_eq!((kept, entries.len()), (1, 5), "the inner one has no room left: {entries:?}");
}

#[test]
fn nothing_more_is_read_when_nobody_takes_it() {
    let mut taken = 0;
    let value = Content::Read(ValueSource::from(tar_of(&[("a", SHARED), ("b", SHARED), ("c", SHARED)])));
    let source = Source { key: b"v.tar".to_vec(), value, expires_at_ms: None };
    assert!(!take_apart(source, &mut |_| {
        taken += 1;
        taken < 2
    }));
    assert_eq!(taken, 2);
}

mod hostile {
    use flotilla_hostile::{attack, mutated};
    use proptest::{prelude::*, sample::select};

    use super::*;

    #[test]
    fn hostile_archives_are_taken_apart_or_stored_as_they_are() {
        let files = [("a/shared", SHARED), ("b", &b"bb"[..])];
        let tar = tar_of(&files);
        let valid =
            vec![("v.tgz", gzip_of(&tar)), ("v.tar", tar), ("v.zip", zip_of(&files)), ("v.gz", gzip_of(SHARED))];
        for (name, archive) in valid {
            attack(300, mutated(select(vec![archive]).prop_map(|bytes| bytes)), |archive| {
                let sent = Sent::of(name, &archive);
                assert_eq!(sent.unpacked + sent.kept.len(), 1, "{name}");
                assert!(sent.unpacked == 1 || sent.is_kept(&archive), "{name}");
                for (key, _) in &sent.records[..sent.records.len() - 1] {
                    assert!(key.starts_with(name) && !key.split('/').any(|part| part == ".."), "{key:?}");
                }
            });
        }
    }
}
