//! Patterns of `SCAN … MATCH`: `*`, `?`, `[abc]`, `[^abc]`, `[a-z]`, and `\` before a literal byte.
//!
//! Every element except `*` matches exactly one byte, so backtracking to the last `*` is enough: the time is
//! at most pattern length × text length for every pattern (R. Cox, "Glob Matching Can Be Simple And Fast
//! Too", 2017).

use bytes::Bytes;

/// A pattern over bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Bytes);

impl Glob {
    /// Creates a pattern from any bytes; an unclosed class extends to the end of the pattern, as in Redis.
    #[must_use]
    pub fn new(pattern: Bytes) -> Self {
        Self(pattern)
    }

    /// Whether the pattern matches the whole text.
    #[must_use]
    pub fn matches(&self, text: &[u8]) -> bool {
        let pattern = &self.0[..];
        let (mut at, mut from) = (0, 0);
        // Where to continue after a mismatch: after the last `*`, which then matches one more byte.
        let mut retry: Option<(usize, usize)> = None;
        while from < text.len() {
            if pattern.get(at) == Some(&b'*') {
                at += 1;
                retry = Some((at, from + 1));
                continue;
            }
            match element(&pattern[at..], text[from]) {
                Some(length) => {
                    at += length;
                    from += 1;
                }
                None => match retry {
                    Some((after_star, next)) => {
                        (at, from) = (after_star, next);
                        retry = Some((after_star, next + 1));
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }

    /// The prefix of every matching text: the part of the pattern before its first special byte.
    #[must_use]
    pub fn literal_prefix(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(self.0.len());
        &self.0[..end]
    }
}

/// The length of the pattern's first element if it matches this byte.
fn element(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', class @ ..] => {
            let (contains, length) = in_class(class, byte);
            contains.then_some(1 + length)
        }
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Whether the class contains the byte, and the length of the class including its `]`.
fn in_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [first, b'-', last, ..] => {
                found |= (*first.min(last)..=*first.max(last)).contains(&byte);
                at += 3;
            }
            [single, ..] => {
                found |= *single == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Glob::new(Bytes::copy_from_slice(pattern.as_bytes())).matches(text.as_bytes())
    }

    /// Matches by the definition, in exponential time.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], text) => text.is_empty(),
            ([b'*', rest @ ..], text) => (0..=text.len()).any(|taken| by_definition(rest, &text[taken..])),
            (_, []) => false,
            (pattern, [first, rest @ ..]) => {
                element(pattern, *first).is_some_and(|length| by_definition(&pattern[length..], rest))
            }
        }
    }

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text) in [
            ("*", ""),
            ("h?llo", "hello"),
            ("h*llo", "heeeello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hallo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("user:*:name", "user:7:name"),
            ("a\\*b", "a*b"),
            ("[\\]]", "]"),
            ("a[bc", "ac"),
            ("a\\", "a\\"),
            ("**a**", "bab"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("h?llo", "hllo"), ("h[^e]llo", "hello"), ("a\\*b", "aab"), ("*a", "ab"), ("[]", "a")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert_eq!(Glob::new(Bytes::from_static(b"user:[0-9]*")).literal_prefix(), b"user:");
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let text = "a".repeat(4_096);
        assert!(!matches(&format!("{}b", "a*".repeat(1_000)), &text));
    }

    proptest! {
        #[test]
        fn matching_follows_the_definition(pattern in "[ab*?\\[\\]^\\\\-]{0,7}", text in "[ab\\]-]{0,7}") {
            prop_assert_eq!(matches(&pattern, &text), by_definition(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn matching_texts_start_with_the_literal_prefix(pattern in "[ab]{0,2}[ab*?]{0,4}", text in "[ab]{0,6}") {
            let glob = Glob::new(pattern.into_bytes().into());
            prop_assert!(!glob.matches(text.as_bytes()) || text.as_bytes().starts_with(glob.literal_prefix()));
        }
    }
}
