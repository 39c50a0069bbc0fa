//! Durable replacement of small files.
//!
//! After a crash the file holds the old or the new content, never a mixture. Deliberately absent: locks
//! against other writers, and the recovery of a left-over temporary file, which the next replacement
//! overwrites.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// A step of [`replace_file`] that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceStep {
    /// The temporary file is written and not synced.
    Written,
    /// The temporary file is synced and not renamed.
    Synced,
    /// The file is renamed; the folder is not synced.
    Renamed,
}

/// Replaces a file durably: writes `<path>.new`, syncs it, renames it to `path`, and syncs the folder.
///
/// `mode` is the file's permission bits before the umask. `after_step` is called after each step but the
/// last; an error of it ends the replacement there, so that tests can inject failures.
///
/// # Errors
/// Those of the file system and of `after_step`. The file then holds the old or the new content.
pub fn replace_file(
    path: &Path,
    content: &[u8],
    mode: u32,
    mut after_step: impl FnMut(ReplaceStep) -> io::Result<()>,
) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    after_step(ReplaceStep::Written)?;
    file.sync_all()?;
    after_step(ReplaceStep::Synced)?;
    fs::rename(&temporary, path)?;
    after_step(ReplaceStep::Renamed)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the directory entries of a folder durable.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_replacement_leaves_the_old_or_the_new_content() {
        let dir = std::env::temp_dir().join(format!("flotilla-replace-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("file");
        replace_file(&path, b"old", 0o600, |_| Ok(())).unwrap();
        for (last, content) in
            [(ReplaceStep::Written, "old"), (ReplaceStep::Synced, "old"), (ReplaceStep::Renamed, "new")]
        {
            let interrupt = |step| if step == last { Err(io::Error::other("interrupted")) } else { Ok(()) };
            assert!(replace_file(&path, b"new", 0o600, interrupt).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
