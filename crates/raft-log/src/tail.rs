//! The files of the log, looked at before the engine reads them.
//!
//! raft-engine cuts its last file at the first batch that does not match its checksum, and any file at a last batch whose
//! entries do not. That is right for the batch that was under way at a power cut, and wrong for anything else: then synced
//! batches would vanish without a word. Only one batch is ever under way, so what follows tells the cases apart: whatever
//! has anything written behind it had been synced, and its damage is [`OpenError::Damaged`]. Nothing is changed here.
//!
//! A synced *last* batch that was damaged looks like a torn one. The node-wide sequence, which peers remember, tells them
//! apart; that is not decided here.
//!
//! The layout of files and batches is that of raft-engine's format version 2, which is the one `Options` asks for.

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
/// Version 2 without alignment: what follows the magic in every file that we write.
const VERSION_AND_ALIGNMENT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
/// Magic, version and alignment.
const FILE_HEADER_BYTES: usize = MAGIC.len() + 16;
/// Length with compression type, and offset of the footer.
const BATCH_HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// The engine writes no larger batch. It would reserve whatever a damaged header says, and abort.
const BATCH_BYTES_MAX: u64 = 4 << 30;
const APPEND_SUFFIX: &str = ".raftlog";
const REWRITE_SUFFIX: &str = ".rewrite";

/// Refuses damage that the engine would cut away although it had been synced.
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

/// Removes a last file whose header was never written whole, once [`check`] has found that it holds nothing. The engine would go on
/// in it, by an older format than the one that is checked here.
pub(crate) fn remove_unbegun(dir: &Path) -> io::Result<()> {
    for suffix in [APPEND_SUFFIX, REWRITE_SUFFIX] {
        let Some((path, _)) = files(dir, suffix)?.pop() else { continue };
        let mut start = Vec::new();
        File::open(&path)?.take(FILE_HEADER_BYTES as u64).read_to_end(&mut start)?;
        if Header::of(&start) != Header::Ours {
            tracing::info!(file = %path.display(), "removing a log file that was never begun");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The last file may end in one torn batch.
fn check_last(path: PathBuf, seq: u64, nonce: u64) -> Result<(), LogError> {
    let bytes = fs::read(&path)?;
    let header = Header::of(&bytes);
    let chain = Chain::walk(&bytes, seq);
    let rest = &bytes[chain.end..];
    let refused = header == Header::Damaged || (header == Header::Ours && is_oversized(rest));
    if refused || has_later_batch(rest, nonce) {
        return Err(OpenError::Damaged { file: path, offset: chain.end as u64 }.into());
    }
    match chain.last {
        Some(last) if rest.iter().any(|byte| *byte != 0) && !entries_are_whole(&bytes[last.clone()]) => {
            Err(OpenError::Damaged { file: path, offset: last.start as u64 }.into())
        }
        _ => Ok(()),
    }
}

/// A closed file was synced to its end. The engine checks all of it but the entries, and those of its last batch it would
/// cut. Only the headers of the others are read here: there may be many files.
fn check_closed(path: PathBuf) -> Result<(), LogError> {
    let Some((path, offset, len)) = last_batch(path, Header::Ours)? else { return Ok(()) };
    let mut batch = vec![0; len];
    File::open(&path)?.read_exact_at(&mut batch, offset)?;
    if entries_are_whole(&batch) { Ok(()) } else { Err(OpenError::Damaged { file: path, offset }.into()) }
}

/// Follows the headers of a file: offset and length of its last whole batch. Refuses a header that no batch can have, and a
/// file header that is worse than `allowed`.
fn last_batch(path: PathBuf, allowed: Header) -> Result<Option<(PathBuf, u64, usize)>, LogError> {
    let file = File::open(&path)?;
    let size = file.metadata()?.len();
    let mut start = Vec::new();
    (&file).take(FILE_HEADER_BYTES as u64).read_to_end(&mut start)?;
    match Header::of(&start) {
        Header::Ours => {}
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

/// Whether the header at the start of `bytes` claims more than any batch has.
fn is_oversized(bytes: &[u8]) -> bool {
    bytes.split_first_chunk::<8>().is_some_and(|(len, _)| u64::from_be_bytes(*len) >> 8 > BATCH_BYTES_MAX)
}

/// Whether anything was written behind the first batch in `rest`, which does not match its checksum.
fn has_later_batch(rest: &[u8], nonce: u64) -> bool {
    // Either the header of that batch still says where it ends, or its sequence and that of the next can still be found.
    let behind = batch_header(rest).and_then(|(len, _)| rest.get(len..)).unwrap_or_default();
    behind.iter().any(|byte| *byte != 0) || record::sequences_in(rest, nonce).collect::<BTreeSet<_>>().len() > 1
}

/// The first damaged file that the engine does not forgive, to name it in the error.
pub(crate) fn find_damage(dir: &Path) -> io::Result<Option<OpenError>> {
    for suffix in [APPEND_SUFFIX, REWRITE_SUFFIX] {
        for (file, seq) in files(dir, suffix)? {
            let bytes = fs::read(&file)?;
            let end = Chain::walk(&bytes, seq).end;
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

/// The batches of a file whose indexes match their checksums.
struct Chain {
    /// Behind the last of them.
    end: usize,
    /// The last of them.
    last: Option<Range<usize>>,
}

impl Chain {
    fn walk(bytes: &[u8], seq: u64) -> Self {
        let mut chain = Self { end: 0, last: None };
        if Header::of(bytes) != Header::Ours {
            return chain;
        }
        chain.end = FILE_HEADER_BYTES;
        while let Some(len) = batch_len(&bytes[chain.end..], seq) {
            chain.last = Some(chain.end..chain.end + len);
            chain.end += len;
        }
        chain
    }
}

/// How a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Header {
    Ours,
    /// Parts of it were never written. The engine takes the file for an empty one.
    Torn,
    /// Neither. The engine may take it for that of another version or alignment, and reserve what its bytes then seem to say.
    Damaged,
}

impl Header {
    fn of(bytes: &[u8]) -> Self {
        let ours = || MAGIC.iter().chain(&VERSION_AND_ALIGNMENT);
        if bytes.len() >= FILE_HEADER_BYTES && ours().eq(&bytes[..FILE_HEADER_BYTES]) {
            return Self::Ours;
        }
        let never_written = ours().zip(bytes).all(|(ours, found)| found == ours || *found == 0);
        if never_written { Self::Torn } else { Self::Damaged }
    }
}

/// The length of the batch at the start of `bytes`, if its footer (the index of what it holds) matches its checksum.
fn batch_len(bytes: &[u8], seq: u64) -> Option<usize> {
    let (len, footer) = batch_header(bytes)?;
    let (footer, found) = bytes.get(footer..len)?.split_last_chunk::<CHECKSUM_BYTES>()?;
    // The engine signs a footer with the number of its file.
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
fn entries_are_whole(batch: &[u8]) -> bool {
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
                assert_eq!(Chain::walk(&bytes, 1).end, 0);
                let with_header = [MAGIC, &VERSION_AND_ALIGNMENT, &bytes].concat();
                assert_eq!(Chain::walk(&with_header, 1).end, FILE_HEADER_BYTES);
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

    /// With another version or alignment the engine reads batch headers where there are none, and reserves what they seem to say.
    #[test]
    fn a_file_header_with_a_flipped_bit_is_damage_and_one_that_was_never_written_is_not() {
        let ours = [MAGIC, &VERSION_AND_ALIGNMENT].concat();
        for name in ["0000000000000001.raftlog", "0000000000000001.rewrite"] {
            let opens = |bytes: &[u8]| {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join(name), bytes).unwrap();
                check(dir.path(), 1).is_ok()
            };
            for len in 0..=ours.len() {
                assert!(opens(&ours[..len]), "{name} was cut at {len}");
                let mut zeros = vec![0; 200];
                zeros[..len].copy_from_slice(&ours[..len]);
                assert!(opens(&zeros), "{name} was written up to {len}");
            }
            for at in 0..ours.len() {
                let mut flipped = [&ours[..], &[7; 100]].concat();
                flipped[at] ^= 0x81;
                assert!(!opens(&flipped), "bit 0 and 7 of byte {at} of {name}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0000000000000001.raftlog"), [0; 100]).unwrap();
        fs::write(dir.path().join("0000000000000002.raftlog"), &ours).unwrap();
        assert!(check(dir.path(), 1).is_err(), "what is closed was synced with its header");
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
