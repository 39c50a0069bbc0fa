//! The witness of a log folder: a file on a memory-backed file system, which lasts as long as the machine runs,
//! with the highest sequence that was synced since its boot.
//!
//! A witness bears the folder's nonce as its name. Beside it lies a *label* that says which folder it belongs
//! to. A start removes witnesses whose folder was deleted, because the file system is in memory: a bounded
//! number, and only those that no process uses, and whose folder is gone from a file system that is still
//! mounted. In doubt a witness stays; if one is missed all the same, peers are asked instead.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use flotilla_types::WalSequence;
use rustix::fs::{FlockOperation, flock};

use crate::format;

/// Where witnesses lie unless the options say otherwise.
pub(crate) const WITNESS_DIR: &str = "/dev/shm";
/// Extension of labels.
const LABEL: &str = "folder";
/// Files that one start looks at, at most.
const FILES_MAX: usize = 4_096;

/// The highest sequence that was synced since this boot.
#[derive(Debug)]
pub(crate) struct Witness(Option<File>);

impl Witness {
    /// The witness of the log folder `log` with this number. A witness that cannot be had vouches for nothing.
    pub(crate) fn open(dir: &Path, log: &Path, nonce: u64) -> Self {
        let open = || -> io::Result<File> {
            let dir = private_folder(dir)?;
            let path = dir.join(format!("{nonce:016x}"));
            let file = file_options().create(true).open(&path)?;
            // The lock tells others that the witness is in use. Who has it already has the same folder number,
            // and shares the witness: it then proves that one of the two folders is a copy.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            if let Err(error) = write_label(&path, log) {
                tracing::debug!(%error, "a witness without a label stays until the machine restarts");
            }
            remove_orphans(&dir);
            Ok(file)
        };
        Self(open().inspect_err(|error| tracing::info!(%error, "no witness in {}", dir.display())).ok())
    }

    pub(crate) fn synced(&self) -> Option<WalSequence> {
        let mut bytes = Vec::new();
        self.0.as_ref()?.read_to_end(&mut bytes).ok()?;
        Some(WalSequence(u64::from_le_bytes(bytes.try_into().ok()?)))
    }

    /// Records what was synced. A witness that cannot be written vouches for nothing any more.
    pub(crate) fn record(&mut self, sequence: WalSequence) {
        let fails = |file: &mut File| file.write_all_at(&sequence.0.to_le_bytes(), 0).is_err();
        if let Some(file) = self.0.take_if(fails) {
            let _ = file.set_len(0);
        }
    }
}

/// This user's folder of witnesses, which no other user may write.
fn private_folder(dir: &Path) -> io::Result<PathBuf> {
    let dir = dir.join(format!("flotilla-{}", rustix::process::getuid().as_raw()));
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&dir)?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(dir)
}

fn file_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600);
    options
}

/// Writes which folder a witness belongs to: the number of its file system, a space, and its path.
fn write_label(witness: &Path, log: &Path) -> io::Result<()> {
    let log = log.canonicalize()?;
    let label = [format!("{} ", fs::metadata(&log)?.dev()).as_bytes(), log.as_os_str().as_bytes()].concat();
    let path = witness.with_extension(LABEL);
    // Replaced whole, so that no reader sees a part of a path. Nothing here survives a crash anyway.
    let unfinished = witness.with_extension("new");
    fs::write(&unfinished, label)?;
    fs::rename(unfinished, path)
}

/// Removes witnesses whose folder is gone.
fn remove_orphans(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let paths = entries.take(FILES_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    for label in paths.filter(|path| path.extension() == Some(OsStr::new(LABEL))) {
        if is_orphan(&label) {
            let removed = fs::remove_file(label.with_extension("")).and_then(|()| fs::remove_file(&label));
            tracing::debug!(label = %label.display(), ?removed, "removed the witness of a folder that is gone");
        }
    }
}

/// Whether the folder of a label was deleted, or replaced by one with another number, and nobody uses its
/// witness.
fn is_orphan(label: &Path) -> bool {
    let witness = label.with_extension("");
    let nonce = witness.file_name().and_then(OsStr::to_str).and_then(|name| u64::from_str_radix(name, 16).ok());
    let (Some(nonce), Ok(content)) = (nonce, fs::read(label)) else { return false };
    let mut parts = content.splitn(2, |byte| *byte == b' ');
    let device = parts.next().and_then(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok());
    let (Some(device), Some(log)) = (device, parts.next()) else { return false };
    let log = Path::new(OsStr::from_bytes(log));
    let is_gone = match format::nonce_of(log) {
        Ok(found) => found.is_some_and(|found| found != nonce),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    is_gone && is_mounted(log, device) && !is_in_use(&witness)
}

/// Whether a path is on this file system, or would be if it existed. Otherwise its own is not mounted now.
fn is_mounted(path: &Path, device: u64) -> bool {
    for folder in path.ancestors() {
        match fs::metadata(folder) {
            Ok(found) => return found.dev() == device,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return false,
        }
    }
    false
}

fn is_in_use(witness: &Path) -> bool {
    match file_options().open(witness) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::LockedFolder;

    struct World {
        root: tempfile::TempDir,
        witnesses: PathBuf,
    }

    impl World {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let witnesses = root.path().join("witnesses");
            fs::create_dir(&witnesses).unwrap();
            Self { root, witnesses }
        }

        /// A log folder, and the witness of a process that was killed.
        fn folder(&self, name: &str) -> (PathBuf, PathBuf) {
            let log = self.root.path().join(name);
            fs::create_dir(&log).unwrap();
            let witness = self.start(&log);
            (log, witness)
        }

        /// Opens and drops the witness of a folder, and returns its path.
        fn start(&self, log: &Path) -> PathBuf {
            let nonce = LockedFolder::open(log).unwrap().nonce();
            Witness::open(&self.witnesses, log, nonce).record(WalSequence(1));
            private_folder(&self.witnesses).unwrap().join(format!("{nonce:016x}"))
        }
    }

    #[test]
    fn the_next_start_of_any_node_removes_witnesses_of_deleted_folders() {
        let world = World::new();
        let (stopped, kept) = world.folder("stopped");
        let (deleted, gone) = world.folder("deleted");
        let (replaced, forgotten) = world.folder("replaced");
        fs::remove_dir_all(deleted).unwrap();
        fs::remove_dir_all(&replaced).unwrap();
        fs::create_dir(&replaced).unwrap();
        LockedFolder::open(&replaced).unwrap();
        world.start(&stopped);
        for removed in [&gone, &forgotten] {
            assert!(!removed.exists() && !removed.with_extension(LABEL).exists(), "{}", removed.display());
        }
        assert!(kept.exists());
        assert_eq!(fs::read_dir(kept.parent().unwrap()).unwrap().count(), 2, "the witness and its label");
    }

    #[test]
    fn a_witness_stays_while_it_may_still_be_needed() {
        let world = World::new();
        let (log, witness) = world.folder("log");
        let label = witness.with_extension(LABEL);
        assert!(!is_orphan(&label), "its folder is there");

        let nonce = LockedFolder::open(&log).unwrap().nonce();
        let running = Witness::open(&world.witnesses, &log, nonce);
        fs::rename(&log, world.root.path().join("moved")).unwrap();
        assert!(!is_orphan(&label), "a process uses it");
        drop(running);
        assert!(is_orphan(&label));

        let content = fs::read(&label).unwrap();
        fs::write(&label, [b"1", content.as_slice()].concat()).unwrap();
        assert!(!is_orphan(&label), "its file system is not mounted");
        fs::write(&label, b"").unwrap();
        assert!(!is_orphan(&label), "an unknown folder");
        fs::write(&label, &content).unwrap();
        fs::rename(world.root.path().join("moved"), &log).unwrap();
        fs::write(log.join("FORMAT"), b"damaged").unwrap();
        assert!(!is_orphan(&label), "whose folder it is cannot be told");
    }
}
