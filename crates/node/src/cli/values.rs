//! Values on their way to stdout or to a file.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use flotilla_client::{Client, ClientError, ValueCache, ValueReader};
use serde::Serialize;

use super::{
    failure::Failure,
    output::Output,
    transfer::{Bar, Moved},
};

/// Times that a value is read from its beginning because its record has changed.
const READS_MAX: usize = 5;

/// What was written to a file.
#[derive(Serialize)]
struct Written {
    version: flotilla_types::Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    transfer: Moved,
}

/// Prints a value. False if there is no record.
pub(super) async fn to_stdout(
    client: &Client,
    collection: &str,
    key: &[u8],
    cache: Option<&ValueCache>,
    output: Output,
) -> Result<bool, Failure> {
    let Some(mut reader) = client.get_value(collection, key, cache).await? else { return Ok(false) };
    let mut reads = 1;
    let mut last = None;
    loop {
        match reader.chunk().await {
            Ok(Some(chunk)) => {
                last = chunk.last().copied().or(last);
                output.bytes(&chunk)?;
            }
            Ok(None) => break,
            // What was printed cannot be taken back.
            Err(ClientError::RecordChanged) if last.is_none() && reads < READS_MAX => {
                reads += 1;
                match client.get_value(collection, key, cache).await? {
                    Some(again) => reader = again,
                    None => return Ok(false),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    // On a terminal a line feed separates the value from the prompt; a program gets exactly the value.
    if output.is_terminal() && last != Some(b'\n') {
        output.line("")?;
    }
    Ok(true)
}

/// Writes a value to a file, which has all of it or is not touched. False if there is no record.
pub(super) async fn to_file(
    client: &Client,
    collection: &str,
    key: &[u8],
    cache: Option<&ValueCache>,
    path: &Path,
    output: Output,
) -> Result<bool, Failure> {
    for read in 1.. {
        let Some(mut reader) = client.get_value(collection, key, cache).await? else { return Ok(false) };
        let mut target = Target::create(path).map_err(|error| Failure::io(path.display(), &error))?;
        match copy(&mut reader, &mut target, path).await {
            Err(Copy::Read(ClientError::RecordChanged)) if read < READS_MAX => continue,
            Err(Copy::Read(error)) => return Err(error.into()),
            Err(Copy::Write(failure)) => return Err(failure),
            Ok(()) => target.finish().map_err(|error| Failure::io(path.display(), &error))?,
        }
        if output.is_json() {
            let ValueReader { version, expires_at_ms, media_type, .. } = &reader;
            let (version, media_type) = (*version, media_type.clone());
            let transfer = reader.transfer().into();
            output.json(&Written { version, expires_at_ms: *expires_at_ms, media_type, transfer })?;
        }
        break;
    }
    Ok(true)
}

enum Copy {
    Read(ClientError),
    Write(Failure),
}

async fn copy(reader: &mut ValueReader, target: &mut Target, path: &Path) -> Result<(), Copy> {
    let bar = Bar::new(reader.bytes);
    while let Some(chunk) = reader.chunk().await.map_err(Copy::Read)? {
        target.file().write_all(&chunk).map_err(|error| Copy::Write(Failure::io(path.display(), &error)))?;
        bar.set(reader.transfer().value_bytes);
    }
    bar.finish();
    Ok(())
}

/// Where a file is written.
enum Target {
    /// Beside the file that it will replace.
    Beside(tempfile::NamedTempFile, PathBuf),
    /// A device or pipe, which cannot be replaced.
    Direct(File),
}

impl Target {
    fn create(path: &Path) -> std::io::Result<Self> {
        let found = fs::metadata(path);
        if found.as_ref().is_ok_and(|found| !found.is_file()) {
            return File::options().write(true).open(path).map(Self::Direct);
        }
        // A symbolic link stays, and the file that it leads to is replaced.
        let path = if found.is_ok() { fs::canonicalize(path)? } else { path.to_owned() };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // What a new file gets, less what the umask takes away; a file that is replaced keeps what it has.
        let permissions = found.map_or_else(|_| Permissions::from_mode(0o666), |found| found.permissions());
        let file = tempfile::Builder::new().prefix(".flotilla-").permissions(permissions).tempfile_in(folder)?;
        Ok(Self::Beside(file, path))
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Beside(file, _) => file.as_file_mut(),
            Self::Direct(file) => file,
        }
    }

    fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Beside(file, path) => file.persist(path).map(drop).map_err(|error| error.error),
            Self::Direct(mut file) => file.flush(),
        }
    }
}
