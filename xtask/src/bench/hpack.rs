//! HPACK (RFC 7541): encodes the headers of a call, and decodes the status in its trailers.

use anyhow::{Context, Result, bail};

/// First index of the dynamic table.
const DYNAMIC: u8 = 62;
/// `grpc-status`, Huffman-coded.
const STATUS_NAME: &[u8] = &[0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];
/// `:method: POST`, `:scheme: http`.
const METHOD_AND_SCHEME: &[u8] = &[0x83, 0x86];

/// The methods that are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Put,
    Range,
}

/// A header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Path(Method),
    Authority,
    ContentType,
    Te,
}

impl Field {
    /// Its encoding at first use: a literal that is added to the dynamic table, its name indexed or plain.
    const fn literal(self) -> &'static [u8] {
        match self {
            Self::Path(Method::Put) => b"\x44\x14/etcdserverpb.KV/Put",
            Self::Path(Method::Range) => b"\x44\x16/etcdserverpb.KV/Range",
            Self::Authority => b"\x41\x05bench",
            Self::ContentType => b"\x5f\x10application/grpc",
            Self::Te => b"\x40\x02te\x08trailers",
        }
    }
}

/// The fields in the dynamic table of our requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct Headers {
    table: Vec<Field>,
}

impl Headers {
    /// Appends the headers of a call.
    pub(super) fn put(&mut self, method: Method, out: &mut Vec<u8>) {
        out.extend_from_slice(METHOD_AND_SCHEME);
        for field in [Field::Path(method), Field::Authority, Field::ContentType, Field::Te] {
            match self.table.iter().rev().position(|known| *known == field) {
                Some(newer) => out.push(0x80 | (DYNAMIC + newer as u8)),
                None => {
                    out.extend_from_slice(field.literal());
                    self.table.push(field);
                }
            }
        }
    }
}

/// Why a response is a refusal, from its trailers; `None` if it is not.
pub(super) fn grpc_status(block: &[u8]) -> Result<Option<String>> {
    let mut rest = block;
    while let Some(&first) = rest.first() {
        if first & 0x80 != 0 {
            if integer(&mut rest, 7)? >= DYNAMIC.into() {
                bail!("the server uses a dynamic table although it is disabled");
            }
            continue;
        }
        if first & 0xe0 == 0x20 {
            integer(&mut rest, 5)?;
            continue;
        }
        let index = integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 })?;
        let name = if index == 0 { string(&mut rest)? } else { &[] };
        let value = string(&mut rest)?;
        if name == STATUS_NAME || name == b"grpc-status" {
            // Huffman-coded, `0` is five zero bits, padded with ones.
            let is_ok = value == b"0" || value == [0x07];
            return Ok((!is_ok).then(|| format!("grpc-status {}", String::from_utf8_lossy(value))));
        }
    }
    bail!("a response without a status")
}

/// An integer with a prefix of `bits` bits.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize> {
    let mut take = || -> Result<u8> {
        let (first, tail) = rest.split_first().context("headers are truncated")?;
        *rest = tail;
        Ok(*first)
    };
    let mask = (1_u8 << bits) - 1;
    let mut number = usize::from(take()? & mask);
    if number < mask.into() {
        return Ok(number);
    }
    for shift in [0, 7, 14] {
        let next = take()?;
        number += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    bail!("an integer in the headers is too long")
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = integer(rest, 7)?;
    let (string, tail) = rest.split_at_checked(length).context("headers are truncated")?;
    *rest = tail;
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_calls_refer_to_headers_by_index() {
        let (mut headers, mut first, mut other, mut again) = (Headers::default(), Vec::new(), Vec::new(), Vec::new());
        headers.put(Method::Put, &mut first);
        assert!(first.windows(20).any(|window| window == b"/etcdserverpb.KV/Put"));
        headers.put(Method::Range, &mut other);
        // Path, authority, content type, te, other path: the newest is 62.
        headers.put(Method::Put, &mut again);
        assert_eq!(again, [0x83, 0x86, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63]);
        headers.put(Method::Range, &mut again);
        assert_eq!(again[6..], [0x83, 0x86, 0x80 | 62, 0x80 | 65, 0x80 | 64, 0x80 | 63]);
    }

    #[test]
    fn literals_have_correct_lengths() {
        for field in
            [Field::Path(Method::Put), Field::Path(Method::Range), Field::Authority, Field::ContentType, Field::Te]
        {
            let mut rest = field.literal();
            if integer(&mut rest, 6).expect("a name") == 0 {
                assert_eq!(string(&mut rest).expect("a name"), b"te");
            }
            string(&mut rest).expect("a value");
            assert!(rest.is_empty(), "{field:?}");
        }
    }

    #[test]
    fn malformed_headers_are_errors() {
        for block in [&b""[..], b"\x88", b"\x00\x7fshort", b"\xbe", b"\x00\xff\xff\xff\xff\xff"] {
            assert!(grpc_status(block).is_err(), "{block:?}");
        }
    }
}
