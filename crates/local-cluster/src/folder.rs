//! Operations on the data folder of a stopped node: wipe, copy, restore.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::ClusterError;

/// How many levels below the data folder the view is searched for.
const VIEW_DEPTH_MAX: usize = 4;

/// What a wipe deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WipeScope {
    /// The view: it can be rebuilt.
    View,
    /// Everything: the node comes back as a new node.
    All,
}

pub(crate) fn wipe(data_dir: &Path, what: WipeScope) -> Result<(), ClusterError> {
    match what {
        WipeScope::All => remove(data_dir)?,
        WipeScope::View => {
            let view = find_view(data_dir, VIEW_DEPTH_MAX)?;
            fs::remove_dir_all(view.ok_or_else(|| ClusterError::NoView(data_dir.to_owned()))?)?;
        }
    }
    Ok(())
}

/// Replaces folder `to` by a copy of folder `from`.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

pub(crate) fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn find_view(dir: &Path, depth: usize) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if entry.file_name() == "view" {
                return Ok(Some(entry.path()));
            }
            if depth > 1
                && let Some(found) = find_view(&entry.path(), depth - 1)?
            {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_the_view_keeps_the_rest_and_a_copy_restores_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (data, backup) = (dir.path().join("n1"), dir.path().join("n1.backup"));
        fs::create_dir_all(data.join("state/view/x")).expect("a writable folder");
        fs::write(data.join("state/log"), "log").expect("a writable folder");
        copy(&data, &backup).expect("a readable folder");
        wipe(&data, WipeScope::View).expect("a view to wipe");
        assert!(data.join("state/log").exists() && !data.join("state/view").exists());
        assert!(matches!(wipe(&data, WipeScope::View), Err(ClusterError::NoView(_))));
        wipe(&data, WipeScope::All).expect("a folder to wipe");
        assert!(is_empty(&data));
        copy(&backup, &data).expect("a readable folder");
        assert!(data.join("state/view/x").is_dir() && data.join("state/log").exists());
    }
}
