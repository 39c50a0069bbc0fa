//! The file `FORMAT` beside the log files: the version of everything in the folder, a number that marks its batches, and the
//! lock that makes the folder one process's own before anything in it is looked at.
//!
//! The number is drawn at random when the folder is first used. It stands in every batch, so that a batch of this log can be
//! told from bytes that a client chose (see `tail`). It is no secret and guards nothing else.
//! Content: `flotilla-raft-log <version> <number, 16 hexadecimal digits>` and a line feed.

use std::{
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    path::Path,
};

use flotilla_storage::LogError;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{OpenError, tail};

const FILE_NAME: &str = "FORMAT";
const TITLE: &str = "flotilla-raft-log";
/// The version this binary writes, and the newest it reads.
const VERSION: u32 = 1;

/// A folder that belongs to this process as long as the value lives.
#[derive(Debug)]
pub(crate) struct Folder {
    nonce: u64,
    /// Locked; the lock ends with the handle, also when the process is killed.
    _file: File,
}

impl Folder {
    /// Locks the folder and reads its number; marks a new folder with one, durably.
    pub(crate) fn open(dir: &Path) -> Result<Self, LogError> {
        let path = dir.join(FILE_NAME);
        if !path.try_exists()? {
            if tail::last_file(dir)?.is_some() {
                return Err(OpenError::Foreign { file: path }.into());
            }
            let nonce = RandomState::new().hash_one(&path);
            create(dir, &format!("{TITLE} {VERSION} {nonce:016x}\n"))?;
        }
        let mut file = File::open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse { dir: dir.to_owned() }.into()),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let (version, nonce) = parse(&content).ok_or(OpenError::Foreign { file: path })?;
        if version > VERSION {
            return Err(OpenError::Version { found: version, known: VERSION }.into());
        }
        Ok(Self { nonce, _file: file })
    }

    /// The number that stands in every batch of this folder.
    pub(crate) fn nonce(&self) -> u64 {
        self.nonce
    }
}

fn parse(content: &[u8]) -> Option<(u32, u64)> {
    let mut words = std::str::from_utf8(content).ok()?.strip_suffix('\n')?.split(' ');
    let (title, version, nonce) = (words.next()?, words.next()?, words.next()?);
    let fits = title == TITLE && nonce.len() == 16 && words.next().is_none();
    fits.then(|| Some((version.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?))).flatten()
}

fn create(dir: &Path, content: &str) -> io::Result<()> {
    let new = dir.join("FORMAT.new");
    let mut file = File::create(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, dir.join(FILE_NAME))?;
    sync_dir(dir)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(dir: &Path) -> Result<u64, LogError> {
        Folder::open(dir).map(|folder| folder.nonce())
    }

    #[test]
    fn a_folder_keeps_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let first = nonce(dir.path()).unwrap();
        assert_eq!(nonce(dir.path()).unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(nonce(other.path()).unwrap(), first);
    }

    #[test]
    fn a_folder_belongs_to_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path()).unwrap();
        assert!(Folder::open(dir.path()).unwrap_err().to_string().contains("in use"));
        drop(first);
        assert!(Folder::open(dir.path()).is_ok());
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
