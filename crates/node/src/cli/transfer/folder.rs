//! Folders: each file is a record whose key is the path below the root, byte for byte.

use std::{
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use flotilla_api::KEY_BYTES_MAX;
use flotilla_client::{LARGE_VALUE_BYTES_MAX, ValueSource};
use walkdir::WalkDir;

use super::{Content, Entry, Source};
use crate::cli::output::cell;

/// The entries below a folder, ordered by name. Symbolic links are not followed.
pub(super) fn entries(root: PathBuf) -> impl Iterator<Item = Entry> {
    WalkDir::new(&root).sort_by_file_name().into_iter().filter_map(move |entry| match entry {
        Ok(entry) if entry.file_type().is_dir() => None,
        Ok(entry) => Some(entry_of(&root, &entry)),
        Err(error) => {
            let name = error.path().map_or_else(|| "?".to_owned(), |path| cell(path.as_os_str().as_bytes()));
            Some(Entry::Refused { name, reason: format!("cannot be read: {error}") })
        }
    })
}

fn entry_of(root: &Path, entry: &walkdir::DirEntry) -> Entry {
    let kind = entry.file_type();
    if kind.is_symlink() {
        return Entry::Link;
    }
    let path = entry.path();
    let key = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_vec();
    let refused = |reason: String| Entry::Refused { name: cell(&key), reason };
    if !kind.is_file() {
        return refused("not a file".to_owned());
    }
    if key.len() > KEY_BYTES_MAX {
        return refused(format!("its path is longer than {KEY_BYTES_MAX} bytes"));
    }
    Entry::Record(Source { key, value: Content::File(path.to_owned()), expires_at_ms: None })
}

pub(super) fn too_large(bytes: u64) -> String {
    format!("{bytes} bytes are more than the limit of {LARGE_VALUE_BYTES_MAX}")
}

/// The path of a key's file below the root, or the reason why there is none.
pub(super) fn path_of(key: &[u8]) -> Result<PathBuf, &'static str> {
    /// Longest file name on Linux file systems.
    const NAME_BYTES_MAX: usize = 255;
    let mut path = PathBuf::new();
    for name in key.split(|byte| *byte == b'/') {
        match name {
            b"" => return Err("its key has an empty part between slashes"),
            b"." | b".." => return Err("its key contains `.` or `..` as a part"),
            _ if name.contains(&0) => return Err("its key has a zero byte"),
            _ if name.len() > NAME_BYTES_MAX => return Err("a part of its key is too long for a file name"),
            _ => path.push(std::ffi::OsStr::from_bytes(name)),
        }
    }
    Ok(path)
}

/// Writes a value below the root. Never follows a symbolic link, so that nothing outside is written.
pub(super) fn write(root: &Path, key: &[u8], value: &ValueSource) -> Result<(), String> {
    let path = path_of(key)?;
    let mut parent = root.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        match fs::symlink_metadata(&parent) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(format!("{} is not a folder", parent.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
            }
            Err(error) => return Err(format!("{}: {error}", parent.display())),
        }
    }
    let file = root.join(path);
    if fs::symlink_metadata(&file).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(format!("{} exists and is not a file", file.display()));
    }
    let written = File::create(&file).and_then(|mut file| io::copy(&mut value.reader(), &mut file));
    written.map(drop).map_err(|error| format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::fs::symlink};

    use super::*;

    fn keys(root: &Path) -> Vec<Vec<u8>> {
        entries(root.to_owned())
            .filter_map(|entry_of| match entry_of {
                Entry::Record(source) => Some(source.key),
                Entry::Link | Entry::Refused { .. } | Entry::Unpacked | Entry::KeptWhole { .. } => None,
            })
            .collect()
    }

    #[test]
    fn keys_are_relative_paths_byte_for_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(folder.path().join("a/b")).expect("folders");
        fs::write(folder.path().join("a/b/c d%"), "x").expect("a file");
        fs::write(folder.path().join(OsStr::from_bytes(b"\xff")), "").expect("a file");
        assert_eq!(keys(folder.path()), [b"a/b/c d%".to_vec(), b"\xff".to_vec()]);
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        symlink("/etc", folder.path().join("link")).expect("a link");
        let entries: Vec<Entry> = entries(folder.path().to_owned()).collect();
        assert!(matches!(&entries[..], [Entry::Link]), "{entries:?}");
    }

    #[test]
    fn keys_that_would_leave_the_folder_have_no_path() {
        assert_eq!(path_of(b"a/b.c"), Ok(PathBuf::from("a/b.c")));
        for bad in [&b"../a"[..], b"/a", b"a//b", b"a/", b"a/./b", b"a\0", &[b'x'; 256]] {
            assert!(path_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn symbolic_links_are_not_followed_when_writing() {
        let (folder, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        symlink(outside.path(), folder.path().join("link")).expect("a link");
        symlink(outside.path().join("file"), folder.path().join("file")).expect("a link");
        let value = ValueSource::from("v");
        assert!(write(folder.path(), b"link/x", &value).is_err());
        assert!(write(folder.path(), b"file", &value).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 0);
        write(folder.path(), b"a/b", &value).expect("written");
        assert_eq!(fs::read(folder.path().join("a/b")).expect("a file"), b"v");
    }
}
