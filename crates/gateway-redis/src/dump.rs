//! The payload of `DUMP` and `RESTORE`: Redis's own format for one value, of which only strings are supported.
//!
//! `type ‖ string ‖ version u16 ‖ CRC-64`, integers little-endian. The string is a length and bytes, a small
//! integer, or compressed by LZF. Payloads are written without compression, and read in every form; lengths
//! in them are checked before memory is reserved.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_api::LARGE_VALUE_BYTES_MAX as VALUE_BYTES_MAX;

const STRING: u8 = 0;
/// The version of the format that Redis 7.0 writes, and the latest one that is read.
const VERSION: u16 = 10;
const FOOTER_BYTES: usize = 10;

/// Why a payload is refused. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// It is damaged, or of a later version.
    #[error("ERR DUMP payload version or checksum are wrong")]
    Checksum,
    /// It is not a string, or does not parse.
    #[error("ERR Bad data format")]
    Format,
    /// The value is above the limit.
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
}

/// The payload of a value.
pub(crate) fn dump(value: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(value.len() + 16);
    payload.put_u8(STRING);
    match value.len() {
        length @ ..64 => payload.put_u8(length as u8),
        length @ ..16_384 => payload.put_u16(0x4000 | length as u16),
        length => {
            payload.put_u8(0x80);
            payload.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
    }
    payload.put_slice(value);
    payload.put_u16_le(VERSION);
    let sum = crc64(&payload);
    payload.put_u64_le(sum);
    payload.freeze()
}

/// The value of a payload.
pub(crate) fn restore(payload: &[u8]) -> Result<Bytes, PayloadError> {
    let covered =
        payload.len().checked_sub(8).filter(|_| payload.len() > FOOTER_BYTES).ok_or(PayloadError::Checksum)?;
    let (mut body, mut sum) = payload.split_at(covered);
    let (content, mut version) = body.split_at(covered - 2);
    if version.get_u16_le() > VERSION || sum.get_u64_le() != crc64(body) {
        return Err(PayloadError::Checksum);
    }
    body = content;
    if body.get_u8() != STRING {
        return Err(PayloadError::Format);
    }
    let value = string(&mut body)?;
    if body.is_empty() { Ok(value) } else { Err(PayloadError::Format) }
}

/// A length, or the kind of a special string.
enum Head {
    Length(usize),
    Special(u8),
}

fn head(body: &mut &[u8]) -> Result<Head, PayloadError> {
    let short = |_| PayloadError::Format;
    let first = body.try_get_u8().map_err(short)?;
    let low = first & 0x3f;
    Ok(match (first >> 6, low) {
        (0, _) => Head::Length(low.into()),
        (1, _) => Head::Length(usize::from(low) << 8 | usize::from(body.try_get_u8().map_err(short)?)),
        (2, 0) => Head::Length(body.try_get_u32().map_err(short)? as usize),
        (2, 1) => {
            let length = body.try_get_u64().map_err(short)?;
            Head::Length(usize::try_from(length).map_err(|_| PayloadError::TooLong)?)
        }
        (3, kind) => Head::Special(kind),
        _ => return Err(PayloadError::Format),
    })
}

fn length(body: &mut &[u8]) -> Result<usize, PayloadError> {
    match head(body)? {
        Head::Length(length) if length > VALUE_BYTES_MAX => Err(PayloadError::TooLong),
        Head::Length(length) => Ok(length),
        Head::Special(_) => Err(PayloadError::Format),
    }
}

fn string(body: &mut &[u8]) -> Result<Bytes, PayloadError> {
    let short = |_| PayloadError::Format;
    let mut start = *body;
    let number = match head(&mut start)? {
        Head::Length(_) => {
            let length = length(body)?;
            let value = body.split_off(..length).ok_or(PayloadError::Format)?;
            return Ok(Bytes::copy_from_slice(value));
        }
        Head::Special(kind) => {
            *body = start;
            match kind {
                0 => i32::from(body.try_get_i8().map_err(short)?),
                1 => i32::from(body.try_get_i16_le().map_err(short)?),
                2 => body.try_get_i32_le().map_err(short)?,
                3 => {
                    let (packed, whole) = (length(body)?, length(body)?);
                    let packed = body.split_off(..packed).ok_or(PayloadError::Format)?;
                    return unpacked(packed, whole);
                }
                _ => return Err(PayloadError::Format),
            }
        }
    };
    Ok(number.to_string().into())
}

/// Expands LZF: a byte below 32 starts that many and one more literal bytes; any other one is a length and a
/// distance back.
fn unpacked(mut packed: &[u8], whole: usize) -> Result<Bytes, PayloadError> {
    let mut value: Vec<u8> = Vec::new();
    while let Ok(control) = packed.try_get_u8() {
        let control = usize::from(control);
        if control < 32 {
            value.extend_from_slice(packed.split_off(..=control).ok_or(PayloadError::Format)?);
        } else {
            let mut length = control >> 5;
            if length == 7 {
                length += usize::from(packed.try_get_u8().map_err(|_| PayloadError::Format)?);
            }
            let distance = (control & 0x1f) << 8 | usize::from(packed.try_get_u8().map_err(|_| PayloadError::Format)?);
            let from = value.len().checked_sub(distance + 1).ok_or(PayloadError::Format)?;
            // The copy may reach into what it writes.
            for at in from..from + length + 2 {
                value.push(value[at]);
            }
        }
        if value.len() > whole {
            return Err(PayloadError::Format);
        }
    }
    if value.len() == whole { Ok(value.into()) } else { Err(PayloadError::Format) }
}

/// CRC-64 by Jones, with reflected bits, which Redis uses.
fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| CRC_TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

const CRC_TABLE: [u64; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut sum = at as u64;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x95ac_9329_ac4b_c9b5 } else { sum >> 1 };
            bit += 1;
        }
        table[at] = sum;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_redis() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    /// A payload of this content with a valid footer.
    fn sealed(content: &[u8]) -> Vec<u8> {
        let mut payload = content.to_vec();
        payload.extend(VERSION.to_le_bytes());
        let sum = crc64(&payload);
        payload.extend(sum.to_le_bytes());
        payload
    }

    #[test]
    fn every_form_of_a_string_is_read() {
        for (content, value) in [
            (&b"\x00\x03abc"[..], &b"abc"[..]),
            (b"\x00\x80\x00\x00\x00\x03abc", b"abc"),
            (b"\x00\x81\x00\x00\x00\x00\x00\x00\x00\x03abc", b"abc"),
            (b"\x00\xc0\xfe", b"-2"),
            (b"\x00\xc1\xe8\x03", b"1000"),
            (b"\x00\xc2\x00\x00\x01\x00", b"65536"),
            // One literal, then a copy of nine bytes from one before.
            (b"\x00\xc3\x05\x0a\x00a\xe0\x00\x00", b"aaaaaaaaaa"),
        ] {
            assert_eq!(restore(&sealed(content)).as_deref(), Ok(value), "{content:?}");
        }
        for content in
            [&b"\x01\x03abc"[..], b"\x00\x04abc", b"\x00\x02abc", b"\x00\xc4\x00", b"\x00\xc3\x02\x05\x20\x00"]
        {
            assert_eq!(restore(&sealed(content)), Err(PayloadError::Format), "{content:?}");
        }
        assert_eq!(restore(&sealed(b"\x00\x80\xff\xff\xff\xff")), Err(PayloadError::TooLong));
        let mut damaged = dump(b"value").to_vec();
        damaged[3] ^= 1;
        for payload in [&damaged[..], b"", b"0123456789", b"\x00\x00\x0b\x00\0\0\0\0\0\0\0\0"] {
            assert_eq!(restore(payload), Err(PayloadError::Checksum));
        }
    }

    #[test]
    fn no_payload_costs_more_than_it_may_hold() {
        let content = vec(any::<u8>(), 0..40).prop_map(|value| dump(&value)[..value.len() + 2].to_vec());
        let lzf = vec(any::<u8>(), 0..40).prop_map(|bytes| [&b"\x00\xc3\x14\x20"[..], &bytes].concat());
        let proportion = Proportion { base: 4 << 10, per_byte: 300 };
        attack(800, prop_oneof![mutated(content), mutated(lzf)], |content| {
            let payload = sealed(&content);
            let _ = proportion.of(payload.len(), || restore(&payload));
        });
    }

    proptest! {
        #[test]
        fn what_is_dumped_can_be_restored(value in prop_oneof![vec(any::<u8>(), 0..100), vec(any::<u8>(), 16_300..16_500)]) {
            prop_assert_eq!(restore(&dump(&value)), Ok(Bytes::from(value)));
        }
    }
}
