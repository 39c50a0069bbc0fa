//! One loop-mounted disk per node, which a test can fill up or cut off from power.
//!
//! A disk is unmounted when its owner is dropped; the next test process removes mounts that a killed one left
//! behind. Needs root.
//!
//! A power cut keeps what the file system had sent to the disk: the image file models a disk without a
//! volatile cache.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use crate::privileged::{is_orphan, run};

/// System tools required to mount a small disk.
pub const DISK_TOOLS: &[&str] = &["mount", "umount", "mkfs.ext4"];
/// System tools required to cut the power of a disk.
pub const POWER_TOOLS: &[&str] = &["mount", "umount", "mkfs.ext4", "cc"];
/// Name of the file that fills the disk.
const FILL_FILE: &str = ".filling";
/// Sizes of the writes that fill a disk, in bytes: large ones first, then what still fits.
const FILL_CHUNK_BYTES: [usize; 3] = [1 << 20, 4 << 10, 1];
/// Part of the image's name, followed by the owner's pid, so that orphans can be recognised among the mounts.
const TAG: &str = ".flotilla-disk-";

/// An ext4 file system in an image file, mounted through a loop device.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Creates an ext4 file system of `bytes` bytes and mounts it at `at`, which is created.
    pub(crate) fn mount(at: &Path, bytes: u64) -> io::Result<Self> {
        unmount_orphans();
        fs::create_dir_all(at)?;
        let mut image = at.as_os_str().to_owned();
        image.push(format!("{TAG}{}", process::id()));
        let disk = Self { at: at.to_owned(), image: image.into() };
        File::create(&disk.image)?.set_len(bytes)?;
        run("mkfs.ext4", &["-q", "-F", &text(&disk.image)?])?;
        disk.attach()?;
        fs::remove_dir(disk.at.join("lost+found"))?;
        Ok(disk)
    }

    /// Fills all remaining space.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.at.join(FILL_FILE))?;
        for bytes in FILL_CHUNK_BYTES {
            let zeros = vec![0; bytes];
            loop {
                match file.write(&zeros) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        // Delayed allocation: some space is only allocated when it is flushed.
        match file.sync_all() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(error),
            _ => Ok(()),
        }
    }

    /// Frees the space that [`Disk::fill`] took.
    pub(crate) fn free(&self) -> io::Result<()> {
        fs::remove_file(self.at.join(FILL_FILE))
    }

    /// Cuts the disk off: nothing reaches it any more, and data that had not reached it is lost.
    pub(crate) fn cut_power(&self) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (source, program) = (folder.path().join("power_cut.c"), folder.path().join("power_cut"));
        fs::write(&source, include_str!("../c/power_cut.c"))?;
        run("cc", &["-o", &text(&program)?, &text(&source)?])?;
        run(&text(&program)?, &[&text(&self.at)?]).map(drop)
    }

    /// Mounts the disk again, which replays the journal. No process may be using it.
    pub(crate) fn restore_power(&self) -> io::Result<()> {
        run("umount", &[&text(&self.at)?])?;
        self.attach()
    }

    fn attach(&self) -> io::Result<()> {
        run("mount", &["-o", "loop", &text(&self.image)?, &text(&self.at)?]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Ok(at) = text(&self.at) else { return };
        if run("umount", &[&at]).is_err() {
            // A process still uses it: detach it now, and the kernel unmounts it when that process ends.
            let _ = run("umount", &["-l", &at]);
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidFilename.into())
}

/// Unmounts the disks of test processes that were killed.
fn unmount_orphans() {
    let loops = run("losetup", &["-l", "-n", "-O", "NAME,BACK-FILE"]).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for (device, file) in loops.lines().filter_map(|line| line.split_once(char::is_whitespace)) {
        let Some((_, pid)) = file.trim().rsplit_once(TAG) else { continue };
        let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
        let at = mounts.lines().filter_map(|line| line.strip_prefix(&format!("{device} "))).next();
        if is_orphan(&pid)
            && let Some(at) = at.and_then(|rest| rest.split(' ').next())
        {
            let _ = run("umount", &["-l", at]);
        }
    }
}
