//! `kv import --unpack`: archives become one record for each of their files, so that equal files in different
//! archives are stored once, and a new version of an archive costs what changed in it.
//!
//! An archive is read twice: first to its end, so that one that is damaged or cannot be described is stored as it
//! is and nothing of it is lost; then its files become entries. Archives in archives are taken apart as well. The
//! bytes of the archive are not kept: compressing its files again would not give the same ones.

mod formats;
mod manifest;

use std::{collections::BTreeSet, io, io::Read};

use clap::Args;
use flotilla_api::KEY_BYTES_MAX;
use flotilla_client::{LARGE_VALUE_BYTES_MAX, ValueSource};

use super::{Content, Entry, Source, folder};
use crate::cli::output::cell;
use formats::{Format, Member, MemberKind};
use manifest::{Described, Manifest};

/// Archives in archives.
const DEPTH_MAX: u32 = 3;
/// Members of one archive.
const MEMBERS_MAX: usize = 100_000;
/// Bytes that a file on disk may have when it is taken apart, with all archives in it: against archives that were
/// made to fill the disk.
const UNPACKED_BYTES_MAX: u64 = 16 << 30;
/// Content of a member that is no file, such as the target of a link.
const SHORT_BYTES_MAX: u64 = 64 << 10;
/// Name of the record that describes an archive, below the archive's name.
const MANIFEST: &str = ".flotilla-archive.json";

#[derive(Debug, Args)]
pub(crate) struct UnpackArguments {
    /// Take archives apart (.tar, .tar.gz, .tgz, .gz, .zip, .whl): each file in one becomes a record under
    /// ARCHIVE/PATH
    ///
    /// So equal files are stored once, whichever archives they are in, and archives in archives as well, to a depth
    /// of 3. The record ARCHIVE/.flotilla-archive.json describes the archive: its format, length and BLAKE3 hash; the
    /// comments and names in its headers; and its members in order, each with path, key, kind, length and BLAKE3
    /// hash, mode, time, owner, target of a link, and compression method. Not kept are the archive's own bytes, which
    /// cannot be made again from this, extended attributes and ACLs, extra fields, fractions of seconds and padding.
    /// What cannot be taken apart without loss, as with two members of one path, paths with `..`, encryption or
    /// damage, is stored as it is, and listed.
    #[arg(long)]
    pub(super) unpack: bool,
}

/// Why an archive is not taken apart.
enum Stop {
    /// It is stored as it is.
    Keep(String),
    /// Nobody takes entries any more.
    NotWanted,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Keep(error.to_string())
    }
}

fn keep(reason: impl Into<String>) -> Stop {
    Stop::Keep(reason.into())
}

/// Sends a record, or what is in it if it is an archive. Returns whether more entries are wanted.
pub(super) fn take_apart(source: Source, send: &mut dyn FnMut(Entry) -> bool) -> bool {
    Unpacking { left: UNPACKED_BYTES_MAX, send }.entry(source, 0)
}

/// One file of the source, with all archives in it.
struct Unpacking<'a> {
    /// Bytes that may still be unpacked.
    left: u64,
    send: &'a mut dyn FnMut(Entry) -> bool,
}

impl Unpacking<'_> {
    fn entry(&mut self, source: Source, depth: u32) -> bool {
        let Some(format) = Format::of(&source.key).filter(|_| depth < DEPTH_MAX) else {
            return (self.send)(Entry::Record(source));
        };
        match self.archive(&source, format, depth) {
            Ok(()) => (self.send)(Entry::Unpacked),
            Err(Stop::NotWanted) => false,
            Err(Stop::Keep(reason)) => {
                let name = cell(&source.key);
                (self.send)(Entry::KeptWhole { name, reason }) && (self.send)(Entry::Record(source))
            }
        }
    }

    fn archive(&mut self, archive: &Source, format: Format, depth: u32) -> Result<(), Stop> {
        let content = match &archive.value {
            Content::Read(value) => value.clone(),
            Content::File(path) => ValueSource::open_sync(path)?,
        };
        let manifest = self.describe(&archive.key, &content, format)?;
        let description = manifest.encode().map_err(|error| keep(error.to_string()))?;
        if description.len() as u64 > LARGE_VALUE_BYTES_MAX {
            return Err(keep("its description is longer than a value may be"));
        }
        let mut members = manifest.into_members();
        format.walk(&archive.key, &content, &mut |_, reader| {
            // As at the first time, unless the file was changed.
            let changed = || keep("it changed while it was read");
            let described = members.next().ok_or_else(changed)?;
            let Some(path) = described.key else { return Ok(()) };
            let value = ValueSource::read_sync(reader)?;
            if value.len() != described.bytes {
                return Err(changed());
            }
            let source = self.source(archive, &path, value);
            if self.entry(source, depth + 1) { Ok(()) } else { Err(Stop::NotWanted) }
        })?;
        let source = self.source(archive, MANIFEST.as_bytes(), description.into());
        if (self.send)(Entry::Record(source)) { Ok(()) } else { Err(Stop::NotWanted) }
    }

    fn source(&self, archive: &Source, path: &[u8], value: ValueSource) -> Source {
        let key = key_below(&archive.key, path);
        Source { key, value: Content::Read(value), expires_at_ms: archive.expires_at_ms }
    }

    /// Reads all of an archive. Fails if it cannot be taken apart without loss.
    fn describe(&mut self, name: &[u8], content: &ValueSource, format: Format) -> Result<Manifest, Stop> {
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut content.reader(), &mut hasher)?;
        let mut members = Vec::new();
        let mut keys = BTreeSet::from([MANIFEST.as_bytes().to_vec()]);
        let headers = format.walk(name, content, &mut |member, reader| {
            if members.len() == MEMBERS_MAX {
                return Err(keep(format!("it has more than {MEMBERS_MAX} members")));
            }
            let described = self.member(name, member, reader)?;
            if let Some(key) = &described.key
                && !keys.insert(key.clone())
            {
                return Err(keep(format!("two of its members have the path {}", cell(key))));
            }
            members.push(described);
            Ok(())
        })?;
        if members.is_empty() {
            return Err(keep("it has no members"));
        }
        Ok(Manifest::new(format, content.len(), hasher.finalize(), headers, members))
    }

    fn member(&mut self, name: &[u8], member: Member, reader: &mut dyn Read) -> Result<Described, Stop> {
        let is_file = member.kind == MemberKind::File;
        let bytes_max = if is_file { LARGE_VALUE_BYTES_MAX } else { SHORT_BYTES_MAX };
        let mut limited = reader.take(bytes_max.min(self.left) + 1);
        let mut hasher = blake3::Hasher::new();
        let mut data = Vec::new();
        let bytes = if is_file { io::copy(&mut limited, &mut hasher)? } else { limited.read_to_end(&mut data)? as u64 };
        if bytes > bytes_max {
            return Err(keep(format!("its member {} has more than {bytes_max} bytes", cell(&member.path))));
        }
        if member.bytes.is_some_and(|expected| expected != bytes) {
            return Err(keep(format!("its member {} is not complete", cell(&member.path))));
        }
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| keep(format!("it has more than {UNPACKED_BYTES_MAX} bytes when unpacked")))?;
        let mut described = Described { bytes, data, hash: None, key: None, member };
        if is_file {
            described.hash = Some(hasher.finalize());
            described.key = Some(key_of(name, &described.member.path)?);
        }
        Ok(described)
    }
}

/// The key of a member below that of its archive.
fn key_of(name: &[u8], path: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut key = path;
    while let Some(rest) = key.strip_prefix(b"./") {
        key = rest;
    }
    // What can be exported to a folder again.
    folder::path_of(key).map_err(|reason| keep(format!("its member {}: {reason}", cell(path))))?;
    if key_below(name, key).len() > KEY_BYTES_MAX {
        return Err(keep(format!("the path of its member {} is too long", cell(path))));
    }
    Ok(key.to_vec())
}

fn key_below(name: &[u8], path: &[u8]) -> Vec<u8> {
    [name, b"/", path].concat()
}

#[cfg(test)]
mod tests;
