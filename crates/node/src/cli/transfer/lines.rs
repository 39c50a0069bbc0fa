//! JSON lines: one record per line, `{"key","value","encoding"?,"expires_at_ms"?}`; other fields are ignored.

use std::io::{self, BufRead, Read as _};

use flotilla_api::{Encoding, KEY_BYTES_MAX};
use flotilla_client::{LARGE_VALUE_BYTES_MAX, ValueSource};
use serde::{Deserialize, Serialize};

use super::{Content, Entry, Source, folder::too_large};
use crate::cli::output::cell;

/// Longest line, in bytes. JSON needs at most six characters for one byte of a value.
const LINE_BYTES_MAX: usize = 6 * LARGE_VALUE_BYTES_MAX as usize + 64 * 1024;

/// A record as a line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    key: String,
    value: String,
    #[serde(default, skip_serializing_if = "Encoding::is_default")]
    encoding: Encoding,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

/// Formats a record as a line, without the line feed.
pub(super) fn write(key: &[u8], value: &[u8], expires_at_ms: Option<u64>) -> Result<String, String> {
    let encoding = Encoding::for_all(&[key, value]);
    let text = |bytes| encoding.encode(bytes).map_err(|error| error.to_string());
    let line = Line { key: text(key)?, value: text(value)?, encoding, expires_at_ms };
    serde_json::to_string(&line).map_err(|error| error.to_string())
}

/// The entries of a source, one per line that is not empty. Ends at the first read error.
pub(super) fn entries(source: impl BufRead) -> impl Iterator<Item = Entry> {
    entries_within(source, LINE_BYTES_MAX)
}

/// As [`entries`], of lines with at most `line_bytes_max` bytes.
fn entries_within(source: impl BufRead, line_bytes_max: usize) -> impl Iterator<Item = Entry> {
    let mut source = Some(source);
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            let reader = source.as_mut()?;
            number += 1;
            match read_line(reader, line_bytes_max) {
                Ok(None) => source = None,
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) if line.len() > line_bytes_max => {
                    let reason = format!("longer than {line_bytes_max} bytes");
                    return Some(Entry::Refused { name: format!("line {number}"), reason });
                }
                Ok(Some(line)) => return Some(parse(&line, number)),
                Err(error) => {
                    source = None;
                    return Some(Entry::Refused {
                        name: format!("line {number}"),
                        reason: format!("cannot be read: {error}"),
                    });
                }
            }
        }
    })
}

/// Reads a line, at most `bytes_max` bytes and one more; the rest of a longer line is skipped.
fn read_line(source: &mut impl BufRead, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if source.by_ref().take(bytes_max as u64 + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() > bytes_max && !line.ends_with(b"\n") {
        source.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

fn parse(line: &[u8], number: u64) -> Entry {
    let refused = |name: String, reason: String| Entry::Refused { name, reason };
    let place = format!("line {number}");
    let Line { key, value, encoding, expires_at_ms } = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) => return refused(place, format!("not a record: {error}")),
    };
    let (key, value) = match (encoding.decode(&key), encoding.decode(&value)) {
        (Ok(key), Ok(value)) => (key, value),
        (Err(error), _) | (_, Err(error)) => return refused(place, error.to_string()),
    };
    let name = format!("{place} ({})", cell(&key));
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return refused(name, format!("its key has {} bytes, not 1 to {KEY_BYTES_MAX}", key.len()));
    }
    if value.len() as u64 > LARGE_VALUE_BYTES_MAX {
        return refused(name, too_large(value.len() as u64));
    }
    // A long one goes to a temporary file, because several wait to be sent.
    match ValueSource::read_sync(&value[..]) {
        Ok(value) => Entry::Record(Source { key, value: Content::Read(value), expires_at_ms }),
        Err(error) => refused(name, format!("cannot be kept in a temporary file: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_hostile::{attack, extreme_u64, mutated};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn outcomes(text: &[u8]) -> Vec<Result<(Vec<u8>, Bytes), String>> {
        outcomes_within(text, LINE_BYTES_MAX)
    }

    fn outcomes_within(text: &[u8], line_bytes_max: usize) -> Vec<Result<(Vec<u8>, Bytes), String>> {
        entries_within(text, line_bytes_max)
            .map(|entry| match entry {
                Entry::Record(Source { key, value: Content::Read(value), .. }) => {
                    let mut bytes = Vec::new();
                    value.reader().read_to_end(&mut bytes).expect("a value");
                    Ok((key, bytes.into()))
                }
                Entry::Refused { name, .. } => Err(name),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn records_round_trip_through_lines() {
        for (key, value) in [(&b"k"[..], &b"v\n\""[..]), (b"\0", b""), (b"\xff", b"text"), (b"k", b"\xfe\n")] {
            let line = write(key, value, None).expect("a line");
            assert!(!line.contains('\n'));
            assert_eq!(outcomes(line.as_bytes()), [Ok((key.to_vec(), Bytes::copy_from_slice(value)))]);
        }
    }

    #[test]
    fn bad_lines_are_refused_by_number_and_the_others_are_read() {
        let text = b"{\"key\":\"a\",\"value\":\"1\"}\n\nnonsense\n{\"key\":\"\",\"value\":\"\"}\n\
                     {\"key\":\"b\",\"value\":\"?\",\"encoding\":\"base64\"}\n{\"key\":\"c\",\"value\":\"3\"}";
        let outcomes = outcomes(text);
        assert_eq!(outcomes[0], Ok((b"a".to_vec(), Bytes::from_static(b"1"))));
        assert_eq!(outcomes[1], Err("line 3".to_owned()));
        assert_eq!(outcomes[2], Err("line 4 ()".to_owned()));
        assert_eq!(outcomes[3], Err("line 5".to_owned()));
        assert_eq!(outcomes[4], Ok((b"c".to_vec(), Bytes::from_static(b"3"))));
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_without_being_buffered() {
        let mut text = vec![b'x'; 100_010];
        text.extend_from_slice(b"\n{\"key\":\"a\",\"value\":\"1\"}\n");
        let outcomes = outcomes_within(&text, 100_000);
        assert_eq!(outcomes, [Err("line 1".to_owned()), Ok((b"a".to_vec(), Bytes::from_static(b"1")))]);
    }

    #[test]
    fn hostile_lines_are_records_within_the_limits_or_refused() {
        let line = (vec(any::<u8>(), 1..20), vec(any::<u8>(), 0..40), option::of(extreme_u64()))
            .prop_map(|(key, value, expires_at_ms)| write(&key, &value, expires_at_ms).unwrap() + "\n");
        let lines = vec(line, 0..4).prop_map(|lines| lines.concat());
        attack(500, mutated(lines), |text| {
            let ends = text.iter().filter(|byte| **byte == b'\n').count() + 1;
            let read = outcomes(&text);
            assert!(read.len() <= ends, "a line is one record at most");
            for (key, value) in read.into_iter().flatten() {
                assert!((1..=KEY_BYTES_MAX).contains(&key.len()) && value.len() as u64 <= LARGE_VALUE_BYTES_MAX);
            }
        });
    }
}
