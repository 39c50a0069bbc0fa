//! The ballast: a file in the data folder that only takes up space.
//!
//! A node on a full disk cannot start: it must count the start and open a new file of its log. Then the
//! ballast is deleted, by the operator or by the next start, and what it took lets the node start, catch up,
//! write checkpoints and free its log, while the operator makes room. It is made again by a start that finds
//! room. A running node never touches it: it would only hide for a while that the disk is full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use flotilla_placement::Disk;
use flotilla_storage::sync_dir;
use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

/// Its name in the data folder.
const FILE: &str = "ballast";
/// Bytes below which a disk counts as full: a start needs a new file of the log, with zeros ahead of it, and
/// the first checkpoints.
const START_BYTES_MIN: u64 = 16 << 20;
/// Bytes per write where the file system cannot reserve space.
const ZEROS_BYTES: usize = 1 << 20;

/// What a start does about the ballast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Keep,
    /// Make it, in place of one of another size.
    Make,
    /// Delete it: the disk is full.
    GiveUp,
    /// Delete it: the setting is 0.
    Remove,
    /// There is none, and no room for one.
    NoRoom,
}

/// Decides from the size of the file, the wanted size, and the space that is available beside the file.
fn decide(file_bytes: Option<u64>, wanted_bytes: u64, available_bytes: u64) -> Step {
    let unused_bytes = available_bytes.saturating_add(file_bytes.unwrap_or(0));
    match file_bytes {
        Some(_) if wanted_bytes == 0 => Step::Remove,
        Some(_) if available_bytes < START_BYTES_MIN => Step::GiveUp,
        Some(bytes) if bytes == wanted_bytes => Step::Keep,
        None if wanted_bytes == 0 => Step::Keep,
        // Afterwards as much must be free as the ballast takes: it must not be what fills the disk.
        _ if unused_bytes >= wanted_bytes.saturating_mul(2).saturating_add(START_BYTES_MIN) => Step::Make,
        Some(_) => Step::Keep,
        None => Step::NoRoom,
    }
}

/// Makes the ballast, keeps it, or deletes it when the disk is full. A node without ballast starts all the
/// same, so failures are only logged.
pub(super) fn prepare(dir: &Path, wanted_bytes: u64) {
    if let Err(error) = try_prepare(dir, wanted_bytes) {
        tracing::warn!(%error, path = %dir.join(FILE).display(), "the ballast file could not be prepared");
    }
}

/// What to say of the disk beside an error that a full one may have caused: errors of libraries name neither
/// the folder nor the reason in words.
pub(super) fn shortage(dir: &Path) -> Option<String> {
    let available_bytes = available_bytes(dir).ok().filter(|bytes| *bytes < START_BYTES_MIN)?;
    Some(format!("the disk of {} is full ({} KiB are left): make room", dir.display(), available_bytes >> 10))
}

/// The disk of a folder.
pub(super) fn disk(dir: &Path) -> io::Result<Disk> {
    let disk = statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Disk { bytes: bytes(disk.f_blocks), free_bytes: bytes(disk.f_bavail) })
}

fn available_bytes(dir: &Path) -> io::Result<u64> {
    Ok(disk(dir)?.free_bytes)
}

fn try_prepare(dir: &Path, wanted_bytes: u64) -> io::Result<Step> {
    let path = dir.join(FILE);
    let file_bytes = match fs::metadata(&path) {
        Ok(metadata) => Some(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let available_bytes = available_bytes(dir)?;
    let step = decide(file_bytes, wanted_bytes, available_bytes);
    match step {
        Step::Keep => {}
        Step::Make => make(&path, wanted_bytes)?,
        Step::GiveUp => {
            fs::remove_file(&path)?;
            tracing::warn!(
                path = %path.display(),
                available_bytes,
                freed_bytes = file_bytes,
                "the disk is full: the ballast file was deleted, so that this node can start; make room"
            );
        }
        Step::Remove => fs::remove_file(&path)?,
        Step::NoRoom => tracing::warn!(available_bytes, wanted_bytes, "there is no room for a ballast file"),
    }
    sync_dir(dir)?;
    Ok(step)
}

/// Writes the file anew. After an error there is none.
fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    let made = reserve(&mut file, bytes).and_then(|()| file.sync_all());
    made.inspect_err(|_| drop(fs::remove_file(path)))
}

fn reserve(file: &mut File, bytes: u64) -> io::Result<()> {
    match fallocate(&*file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        reserved => return Ok(reserved?),
    }
    let zeros = vec![0; ZEROS_BYTES];
    let mut left = bytes;
    while left > 0 {
        let next = usize::try_from(left).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        file.write_all(&zeros[..next])?;
        left -= next as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_full_disk_gives_the_ballast_up_and_one_with_room_makes_it() {
        let enough = 2 * 64 * MIB + START_BYTES_MIN;
        for (file, wanted, available, expected) in [
            (None, 64 * MIB, enough, Step::Make),
            (None, 64 * MIB, enough - 1, Step::NoRoom),
            (None, 64 * MIB, 0, Step::NoRoom),
            (None, 0, 0, Step::Keep),
            (None, u64::MAX, u64::MAX - 1, Step::NoRoom),
            (Some(64 * MIB), 64 * MIB, START_BYTES_MIN, Step::Keep),
            (Some(64 * MIB), 64 * MIB, START_BYTES_MIN - 1, Step::GiveUp),
            (Some(64 * MIB), 64 * MIB, 0, Step::GiveUp),
            (Some(64 * MIB), 0, 0, Step::Remove),
            (Some(64 * MIB), 0, enough, Step::Remove),
            // Another size: made anew if there is room, else kept, and given up like any other.
            (Some(8 * MIB), 64 * MIB, enough, Step::Make),
            (Some(8 * MIB), 64 * MIB, START_BYTES_MIN, Step::Keep),
            (Some(8 * MIB), 64 * MIB, 0, Step::GiveUp),
            (Some(0), 64 * MIB, enough, Step::Make),
        ] {
            assert_eq!(decide(file, wanted, available), expected, "{file:?}, {wanted}, {available}");
        }
    }

    #[test]
    fn the_ballast_takes_the_space_that_it_claims_until_it_is_removed() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let size = || fs::metadata(&path).map(|it| (it.len(), it.blocks() * 512 >= it.len())).ok();
        assert_eq!(try_prepare(dir.path(), 3 * MIB).unwrap(), Step::Make);
        assert_eq!(size(), Some((3 * MIB, true)));
        assert_eq!(try_prepare(dir.path(), 3 * MIB).unwrap(), Step::Keep);
        assert_eq!(try_prepare(dir.path(), MIB).unwrap(), Step::Make);
        assert_eq!(size(), Some((MIB, true)));
        assert_eq!(try_prepare(dir.path(), u64::MAX / 4).unwrap(), Step::Keep);
        assert_eq!(try_prepare(dir.path(), 0).unwrap(), Step::Remove);
        assert_eq!(size(), None);
    }
}
