//! The file `FORMAT` of a log folder: its format version, its nonce, and the lock that is taken before
//! anything else in the folder is read.
//!
//! The nonce is drawn at random when the folder is first used. Every batch contains it, which distinguishes a
//! batch of this log from bytes that a client chose (see `tail`). It is not secret and protects nothing else.
//! Content: `flotilla-raft-log <version> <nonce, 16 hexadecimal digits>` and a line feed.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::Path,
};

use flotilla_storage::{LogError, replace_file};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{OpenError, tail};

const FILE_NAME: &str = "FORMAT";
const TITLE: &str = "flotilla-raft-log";
/// The version this binary writes, and the newest it reads.
const VERSION: u32 = 1;

/// A log folder that stays locked while the value lives.
#[derive(Debug)]
pub(crate) struct LockedFolder {
    nonce: u64,
    /// Holds the lock, which ends with the handle, also when the process is killed.
    _file: File,
}

impl LockedFolder {
    /// Locks the folder and reads its nonce. Durably creates `FORMAT` in a new folder.
    pub(crate) fn open(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(FILE_NAME);
        if !path.try_exists()? {
            if tail::last_file(dir)?.is_some() {
                return Err(OpenError::FormatFile { file: path }.into());
            }
            let nonce = RandomState::new().hash_one(&path);
            let content = format!("{TITLE} {VERSION} {nonce:016x}\n");
            replace_file(&path, content.as_bytes(), 0o666, |_| Ok(()))?;
        }
        let mut file = File::open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse { dir: dir.to_owned() }.into()),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let (version, nonce) = parse(&content).ok_or(OpenError::FormatFile { file: path })?;
        if version > VERSION {
            return Err(OpenError::Version { found: version, known: VERSION }.into());
        }
        Ok(Self { nonce, _file: file })
    }

    /// The number that every batch of this folder contains.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }
}

/// The nonce of a log folder that may be in use; `None` when its file does not parse.
pub(crate) fn nonce_of(dir: &Path) -> io::Result<Option<u64>> {
    Ok(parse(&fs::read(dir.join(FILE_NAME))?).map(|(_, nonce)| nonce))
}

fn parse(content: &[u8]) -> Option<(u32, u64)> {
    let mut words = std::str::from_utf8(content).ok()?.strip_suffix('\n')?.split(' ');
    let (title, version, nonce) = (words.next()?, words.next()?, words.next()?);
    if title != TITLE || nonce.len() != 16 || words.next().is_some() {
        return None;
    }
    Some((version.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(dir: &Path) -> Result<u64, LogError> {
        LockedFolder::open(dir).map(|folder| folder.nonce())
    }

    #[test]
    fn a_folder_keeps_its_nonce() {
        let dir = tempfile::tempdir().unwrap();
        let first = nonce(dir.path()).unwrap();
        assert_eq!(nonce(dir.path()).unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(nonce(other.path()).unwrap(), first);
    }

    #[test]
    fn a_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = LockedFolder::open(dir.path()).unwrap();
        assert!(LockedFolder::open(dir.path()).unwrap_err().to_string().contains("in use"));
        drop(first);
        assert!(LockedFolder::open(dir.path()).is_ok());
    }

    #[test]
    fn newer_and_foreign_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |content: &str| {
            fs::write(dir.path().join(FILE_NAME), content).unwrap();
            nonce(dir.path()).unwrap_err().to_string()
        };
        assert!(open("flotilla-raft-log 2 0000000000000001\n").contains("newer"));
        for content in [
            "",
            "\n",
            "flotilla-raft-log 1 1\n",
            "another 1 0000000000000001\n",
            "flotilla-raft-log 1 0000000000000001",
        ] {
            assert!(open(content).contains("damaged"), "{content:?}");
        }
        fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        fs::write(dir.path().join("0000000000000001.raftlog"), "").unwrap();
        assert!(nonce(dir.path()).unwrap_err().to_string().contains("missing"));
    }
}
