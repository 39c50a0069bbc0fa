//! Numbers of `INCRBYFLOAT`.
//!
//! Redis computes with the processor's 80-bit floats and prints 17 decimals, so that 0.1 + 0.2 is 0.3. Here
//! numbers of usual size are exact decimals with 17 places, which gives the same digits, the same on every
//! machine. Larger ones are 64-bit floats.

use std::fmt;

/// Decimal places that are kept.
const PLACES: u32 = 17;
const SCALE: i128 = 10_i128.pow(PLACES);
/// Digits before the point, at most, of an exact number: sums of two stay within `i128`.
const WHOLE_DIGITS_MAX: usize = 20;

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Float {
    /// In units of 10⁻¹⁷.
    Exact(i128),
    /// A large number, perhaps infinite.
    Large(f64),
}

/// It is never NaN.
impl Eq for Float {}

impl Float {
    /// Parses decimal notation, with or without an exponent. `None` for everything else, blanks included.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        if text.starts_with(char::is_whitespace) || text.len() > 256 {
            return None;
        }
        let float: f64 = text.parse().ok()?;
        if float.is_nan() {
            return None;
        }
        Some(exact(text).map_or(Self::Large(float), Self::Exact))
    }

    /// The sum; `None` if it is not finite.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        if let (Self::Exact(one), Self::Exact(two)) = (self, other)
            && let Some(sum) = one.checked_add(two)
        {
            return Some(Self::Exact(sum));
        }
        let sum = self.as_f64() + other.as_f64();
        sum.is_finite().then_some(Self::Large(sum))
    }

    fn as_f64(self) -> f64 {
        match self {
            Self::Exact(units) => units as f64 / SCALE as f64,
            Self::Large(float) => float,
        }
    }
}

impl fmt::Display for Float {
    /// Without an exponent, and without trailing zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(units) => {
                let sign = if *units < 0 { "-" } else { "" };
                let units = units.unsigned_abs();
                let (whole, fraction) = (units / SCALE.unsigned_abs(), units % SCALE.unsigned_abs());
                write!(f, "{sign}{whole}")?;
                if fraction == 0 {
                    return Ok(());
                }
                let digits = format!("{fraction:017}");
                write!(f, ".{}", digits.trim_end_matches('0'))
            }
            Self::Large(float) => write!(f, "{float}"),
        }
    }
}

/// The number in units of 10⁻¹⁷, rounded to nearest; `None` if it is too large or not in decimal notation.
fn exact(text: &str) -> Option<i128> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (negative, digits) = match mantissa.as_bytes().first()? {
        b'-' => (true, &mantissa[1..]),
        b'+' => (false, &mantissa[1..]),
        _ => (false, mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Position of the point in the digits without their leading zeros.
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let point = i64::try_from(whole.len()).ok()?.checked_add(exponent)?.checked_sub(i64::try_from(zeros).ok()?)?;
    let digits = &digits[zeros..];
    if digits.is_empty() {
        return Some(0);
    }
    if point > WHOLE_DIGITS_MAX as i64 {
        return None;
    }
    let kept = usize::try_from(point + i64::from(PLACES)).unwrap_or(0);
    let mut units: i128 = 0;
    for at in 0..kept {
        units = units * 10 + i128::from(digits.get(at).map_or(0, |digit| digit - b'0'));
    }
    let rounds_up = point + i64::from(PLACES) >= 0 && digits.get(kept).is_some_and(|digit| *digit >= b'5');
    let units = units + i128::from(rounds_up);
    Some(if negative { -units } else { units })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(one: &str, two: &str) -> String {
        let parsed = |text: &str| Float::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
        parsed(one).checked_add(parsed(two)).map_or("infinite".into(), |sum| sum.to_string())
    }

    #[test]
    fn sums_have_the_digits_of_redis() {
        for (one, two, expected) in [
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("1", "-1.1", "-0.1"),
            ("3", "-3", "0"),
            ("-0", "0", "0"),
            ("17179869184", "1.5", "17179869185.5"),
            ("1e-17", "0", "0.00000000000000001"),
            ("4e-18", "0", "0"),
            ("1e20", "1e20", "200000000000000000000"),
            ("1e300", "1", &format!("{}", 1e300)),
            ("1.7e308", "1.7e308", "infinite"),
            ("+1", "1.", "2"),
            (".5", "00.5", "1"),
        ] {
            assert_eq!(sum(one, two), expected, "{one} + {two}");
        }
    }

    #[test]
    fn what_is_not_a_number_does_not_parse() {
        for text in ["", " 1", "1 ", "x", "nan", "1e", "--1", "1.2.3", "0x10", "\u{663}"] {
            assert_eq!(Float::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Float::parse(b"inf").and_then(|infinite| infinite.checked_add(Float::Exact(0))), None);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_a_panic(text in "[+-]?[0-9.eE+-]{0,30}", other in "[0-9.e-]{1,9}") {
            if let (Some(one), Some(two)) = (Float::parse(text.as_bytes()), Float::parse(other.as_bytes()))
                && let Some(sum) = one.checked_add(two)
            {
                prop_assert!(Float::parse(sum.to_string().as_bytes()).is_some());
            }
        }

        #[test]
        fn numbers_of_usual_size_print_as_they_were_read(whole in -1_000_000_i64..1_000_000, places in 1_u32..9) {
            let text = format!("{whole}.{}", "1".repeat(places as usize));
            prop_assert_eq!(Float::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }
}
