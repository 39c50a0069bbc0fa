//! Disks of a node's own, which can be full or lose their power.
//!
//! A disk ends with its owner; mounts that a killed test process left are removed by the next one. Needs root.
//!
//! What a power cut keeps is what the file system had sent to the disk: the image file stands for a disk without a volatile cache.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process,
};

use crate::privileged::{is_orphan, run};

/// The tools that a small disk needs.
pub const DISK_TOOLS: &[&str] = &["mount", "umount", "mkfs.ext4"];
/// The tools that a power cut needs.
pub const POWER_TOOLS: &[&str] = &["mount", "umount", "mkfs.ext4", "cc"];
/// The file that fills a disk.
const FILLING: &str = ".filling";
/// Written at a time while filling.
const FILL_STEPS: [usize; 3] = [1 << 20, 4 << 10, 1];
/// Part of the image's name, with the pid behind it, so that orphans are found in the list of mounts.
const TAG: &str = ".flotilla-disk-";

/// A file system in a file.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes an ext4 of so many bytes and mounts it at `at`, which is created.
    pub(crate) fn mount(at: &Path, bytes: u64) -> io::Result<Self> {
        sweep();
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

    /// Takes all the space that is left.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.at.join(FILLING))?;
        for step in FILL_STEPS {
            let zeros = vec![0; step];
            loop {
                match file.write(&zeros) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        // Some space is only taken when it is written out.
        match file.sync_all() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives it back.
    pub(crate) fn drain(&self) -> io::Result<()> {
        fs::remove_file(self.at.join(FILLING))
    }

    /// From here on nothing reaches the disk, and what had not reached it is lost.
    pub(crate) fn cut_power(&self) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let (source, program) = (folder.path().join("power_cut.c"), folder.path().join("power_cut"));
        fs::write(&source, include_str!("../c/power_cut.c"))?;
        run("cc", &["-o", &text(&program)?, &text(&source)?])?;
        run(&text(&program)?, &[&text(&self.at)?]).map(drop)
    }

    /// Switches the power on again: the journal is replayed. Nobody may use the disk.
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
            // Somebody is in it still; it goes when they do.
            let _ = run("umount", &["-l", &at]);
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidFilename.into())
}

/// Unmounts what killed test processes left.
fn sweep() {
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
