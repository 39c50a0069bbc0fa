//! The records of replicas that were given up because they differ from a majority: evidence for an operator, in
//! text files in the data folder.
//!
//! A file has a line about the replica, the state machine's own state, one line for each record (key and value in
//! hexadecimal), and a last line that says whether these are all. Bounds: [`FILE_BYTES_MAX`] for a replica,
//! [`BYTES_MAX`] for a node, [`KEPT_MS_MAX`]; the oldest file goes first. A record is never read back by a node.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flotilla_control::KeepEvidence;
use flotilla_replication::{ReplicaContents, clock};
use flotilla_storage::successor;
use flotilla_types::{KeyRange, ReplicaId, ShardId};

/// The folder within a data folder.
const FOLDER: &str = "evidence";
const EXTENSION: &str = "records";
/// How long a file is kept, in milliseconds.
pub(crate) const KEPT_MS_MAX: u64 = 24 * 3_600_000;
/// How often what was kept for long enough is removed.
const EXPIRES_EVERY: Duration = Duration::from_secs(600);
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of all files of a node.
const BYTES_MAX: u64 = 1 << 30;
/// Records, and their bytes, that are read at once.
const SCAN_RECORDS_MAX: usize = 1_024;
const SCAN_BYTES_MAX: usize = 1 << 20;

/// The files of one data folder.
#[derive(Debug, Clone)]
pub(crate) struct Evidence(PathBuf);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// When it was written, in Unix milliseconds.
    pub(crate) at_ms: u64,
}

impl Evidence {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join(FOLDER))
    }

    /// The files, oldest first. Other files in the folder are left alone.
    pub(crate) fn list(&self) -> io::Result<Vec<Kept>> {
        let files = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files?,
        };
        let mut kept = Vec::new();
        for file in files {
            let file = file?;
            let (path, name) = (file.path(), file.file_name().to_string_lossy().into_owned());
            let stem = name.strip_suffix(EXTENSION).and_then(|stem| stem.strip_suffix('.'));
            let at_ms = stem.and_then(|stem| stem.rsplit('-').next()?.parse().ok());
            if let Some(at_ms) = at_ms {
                kept.push(Kept { name, path, bytes: file.metadata()?.len(), at_ms });
            }
        }
        kept.sort_by(|one, other| (one.at_ms, &one.name).cmp(&(other.at_ms, &other.name)));
        Ok(kept)
    }

    /// Removes what was kept for long enough, and what is beyond the bound with `more` bytes.
    pub(crate) fn expire(&self, wall_ms: u64, more: u64) -> io::Result<()> {
        let kept = self.list()?;
        let mut bytes = kept.iter().map(|kept| kept.bytes).sum::<u64>() + more;
        for file in kept {
            if file.at_ms + KEPT_MS_MAX <= wall_ms || bytes > BYTES_MAX {
                fs::remove_file(&file.path)?;
                bytes -= file.bytes;
            }
        }
        Ok(())
    }

    /// Writes the records of a replica.
    pub(crate) fn keep(
        &self,
        (shard, replica): (ShardId, ReplicaId),
        contents: &ReplicaContents,
        wall_ms: u64,
    ) -> io::Result<PathBuf> {
        self.keep_within((shard, replica), contents, wall_ms, FILE_BYTES_MAX)
    }

    fn keep_within(
        &self,
        (shard, replica): (ShardId, ReplicaId),
        contents: &ReplicaContents,
        wall_ms: u64,
        bytes_max: u64,
    ) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.0)?;
        self.expire(wall_ms, bytes_max)?;
        let path = self.0.join(format!("{shard}-{replica}-{wall_ms}.{EXTENSION}"));
        // It has its name from the first byte on, so that what a crash leaves is counted and removed, too.
        let mut file = BufWriter::new(File::create(&path)?);
        let mut line = format!("replica {replica} of {shard} after entry {}\nsystem ", contents.applied);
        push_hex(&mut line, &contents.system);
        file.write_all(line.as_bytes())?;
        let (mut bytes, mut records, mut rest) = (line.len() as u64, 0_u64, KeyRange::all());
        let mut complete = true;
        'all: loop {
            let page = contents.records.scan(&rest, SCAN_RECORDS_MAX, SCAN_BYTES_MAX).map_err(io::Error::other)?;
            let Some((last, _)) = page.last() else { break };
            rest.start = successor(last);
            for (key, value) in &page {
                line.clear();
                line.push('\n');
                push_hex(&mut line, key);
                line.push(' ');
                push_hex(&mut line, value);
                bytes += line.len() as u64;
                if bytes > bytes_max {
                    complete = false;
                    break 'all;
                }
                file.write_all(line.as_bytes())?;
                records += 1;
            }
        }
        let end = if complete { "end" } else { "cut" };
        writeln!(file, "\n{end} after {records} records")?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(path)
    }
}

/// Keeps the records of replicas that are given up because they differ from others, and removes them in time.
pub(crate) fn keeper(data_dir: &Path) -> KeepEvidence {
    let evidence = Evidence::new(data_dir);
    let expiring = evidence.clone();
    tokio::spawn(async move {
        loop {
            let expiring = expiring.clone();
            let expired = tokio::task::spawn_blocking(move || expiring.expire(clock::wall_ms(), 0)).await;
            if let Ok(Err(error)) = expired {
                tracing::warn!(%error, "old evidence cannot be removed");
            }
            tokio::time::sleep(EXPIRES_EVERY).await;
        }
    });
    Arc::new(move |shard, replica, contents| match evidence.keep((shard, replica), &contents, clock::wall_ms()) {
        Ok(path) => tracing::warn!(%shard, %replica, file = %path.display(), "kept the records of a replica"),
        Err(error) => tracing::warn!(%shard, %replica, %error, "the records of a replica cannot be kept"),
    })
}

fn push_hex(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(line, "{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_storage::{EngineError, StateReader};
    use flotilla_types::LogIndex;

    use super::*;

    struct Records(u32);

    impl StateReader for Records {
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
            Ok(None)
        }

        fn scan(&self, range: &KeyRange, items_max: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
            let records = (0..self.0).map(|at| (Bytes::from(at.to_be_bytes().to_vec()), Bytes::from_static(b"\xab")));
            Ok(records.filter(|(key, _)| range.contains(key)).take(items_max).collect())
        }
    }

    fn contents(records: u32) -> ReplicaContents {
        let (system, records) = (Bytes::from_static(b"\x02"), Arc::new(Records(records)));
        ReplicaContents { applied: LogIndex(7), range: KeyRange::all(), system, record_bytes: None, records }
    }

    const OF: (ShardId, ReplicaId) = (ShardId(3), ReplicaId(4));

    #[test]
    fn a_file_has_all_records_of_a_replica_and_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let evidence = Evidence::new(folder.path());
        assert_eq!(evidence.list().expect("no files"), []);
        let path = evidence.keep(OF, &contents(2_000), 1_000).expect("a file");
        let text = fs::read_to_string(&path).expect("a file");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["replica r4 of s3 after entry 7", "system 02", "00000000 ab"]);
        assert_eq!(lines[2_001..], ["000007cf ab", "end after 2000 records"]);
        let kept = evidence.list().expect("a file");
        assert_eq!((kept.len(), &kept[0].name[..], kept[0].at_ms), (1, "s3-r4-1000.records", 1_000));
        let path = evidence.keep(OF, &contents(0), 2_000).expect("a file");
        assert!(fs::read_to_string(path).expect("a file").ends_with("system 02\nend after 0 records\n"));
    }

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let evidence = Evidence::new(folder.path());
        let path = evidence.keep_within(OF, &contents(2_000), 1_000, 200).expect("a file");
        let text = fs::read_to_string(&path).expect("a file");
        assert!(text.len() < 300 && text.lines().last().expect("a line").starts_with("cut after"), "{text}");
        fs::write(folder.path().join("evidence/other"), "").expect("a file");
        for at_ms in [2_000, 3_000] {
            evidence.keep_within(OF, &contents(1), at_ms, 200).expect("a file");
        }
        let times = || evidence.list().expect("files").iter().map(|kept| kept.at_ms).collect::<Vec<_>>();
        evidence.expire(1_000 + KEPT_MS_MAX, 0).expect("no error");
        assert_eq!(times(), [2_000, 3_000]);
        evidence.expire(3_000, BYTES_MAX).expect("no error");
        assert_eq!(times(), [0; 0], "no room is left");
        assert!(folder.path().join("evidence/other").exists());
    }
}
