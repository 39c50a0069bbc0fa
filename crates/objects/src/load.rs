//! What an opened store finds: the segments of earlier runs.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use flotilla_types::ObjectId;

use crate::{
    ObjectError,
    compression::Compression,
    footer,
    index::{Index, Location, OFFSET_MAX},
    segment::{Format, FoundRecord, SEGMENT_VERSION, SegmentHeader, read_segment_header, scan},
    tables::Closed,
};

const SEGMENT_SUFFIX: &str = ".segment";

/// The segments of a folder.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) index: Index,
    /// The number of the next segment.
    pub(crate) next_segment: u64,
    /// The highest version of a segment's format.
    pub(crate) version: u32,
}

/// Indexes every segment of a folder. Where an object is there twice, the later copy counts if it is intact:
/// the earlier one may be damaged, or a compaction was interrupted.
pub(crate) fn load(dir: &Path, compression: &Compression) -> Result<Found, ObjectError> {
    let mut found = Found { index: Index::default(), next_segment: 1, version: 1 };
    for number in segment_numbers(dir)? {
        found.next_segment = number.saturating_add(1);
        let Some(mut segment) = load_segment(dir, number)? else { continue };
        // No store has written those.
        segment.records.retain(|record| record.offset <= OFFSET_MAX);
        found.version = found.version.max(segment.version);
        for record in &segment.records {
            let location = Location { segment: number, offset: record.offset, lengths: record.lengths };
            let is_intact = || is_intact(&segment.file, record.id, location, compression);
            found.index.insert_found(record.id, location, &record.children, is_intact);
        }
        found.index.tables.close(number, Closed { bytes: segment.bytes, inherited: true });
    }
    Ok(found)
}

pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SEGMENT_SUFFIX}"))
}

/// Numbers of the segment files in a folder, ascending. Other files are ignored.
fn segment_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(dir)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SEGMENT_SUFFIX));
        let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
        // Only canonical names: another spelling of a number is not a segment. The highest number is
        // excluded, since no segment could follow it.
        numbers.extend(number.filter(|number| *number < u64::MAX && segment_path(dir, *number).ends_with(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

struct Segment {
    file: File,
    bytes: u64,
    records: Vec<FoundRecord>,
    version: u32,
}

/// Reads a segment's table of contents, or scans it, truncates its torn tail and adds the table that it
/// lacks. Syncs the file: the process that wrote it may have been killed before its sync. `None` if it had no
/// records and was deleted.
fn load_segment(dir: &Path, number: u64) -> Result<Option<Segment>, ObjectError> {
    let path = segment_path(dir, number);
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let file_bytes = file.metadata()?.len();
    let format = match read_segment_header(&file, file_bytes)? {
        SegmentHeader::Known(format) => Some(format),
        SegmentHeader::Newer(found) => {
            return Err(ObjectError::Version { segment: number, found, known: SEGMENT_VERSION });
        }
        SegmentHeader::Invalid => None,
    };
    if let Some(format) = format
        && let Some(records) = footer::read(&file, file_bytes, format)?
    {
        file.sync_all()?;
        return Ok(Some(Segment { file, bytes: file_bytes, records, version: format.version() }));
    }
    let scan = scan(&file, format.map_or(0, Format::segment_header_bytes), file_bytes, format)?;
    if scan.damaged_bytes > 0 || scan.end < file_bytes {
        let (damaged, torn) = (scan.damaged_bytes, file_bytes - scan.end);
        tracing::warn!(segment = number, damaged_bytes = damaged, torn_bytes = torn, "segment is damaged or torn");
    }
    if scan.records.is_empty() {
        fs::remove_file(&path)?;
        return Ok(None);
    }
    if scan.end < file_bytes {
        file.set_len(scan.end)?;
    }
    file.sync_all()?;
    let mut bytes = scan.end;
    if let Some(format) = format {
        bytes += add_footer(&file, format, &scan.records, scan.end, number);
    }
    Ok(Some(Segment { file, bytes, records: scan.records, version: format.map_or(1, Format::version) }))
}

/// Appends a table of contents, if the format has one and there is space for it. Returns its length.
pub(crate) fn add_footer(file: &File, format: Format, records: &[FoundRecord], end: u64, number: u64) -> u64 {
    let footer = footer::encode(format, records, end);
    match file.write_all_at(&footer, end) {
        Ok(()) => footer.len() as u64,
        Err(error) => {
            tracing::warn!(segment = number, %error, "a segment gets no table of contents");
            // Part of a table does no harm, but takes space.
            let _ = file.set_len(end);
            0
        }
    }
}

fn is_intact(file: &File, id: ObjectId, location: Location, compression: &Compression) -> bool {
    let mut stored = vec![0; location.lengths.stored as usize];
    if file.read_exact_at(&mut stored, location.offset).is_err() {
        return false;
    }
    let plain = compression.plain_of(stored.into(), location.lengths);
    plain.is_some_and(|plain| ObjectId::of(&plain) == id)
}
