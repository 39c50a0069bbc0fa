//! Checks the files of the log for damage before the engine reads them.
//!
//! raft-engine truncates its last file at the first batch that does not match its checksum, and any file at a
//! last batch whose entries do not. That is right for the batch in flight at a power failure and wrong for
//! any other batch: synced batches would vanish silently. Only one batch is ever in flight, so a batch with
//! anything written after it had been synced, and its damage is [`OpenError::Damaged`]. The checks change
//! nothing.
//!
//! A damaged synced *last* batch looks like a torn one. Peers distinguish the two by the node-wide sequence;
//! this module cannot.
//!
//! The layout of files and batches is raft-engine's format version 2, the version that `Options` selects.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use flotilla_storage::LogError;

use crate::{OpenError, record};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// Version 2 without alignment: these bytes follow the magic in every file that the engine writes.
const VERSION_AND_ALIGNMENT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
/// Magic, version and alignment.
const FILE_HEADER_BYTES: usize = MAGIC.len() + 16;
/// Length and compression type, then offset of the footer.
const BATCH_HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// The engine writes no larger batch. It would allocate whatever size a damaged header claims, and abort.
const BATCH_BYTES_MAX: u64 = 4 << 30;
const APPEND_SUFFIX: &str = ".raftlog";
const REWRITE_SUFFIX: &str = ".rewrite";

/// Refuses damage to synced batches, which the engine would truncate.
pub(crate) fn check(dir: &Path, nonce: u64) -> Result<(), LogError> {
    for suffix in [APPEND_SUFFIX, REWRITE_SUFFIX] {
        let mut files = files(dir, suffix)?;
        let last = files.pop();
        for (file, _) in files {
            check_closed(file)?;
        }
        match last {
            Some((file, seq)) if suffix == APPEND_SUFFIX => check_last(file, seq, nonce)?,
            Some((file, _)) => drop(last_batch(file, Header::Torn)?),
            None => {}
        }
    }
    Ok(())
}

/// Removes a last file whose header was never completed, after [`check`] has found that it holds nothing. The
/// engine would append to it in an older format than the one that is checked here.
pub(crate) fn remove_file_without_header(dir: &Path) -> io::Result<()> {
    for suffix in [APPEND_SUFFIX, REWRITE_SUFFIX] {
        let Some((path, _)) = files(dir, suffix)?.pop() else { continue };
        let mut start = Vec::new();
        File::open(&path)?.take(FILE_HEADER_BYTES as u64).read_to_end(&mut start)?;
        if Header::of(&start) != Header::Valid {
            tracing::info!(file = %path.display(), "removing a log file without a header");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The last file may end in one torn batch.
fn check_last(path: PathBuf, seq: u64, nonce: u64) -> Result<(), LogError> {
    let bytes = fs::read(&path)?;
    let header = Header::of(&bytes);
    let prefix = ValidPrefix::of(&bytes, seq);
    let rest = &bytes[prefix.end..];
    let refused = header == Header::Damaged || (header == Header::Valid && is_oversized(rest));
    if refused || has_later_batch(rest, nonce) {
        return Err(OpenError::Damaged { file: path, offset: prefix.end as u64 }.into());
    }
    match prefix.last_batch {
        Some(last) if rest.iter().any(|byte| *byte != 0) && !entries_match_checksum(&bytes[last.clone()]) => {
            Err(OpenError::Damaged { file: path, offset: last.start as u64 }.into())
        }
        _ => Ok(()),
    }
}

/// Checks a closed file, which was synced to its end. The engine checks everything but the entries, and would
/// truncate a last batch with damaged ones. Of the other batches only the headers are read: there may be many
/// files.
fn check_closed(path: PathBuf) -> Result<(), LogError> {
    let Some((path, offset, len)) = last_batch(path, Header::Valid)? else { return Ok(()) };
    let mut batch = vec![0; len];
    File::open(&path)?.read_exact_at(&mut batch, offset)?;
    if entries_match_checksum(&batch) { Ok(()) } else { Err(OpenError::Damaged { file: path, offset }.into()) }
}

/// Follows the headers of a file to its last whole batch; returns its offset and length. Refuses an
/// impossible batch header, and a file header worse than `allowed`.
fn last_batch(path: PathBuf, allowed: Header) -> Result<Option<(PathBuf, u64, usize)>, LogError> {
    let file = File::open(&path)?;
    let size = file.metadata()?.len();
    let mut start = Vec::new();
    (&file).take(FILE_HEADER_BYTES as u64).read_to_end(&mut start)?;
    match Header::of(&start) {
        Header::Valid => {}
        found if found <= allowed => return Ok(None),
        _ => return Err(OpenError::Damaged { file: path, offset: 0 }.into()),
    }
    let mut last = None;
    let mut at = FILE_HEADER_BYTES as u64;
    let mut header = [0; BATCH_HEADER_BYTES];
    while at + BATCH_HEADER_BYTES as u64 <= size {
        file.read_exact_at(&mut header, at)?;
        if is_oversized(&header) {
            return Err(OpenError::Damaged { file: path, offset: at }.into());
        }
        let Some((len, _)) = batch_header(&header) else { break };
        if size - at < len as u64 {
            break;
        }
        last = Some((at, len));
        at += len as u64;
    }
    Ok(last.map(|(offset, len)| (path, offset, len)))
}

/// Whether the batch header at the start of `bytes` claims an impossible length.
fn is_oversized(bytes: &[u8]) -> bool {
    bytes.split_first_chunk::<8>().is_some_and(|(len, _)| u64::from_be_bytes(*len) >> 8 > BATCH_BYTES_MAX)
}

/// Whether anything was written after the first batch in `rest`, which does not match its checksum.
fn has_later_batch(rest: &[u8], nonce: u64) -> bool {
    // Either that batch's header still says where it ends, or its sequence and that of the next batch can
    // still be found.
    let after = batch_header(rest).and_then(|(len, _)| rest.get(len..)).unwrap_or_default();
    after.iter().any(|byte| *byte != 0) || record::sequences_in(rest, nonce).collect::<BTreeSet<_>>().len() > 1
}

/// The first file with a damaged batch, to name it in the error when the engine fails.
pub(crate) fn find_damage(dir: &Path) -> io::Result<Option<OpenError>> {
    for suffix in [APPEND_SUFFIX, REWRITE_SUFFIX] {
        for (file, seq) in files(dir, suffix)? {
            let bytes = fs::read(&file)?;
            let end = ValidPrefix::of(&bytes, seq).end;
            if bytes[end..].iter().any(|byte| *byte != 0) {
                return Ok(Some(OpenError::Damaged { file, offset: end as u64 }));
            }
        }
    }
    Ok(None)
}

/// The file that the engine appends to, with its number.
pub(crate) fn last_file(dir: &Path) -> io::Result<Option<(PathBuf, u64)>> {
    Ok(files(dir, APPEND_SUFFIX)?.pop())
}

/// The files of a queue, oldest first.
fn files(dir: &Path, suffix: &str) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for found in fs::read_dir(dir)? {
        let found = found?;
        let name = found.file_name();
        let seq = name.to_str().and_then(|name| name.strip_suffix(suffix)).and_then(|seq| seq.parse().ok());
        files.extend(seq.map(|seq| (found.path(), seq)));
    }
    files.sort_unstable_by_key(|(_, seq)| *seq);
    Ok(files)
}

/// The batches at the start of a file whose footers match their checksums.
struct ValidPrefix {
    /// The end of the last one.
    end: usize,
    /// The last one.
    last_batch: Option<Range<usize>>,
}

impl ValidPrefix {
    fn of(bytes: &[u8], seq: u64) -> Self {
        let mut prefix = Self { end: 0, last_batch: None };
        if Header::of(bytes) != Header::Valid {
            return prefix;
        }
        prefix.end = FILE_HEADER_BYTES;
        while let Some(len) = batch_len(&bytes[prefix.end..], seq) {
            prefix.last_batch = Some(prefix.end..prefix.end + len);
            prefix.end += len;
        }
        prefix
    }
}

/// The state of a file header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Header {
    Valid,
    /// Parts of it were never written. The engine treats the file as empty.
    Torn,
    /// Neither. The engine may misread it as another version or alignment, and allocate whatever size the
    /// bytes then claim.
    Damaged,
}

impl Header {
    fn of(bytes: &[u8]) -> Self {
        let valid = || MAGIC.iter().chain(&VERSION_AND_ALIGNMENT);
        if bytes.len() >= FILE_HEADER_BYTES && valid().eq(&bytes[..FILE_HEADER_BYTES]) {
            return Self::Valid;
        }
        let never_written = valid().zip(bytes).all(|(valid, found)| found == valid || *found == 0);
        if never_written { Self::Torn } else { Self::Damaged }
    }
}

/// The length of the batch at the start of `bytes`, if its footer (the index of its content) matches its
/// checksum.
fn batch_len(bytes: &[u8], seq: u64) -> Option<usize> {
    let (len, footer) = batch_header(bytes)?;
    let (footer, found) = bytes.get(footer..len)?.split_last_chunk::<CHECKSUM_BYTES>()?;
    // The engine mixes the file's number into the checksum of a footer.
    let expected = u32::from_le_bytes(*found) ^ (seq as u32);
    (!footer.is_empty() && crc32fast::hash(footer) == expected).then_some(len)
}

fn batch_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let (len_and_type, rest) = bytes.split_first_chunk::<8>()?;
    let footer = usize::try_from(u64::from_be_bytes(*rest.first_chunk::<8>()?)).ok()?;
    let len = usize::try_from(u64::from_be_bytes(*len_and_type) >> 8).ok()?;
    (BATCH_HEADER_BYTES <= footer && footer <= len).then_some((len, footer))
}

/// Whether the entries of a batch match their checksum.
fn entries_match_checksum(batch: &[u8]) -> bool {
    let entries = batch_header(batch).and_then(|(_, footer)| batch.get(BATCH_HEADER_BYTES..footer));
    match entries {
        None => false,
        Some([]) => true,
        Some(entries) => entries
            .split_last_chunk::<CHECKSUM_BYTES>()
            .is_some_and(|(entries, found)| crc32fast::hash(entries) == u32::from_le_bytes(*found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_no_batch() {
        for len in [0, 1, 15, 16, 40, 200] {
            for byte in [0, 1, 0xff] {
                let bytes = vec![byte; len];
                assert_eq!(batch_len(&bytes, 1), None);
                assert_eq!(ValidPrefix::of(&bytes, 1).end, 0);
                let with_header = [MAGIC, &VERSION_AND_ALIGNMENT, &bytes].concat();
                assert_eq!(ValidPrefix::of(&with_header, 1).end, FILE_HEADER_BYTES);
            }
        }
    }

    #[test]
    fn a_header_that_claims_more_than_a_batch_can_have_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let header =
            |len: u64| [MAGIC, &VERSION_AND_ALIGNMENT, &(len << 8).to_be_bytes(), &16_u64.to_be_bytes()].concat();
        for name in ["0000000000000001.raftlog", "0000000000000001.rewrite"] {
            fs::write(dir.path().join(name), header(1 << 50)).unwrap();
            assert!(check(dir.path(), 1).is_err(), "{name}");
            fs::write(dir.path().join(name), header(1 << 20)).unwrap();
            assert!(check(dir.path(), 1).is_ok(), "{name}");
        }
    }

    /// With another version or alignment the engine reads batch headers at wrong positions, and allocates
    /// whatever they claim.
    #[test]
    fn a_file_header_with_a_flipped_bit_is_damage_and_one_that_was_never_written_is_not() {
        let valid = [MAGIC, &VERSION_AND_ALIGNMENT].concat();
        for name in ["0000000000000001.raftlog", "0000000000000001.rewrite"] {
            let opens = |bytes: &[u8]| {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join(name), bytes).unwrap();
                check(dir.path(), 1).is_ok()
            };
            for len in 0..=valid.len() {
                assert!(opens(&valid[..len]), "{name} was truncated at {len}");
                let mut zeros = vec![0; 200];
                zeros[..len].copy_from_slice(&valid[..len]);
                assert!(opens(&zeros), "{name} was written up to {len}");
            }
            for at in 0..valid.len() {
                let mut flipped = [&valid[..], &[7; 100]].concat();
                flipped[at] ^= 0x81;
                assert!(!opens(&flipped), "bit 0 and 7 of byte {at} of {name}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0000000000000001.raftlog"), [0; 100]).unwrap();
        fs::write(dir.path().join("0000000000000002.raftlog"), &valid).unwrap();
        assert!(check(dir.path(), 1).is_err(), "a closed file was synced with its header");
    }

    #[test]
    fn files_are_found_by_name_and_sorted_by_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["0000000000000010.raftlog", "0000000000000009.raftlog", "0000000000000011.rewrite", "LOCK", "x.raftlog"]
        {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(last_file(dir.path()).unwrap().unwrap().1, 10);
        assert_eq!(files(dir.path(), APPEND_SUFFIX).unwrap().len(), 2);
    }
}
