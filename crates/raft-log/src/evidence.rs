//! Evidence that a log folder still holds everything that was synced to it.
//!
//! A folder that was restored from a copy has forgotten acknowledged entries and votes, and nothing in its
//! content shows that. What shows it lies outside the content:
//!
//! - **Same boot.** After every sync the sequence is written to a *witness*, a file on a memory-backed file
//!   system. A killed process leaves it behind, a reboot removes it. A folder that recovers less than its
//!   witness went back.
//! - **Clean stop.** A closed log leaves a marker with its sequence, and with inode and change time of every
//!   log file. The kernel sets a change time and no program can, so any restore of files gives them another
//!   one.
//! - **Reboot.** Every log file carries its own inode number and birth time in an extended attribute, which a
//!   copy does not match; and neither the files nor the folder changed since the machine booted.
//!
//! A folder without evidence is in doubt, durably (the file `DOUBT`), until its peers have verified it.
//!
//! What no evidence here detects: a whole block device or virtual machine that is set back, memory included;
//! and after a crash of the machine without a clean stop, files whose content was overwritten in place before
//! the next boot, or while the wall clock was wrong.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_storage::{replace_file, sync_dir};
use flotilla_types::WalSequence;
use rustix::fs::{AtFlags, CWD, StatxFlags, XattrFlags, statx};

use crate::witness::Witness;

const DOUBT_FILE: &str = "DOUBT";
const CLEAN_FILE: &str = "CLEAN";
const CLEAN_TITLE: &str = "flotilla-clean-stop 1";
const LOG_SUFFIXES: [&str; 2] = [".raftlog", ".rewrite"];
const BIRTH_ATTRIBUTE: &str = "user.flotilla.birth";
/// The boot time is known to a second only.
const BOOT_MARGIN: Duration = Duration::from_secs(1);

/// Why a folder is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its witness of this boot names no later sequence.
    SameBoot,
    /// It was closed, and no file changed since.
    CleanStop,
    /// The machine was restarted, and every file is the one that the log created, unchanged since the boot.
    Reboot,
}

/// Why a folder is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The folder went back: it recovered less than was synced since this boot.
    #[error("it recovered {recovered}, and {synced} was synced since this boot")]
    WentBack {
        /// What the folder holds.
        recovered: WalSequence,
        /// What its witness saw.
        synced: WalSequence,
    },
    /// An earlier start was in doubt, and no majority of peers has answered since.
    #[error("an earlier start found no evidence, and peers have not verified it since")]
    Earlier,
    /// A file is a copy of the one that the log created.
    #[error("{0} is a copy")]
    Copied(PathBuf),
    /// A file was created, removed or changed since the machine booted, but not by this log.
    #[error("{0} changed since the machine booted")]
    Changed(PathBuf),
    /// Nothing is known: a new or wiped folder, or a file system that does not say what is needed.
    #[error("there is no record of what was synced to it")]
    NoRecord,
}

/// Inode, birth and change of a file. Times are nanoseconds since 1970 by the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileFacts {
    inode: u64,
    born_ns: i128,
    changed_ns: i128,
}

impl FileFacts {
    fn of(path: &Path) -> io::Result<Option<Self>> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = match statx(CWD, path, AtFlags::empty(), mask) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let ns = |time: rustix::fs::StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(has_birth.then(|| Self { inode: stat.stx_ino, born_ns: ns(stat.stx_btime), changed_ns: ns(stat.stx_ctime) }))
    }

    fn birth(&self) -> String {
        format!("{} {}", self.inode, self.born_ns)
    }
}

/// Records in a log file itself which file it is. Without support by the file system there is no evidence
/// after a reboot.
pub(crate) fn mark_birth(path: &Path) {
    let marked = FileFacts::of(path).and_then(|facts| {
        let Some(facts) = facts else { return Ok(()) };
        Ok(rustix::fs::setxattr(path, BIRTH_ATTRIBUTE, facts.birth().as_bytes(), XattrFlags::empty())?)
    });
    if let Err(error) = marked {
        tracing::debug!(file = %path.display(), %error, "the file system keeps no attributes");
    }
}

fn is_original(path: &Path, facts: &FileFacts) -> bool {
    let mut found = [0; 64];
    rustix::fs::getxattr(path, BIRTH_ATTRIBUTE, &mut found[..])
        .is_ok_and(|len| &found[..len] == facts.birth().as_bytes())
}

/// The log files of a folder, in the order of their names.
fn log_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if LOG_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// When the machine booted, nanoseconds since 1970 by the wall clock.
fn boot_ns() -> Option<i128> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds: i128 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(seconds * 1_000_000_000)
}

/// What was found of a folder before the engine touched it.
#[derive(Debug)]
pub(crate) struct Findings {
    witness: Witness,
    synced: Option<WalSequence>,
    in_doubt: bool,
    clean: Option<CleanStop>,
    unchanged: Result<(), Doubt>,
}

impl Findings {
    /// Looks at the folder, and takes its clean-stop marker away: the engine changes files from here on.
    pub(crate) fn gather(dir: &Path, nonce: u64, witness_dir: &Path) -> io::Result<Self> {
        let witness = Witness::open(witness_dir, dir, nonce);
        let clean = CleanStop::read(dir)?.filter(|clean| clean.files_are_unchanged(dir));
        let findings = Self {
            synced: witness.synced(),
            witness,
            in_doubt: dir.join(DOUBT_FILE).try_exists()?,
            clean,
            unchanged: unchanged_since(dir, boot_ns())?,
        };
        if fs::remove_file(dir.join(CLEAN_FILE)).is_ok() {
            sync_dir(dir)?;
        }
        Ok(findings)
    }

    /// Judges the folder by what the engine recovered from it.
    pub(crate) fn judge(&self, recovered: WalSequence) -> Result<Evidence, Doubt> {
        if self.in_doubt {
            return Err(Doubt::Earlier);
        }
        match self.synced {
            Some(synced) if recovered < synced => return Err(Doubt::WentBack { recovered, synced }),
            Some(_) => return Ok(Evidence::SameBoot),
            None => {}
        }
        if self.clean.as_ref().is_some_and(|clean| clean.sequence == recovered) {
            return Ok(Evidence::CleanStop);
        }
        self.unchanged.clone().map(|()| Evidence::Reboot)
    }

    /// The witness, which vouches from now on for what was recovered; never for less than it saw.
    pub(crate) fn into_witness(mut self, recovered: WalSequence) -> Witness {
        if self.synced.is_none_or(|synced| synced < recovered) {
            self.witness.record(recovered);
        }
        self.witness
    }
}

/// Whether each log file is the one that the log created, and nothing changed since the machine booted.
fn unchanged_since(dir: &Path, boot_ns: Option<i128>) -> io::Result<Result<(), Doubt>> {
    let Some(boot_ns) = boot_ns else { return Ok(Err(Doubt::NoRecord)) };
    let files = log_files(dir)?;
    if files.is_empty() {
        return Ok(Err(Doubt::NoRecord));
    }
    let latest_ns = boot_ns - BOOT_MARGIN.as_nanos() as i128;
    for file in &files {
        let Some(facts) = FileFacts::of(file)? else { return Ok(Err(Doubt::NoRecord)) };
        if !is_original(file, &facts) {
            return Ok(Err(Doubt::Copied(file.clone())));
        }
        if facts.changed_ns > latest_ns {
            return Ok(Err(Doubt::Changed(file.clone())));
        }
    }
    // A file that was removed changed the folder.
    match FileFacts::of(dir)? {
        Some(facts) if facts.changed_ns <= latest_ns => Ok(Ok(())),
        _ => Ok(Err(Doubt::Changed(dir.to_owned()))),
    }
}

/// Marks the folder as being in doubt, durably, or takes that back.
pub(crate) fn set_doubt(dir: &Path, in_doubt: bool) -> io::Result<()> {
    let path = dir.join(DOUBT_FILE);
    if in_doubt {
        File::create(&path)?.sync_all()?;
    } else {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        log_files(dir)?.iter().for_each(|file| mark_birth(file));
    }
    sync_dir(dir)
}

/// What a closed log leaves behind.
#[derive(Debug, PartialEq, Eq)]
struct CleanStop {
    sequence: WalSequence,
    /// Name, inode and change time of each log file.
    files: Vec<(String, u64, i128)>,
}

impl CleanStop {
    fn of(dir: &Path, sequence: WalSequence) -> io::Result<Option<Self>> {
        let mut files = Vec::new();
        for path in log_files(dir)? {
            let (Some(name), Some(facts)) = (path.file_name().and_then(|name| name.to_str()), FileFacts::of(&path)?)
            else {
                return Ok(None);
            };
            files.push((name.to_owned(), facts.inode, facts.changed_ns));
        }
        Ok(Some(Self { sequence, files }))
    }

    fn files_are_unchanged(&self, dir: &Path) -> bool {
        Self::of(dir, self.sequence).is_ok_and(|found| found.as_ref() == Some(self))
    }

    /// `None` when the marker is absent or does not parse.
    fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(CLEAN_FILE)) {
            Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(Self::parse)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != CLEAN_TITLE {
            return None;
        }
        let sequence = WalSequence(lines.next()?.strip_prefix("sequence ")?.parse().ok()?);
        let mut files = Vec::new();
        for line in lines {
            let mut words = line.split(' ');
            files.push((words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?.parse().ok()?));
        }
        Some(Self { sequence, files })
    }
}

/// Leaves the marker of a clean stop. Call it after the engine is closed.
pub(crate) fn mark_clean_stop(dir: &Path, sequence: WalSequence) -> io::Result<()> {
    let Some(clean) = CleanStop::of(dir, sequence)? else { return Ok(()) };
    let mut text = format!("{CLEAN_TITLE}\nsequence {}\n", clean.sequence.0);
    for (name, inode, changed_ns) in clean.files {
        text.push_str(&format!("{name} {inode} {changed_ns}\n"));
    }
    replace_file(&dir.join(CLEAN_FILE), text.as_bytes(), 0o600, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SEQUENCE: WalSequence = WalSequence(7);

    struct World {
        _root: tempfile::TempDir,
        dir: PathBuf,
        witness_dir: PathBuf,
    }

    impl World {
        /// A folder with one log file that was synced up to [`SEQUENCE`].
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let (dir, witness_dir) = (root.path().join("log"), root.path().join("witness"));
            fs::create_dir(&dir).unwrap();
            fs::create_dir(&witness_dir).unwrap();
            fs::write(dir.join("0000000000000001.raftlog"), b"entries").unwrap();
            mark_birth(&dir.join("0000000000000001.raftlog"));
            let mut world = Self { _root: root, dir, witness_dir };
            world.record(SEQUENCE);
            world
        }

        fn record(&mut self, sequence: WalSequence) {
            Witness::open(&self.witness_dir, &self.dir, 1).record(sequence);
        }

        /// The machine restarts.
        fn reboot(&self) {
            fs::remove_dir_all(&self.witness_dir).unwrap();
            fs::create_dir(&self.witness_dir).unwrap();
        }

        fn judge(&self, recovered: WalSequence) -> Result<Evidence, Doubt> {
            Findings::gather(&self.dir, 1, &self.witness_dir).unwrap().judge(recovered)
        }

        /// What the reboot rule says if the machine booted just now.
        fn unchanged(&self) -> Result<(), Doubt> {
            unchanged_since(&self.dir, Some(self.changed_ns() + 2_000_000_000)).unwrap()
        }

        /// The last change of a log file or the folder.
        fn changed_ns(&self) -> i128 {
            let paths = log_files(&self.dir).unwrap().into_iter().chain([self.dir.clone()]);
            paths.map(|path| FileFacts::of(&path).unwrap().unwrap().changed_ns).max().unwrap()
        }

        fn shell(&self, script: &str) {
            let status = Command::new("sh").arg("-c").arg(script).current_dir(self.dir.parent().unwrap()).status();
            assert!(status.unwrap().success(), "{script}");
        }
    }

    /// Ways to put an older copy of a folder back: none of them keeps what the kernel alone sets.
    const RESTORES: [&str; 4] = [
        "cp -a log copy && rm -r log && mv copy log",
        "cp -a log copy && cat copy/*.raftlog > log/0000000000000001.raftlog",
        "cp -a log copy && cp -a copy/. log/",
        "tar cf copy.tar log && rm -r log && tar xf copy.tar",
    ];

    #[test]
    fn a_killed_process_leaves_evidence_by_its_witness() {
        let world = World::new();
        assert_eq!(world.judge(SEQUENCE), Ok(Evidence::SameBoot));
        assert_eq!(world.judge(WalSequence(8)), Ok(Evidence::SameBoot), "a write in flight at the kill may be there");
    }

    #[test]
    fn a_folder_that_recovers_less_than_its_witness_went_back() {
        let world = World::new();
        let doubt = Doubt::WentBack { recovered: WalSequence(6), synced: SEQUENCE };
        assert_eq!(world.judge(WalSequence(6)), Err(doubt));
    }

    #[test]
    fn a_clean_stop_is_evidence_once_and_only_for_its_own_files() {
        for restore in RESTORES {
            let world = World::new();
            world.reboot();
            mark_clean_stop(&world.dir, SEQUENCE).unwrap();
            assert_eq!(world.judge(SEQUENCE), Ok(Evidence::CleanStop));
            assert!(world.judge(SEQUENCE).is_err(), "the marker is used up");
            mark_clean_stop(&world.dir, SEQUENCE).unwrap();
            assert!(world.judge(WalSequence(6)).is_err(), "another sequence");
            mark_clean_stop(&world.dir, SEQUENCE).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            world.shell(restore);
            assert!(world.judge(SEQUENCE).is_err(), "{restore}");
        }
    }

    #[test]
    fn after_a_reboot_the_files_must_be_the_ones_that_the_log_created() {
        let world = World::new();
        world.reboot();
        assert_eq!(world.unchanged(), Ok(()));
        assert!(matches!(world.judge(SEQUENCE), Err(Doubt::Changed(_))), "they changed since this machine booted");
        for restore in [RESTORES[0], RESTORES[3]] {
            let world = World::new();
            world.shell(restore);
            assert!(matches!(world.unchanged(), Err(Doubt::Copied(_))), "{restore}");
        }
    }

    #[test]
    fn after_a_reboot_any_change_is_noticed() {
        for change in ["echo x >> log/0000000000000001.raftlog", "cp -a log copy && cp -a copy/. log/", "touch log/x"] {
            let world = World::new();
            let booted_ns = world.changed_ns() + 1_010_000_000;
            assert_eq!(unchanged_since(&world.dir, Some(booted_ns)).unwrap(), Ok(()));
            std::thread::sleep(Duration::from_millis(20));
            world.shell(change);
            let found = unchanged_since(&world.dir, Some(booted_ns)).unwrap();
            assert!(matches!(found, Err(Doubt::Changed(_))), "{change}: {found:?}");
        }
    }

    #[test]
    fn doubt_lasts_until_peers_take_it_back() {
        let world = World::new();
        set_doubt(&world.dir, true).unwrap();
        assert_eq!(world.judge(SEQUENCE), Err(Doubt::Earlier));
        assert_eq!(world.judge(SEQUENCE), Err(Doubt::Earlier), "also at the next start");
        set_doubt(&world.dir, false).unwrap();
        assert_eq!(world.judge(SEQUENCE), Ok(Evidence::SameBoot));
    }

    #[test]
    fn a_new_or_wiped_folder_has_no_evidence() {
        let world = World::new();
        world.reboot();
        fs::remove_dir_all(&world.dir).unwrap();
        fs::create_dir(&world.dir).unwrap();
        assert_eq!(world.judge(WalSequence(0)), Err(Doubt::NoRecord));
    }
}
