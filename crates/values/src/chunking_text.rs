//! Chunkings as text: `default`, `archive`, or the lengths of chunks at least, on average and at most.

use std::{fmt, str::FromStr};

use crate::{Chunking, ChunkingError};

/// A text is not a chunking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkingTextError {
    /// It does not parse.
    #[error("it must be `default`, `archive`, or three lengths such as `4KiB/16KiB/64KiB`")]
    Text,
    /// The lengths do not fit.
    #[error(transparent)]
    Lengths(#[from] ChunkingError),
}

impl FromStr for Chunking {
    type Err = ChunkingTextError;

    fn from_str(text: &str) -> Result<Self, ChunkingTextError> {
        match text {
            "default" => return Ok(Self::default()),
            "archive" => return Ok(Self::AVERAGE_64_KIB),
            _ => {}
        }
        let mut lengths = text.split('/').map(bytes);
        let mut next = || lengths.next().flatten().ok_or(ChunkingTextError::Text);
        let (min, average, max) = (next()?, next()?, next()?);
        if lengths.next().is_some() { Err(ChunkingTextError::Text) } else { Ok(Self::new(min, average, max)?) }
    }
}

fn bytes(text: &str) -> Option<u32> {
    let (number, unit) = text.split_at(text.find(|char: char| !char.is_ascii_digit())?);
    let unit: u32 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

impl fmt::Display for Chunking {
    /// The lengths, as [`FromStr`] reads them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They are powers of two, and at least 1 KiB.
        let length = |bytes: u32| if bytes < 1 << 20 { (bytes >> 10, "KiB") } else { (bytes >> 20, "MiB") };
        let [(min, min_unit), (average, average_unit), (max, max_unit)] =
            [self.min(), self.average(), self.max()].map(length);
        write!(f, "{min}{min_unit}/{average}{average_unit}/{max}{max_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_those_of_lengths_come_back() {
        for (text, chunking) in [
            ("4KiB/16KiB/64KiB", Chunking::AVERAGE_16_KIB),
            ("16KiB/64KiB/256KiB", Chunking::AVERAGE_64_KIB),
            ("64KiB/256KiB/1MiB", Chunking::AVERAGE_256_KIB),
        ] {
            assert_eq!(text.parse(), Ok(chunking));
            assert_eq!(chunking.to_string(), text);
        }
        assert_eq!("default".parse(), Ok(Chunking::default()));
        assert_eq!("archive".parse(), Ok(Chunking::AVERAGE_64_KIB));
        assert_eq!("65536B/256KiB/1MiB".parse(), Ok(Chunking::AVERAGE_256_KIB));
    }

    #[test]
    fn other_texts_are_refused() {
        let parse = |text: &str| text.parse::<Chunking>().unwrap_err();
        for text in [
            "",
            "Default",
            "4KiB/16KiB",
            "4KiB/16KiB/64KiB/1MiB",
            "4K/16K/64K",
            "4/16/64",
            "//",
            "KiB/KiB/KiB",
            "4294967295MiB/1MiB/1MiB",
            "-4KiB/16KiB/64KiB",
            "4 KiB/16 KiB/64 KiB",
        ] {
            assert_eq!(parse(text), ChunkingTextError::Text, "{text}");
        }
        assert_eq!(
            parse("1B/2B/3B"),
            ChunkingError::OutOfBounds { bytes: 1, bytes_min: 1 << 10, bytes_max: 1 << 20 }.into()
        );
        assert_eq!(parse("64KiB/16KiB/4KiB"), ChunkingError::Order.into());
    }
}
