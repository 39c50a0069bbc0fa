//! Conditional requests, and requests for a part of a value (RFC 9110, §8.8.3, §13 and §14).
//!
//! The entity tag of a value is its BLAKE3 hash: equal values have equal tags, also under other keys and in other
//! clusters. Tags are strong. Dates are no validators here: `If-Modified-Since` and dates in `If-Range` are ignored,
//! as is a request for several ranges.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use flotilla_kv::{Content, Value};
use flotilla_types::ObjectId;

use super::{problem::Refusal, raw::invalid};

/// The entity tag of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntityTag(ObjectId);

impl EntityTag {
    pub(super) fn of(value: &Value) -> Self {
        match &value.content {
            Content::Inline(bytes) => Self(ObjectId::of(bytes)),
            Content::Large(value) => Self(value.etag()),
        }
    }

    /// As it is written.
    pub(super) fn text(self) -> String {
        format!("\"{}\"", self.0)
    }

    /// Adds it to the headers of an answer.
    pub(super) fn put(self, headers: &mut HeaderMap) {
        if let Ok(tag) = HeaderValue::from_str(&self.text()) {
            headers.insert(header::ETAG, tag);
        }
    }
}

/// What `If-Match` or `If-None-Match` lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tags {
    /// `*`: any value.
    Any,
    These(Vec<Tag>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag {
    is_weak: bool,
    opaque: String,
}

impl Tags {
    fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Refusal> {
        if !headers.contains_key(name) {
            return Ok(None);
        }
        let malformed = || invalid(format!("`{name}` must be `*`, or tags in double quotes, separated by commas"));
        let mut tags = Vec::new();
        for value in headers.get_all(name) {
            let value = value.to_str().map_err(|_| malformed())?.trim();
            if value == "*" {
                return Ok(Some(Self::Any));
            }
            let mut rest = value;
            while !rest.is_empty() {
                let (tag, after) = Tag::parse(rest).ok_or_else(malformed)?;
                tags.push(tag);
                rest = after.trim_start();
                if let Some(next) = rest.strip_prefix(',') {
                    rest = next.trim_start();
                } else if !rest.is_empty() {
                    return Err(malformed());
                }
            }
        }
        if tags.is_empty() { Err(malformed()) } else { Ok(Some(Self::These(tags))) }
    }

    /// Whether one of them is the tag of a value, by strong comparison: a weak one is that of no value.
    pub(super) fn has(&self, tag: EntityTag) -> bool {
        self.any(|listed| !listed.is_weak && listed.names(tag))
    }

    /// The same by weak comparison.
    pub(super) fn has_weakly(&self, tag: EntityTag) -> bool {
        self.any(|listed| listed.names(tag))
    }

    fn any(&self, is_match: impl Fn(&Tag) -> bool) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(is_match),
        }
    }
}

impl Tag {
    /// The tag at the start of a text, and the rest of it.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let (is_weak, rest) = text.strip_prefix("W/").map_or((false, text), |rest| (true, rest));
        let (opaque, rest) = rest.strip_prefix('"')?.split_once('"')?;
        Some((Self { is_weak, opaque: opaque.to_owned() }, rest))
    }

    fn names(&self, tag: EntityTag) -> bool {
        self.opaque.parse().is_ok_and(|named: ObjectId| named == tag.0)
    }
}

/// The conditions of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WriteCondition {
    /// The value must have one of these tags.
    Match(Tags),
    /// It must have none of them.
    NoneMatch(Tags),
}

impl WriteCondition {
    /// The condition in the headers of a write; there is at most one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        match (Tags::of(headers, &header::IF_MATCH)?, Tags::of(headers, &header::IF_NONE_MATCH)?) {
            (Some(_), Some(_)) => Err(invalid("`If-Match` and `If-None-Match` exclude each other")),
            (Some(tags), None) => Ok(Some(Self::Match(tags))),
            (None, Some(tags)) => Ok(Some(Self::NoneMatch(tags))),
            (None, None) => Ok(None),
        }
    }

    /// Whether a record with this tag, or none, meets it.
    pub(super) fn holds(&self, found: Option<EntityTag>) -> bool {
        match self {
            Self::Match(tags) => found.is_some_and(|tag| tags.has(tag)),
            Self::NoneMatch(tags) => found.is_none_or(|tag| !tags.has_weakly(tag)),
        }
    }
}

/// What a read is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    /// These bytes: at least one, within the value.
    Bytes(Range<u64>),
    /// The client has the value.
    NotModified,
    /// No byte of the value is in the range.
    OutOfRange,
    /// The value is another one.
    Changed,
}

/// The conditions of a read, and the range that it asks for.
#[derive(Debug, Default)]
pub(super) struct ReadConditions {
    matches: Option<Tags>,
    none_matches: Option<Tags>,
    range: Option<ByteRange>,
    /// `If-Range`: without this tag the whole value is asked for. `None` inside if it is none of ours.
    range_of: Option<Option<Tag>>,
}

impl ReadConditions {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
        Ok(Self {
            matches: Tags::of(headers, &header::IF_MATCH)?,
            none_matches: Tags::of(headers, &header::IF_NONE_MATCH)?,
            range: text(header::RANGE).and_then(ByteRange::parse),
            range_of: text(header::IF_RANGE).map(|value| Tag::parse(value.trim()).map(|(tag, _)| tag)),
        })
    }

    /// What to answer with, of a value with this tag and so many bytes (§13.2.2).
    pub(super) fn part_of(&self, tag: EntityTag, bytes: u64) -> Part {
        if self.matches.as_ref().is_some_and(|tags| !tags.has(tag)) {
            return Part::Changed;
        }
        if self.none_matches.as_ref().is_some_and(|tags| tags.has_weakly(tag)) {
            return Part::NotModified;
        }
        let is_same = |listed: &Option<Tag>| listed.as_ref().is_some_and(|tag_of| !tag_of.is_weak && tag_of.names(tag));
        let range = self.range.filter(|_| self.range_of.as_ref().is_none_or(is_same));
        range.map_or(Part::Whole, |range| range.of(bytes).map_or(Part::OutOfRange, Part::Bytes))
    }
}

/// One range of bytes (§14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteRange {
    /// The first and the last byte.
    Between(u64, u64),
    From(u64),
    /// So many at the end.
    Last(u64),
}

impl ByteRange {
    /// `None` if it is malformed, or asks for several: then the whole value is the answer.
    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        let number = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // One that does not fit is larger than any value.
            is_number.then(|| digits.parse().unwrap_or(u64::MAX))
        };
        match (first, last) {
            _ if !unit.trim().eq_ignore_ascii_case("bytes") => None,
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// Its bytes of a value of this length; `None` if there are none.
    fn of(self, bytes: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Between(first, last) => first..last.saturating_add(1).min(bytes),
            Self::From(first) => first..bytes,
            Self::Last(count) => bytes.saturating_sub(count)..bytes,
        };
        (!range.is_empty()).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::ProblemType;
    use proptest::prelude::*;

    use super::*;

    const VALUE: &[u8] = b"0123456789";

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().expect("a header"));
        }
        headers
    }

    fn part(fields: &[(HeaderName, &str)]) -> Part {
        let conditions = ReadConditions::of(&headers(fields)).expect("conditions");
        conditions.part_of(EntityTag::of(&VALUE.into()), VALUE.len() as u64)
    }

    fn quoted(value: &[u8]) -> String {
        format!("\"{}\"", ObjectId::of(value))
    }

    #[test]
    fn a_tag_is_the_hash_of_the_value() {
        let mut headers = HeaderMap::new();
        EntityTag::of(&Value::default()).put(&mut headers);
        let empty = "\"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262\"";
        assert_eq!(headers[header::ETAG], empty);
    }

    #[test]
    fn a_client_that_has_the_value_gets_none() {
        let (own, other) = (quoted(VALUE), quoted(b"other"));
        for listed in ["*", &own, &format!("W/{own}"), &format!("{other}, {own}"), &format!("\"a,b\" ,{own}")] {
            assert_eq!(part(&[(header::IF_NONE_MATCH, listed)]), Part::NotModified, "{listed}");
        }
        for listed in [&other, "\"\"", "W/\"x\""] {
            assert_eq!(part(&[(header::IF_NONE_MATCH, listed)]), Part::Whole, "{listed}");
        }
        let twice = [(header::IF_NONE_MATCH, other.as_str()), (header::IF_NONE_MATCH, own.as_str())];
        assert_eq!(part(&twice), Part::NotModified, "in two fields");
    }

    #[test]
    fn a_value_that_must_match_is_compared_strongly() {
        let own = quoted(VALUE);
        assert_eq!(part(&[(header::IF_MATCH, &own)]), Part::Whole);
        assert_eq!(part(&[(header::IF_MATCH, "*")]), Part::Whole);
        assert_eq!(part(&[(header::IF_MATCH, &format!("W/{own}"))]), Part::Changed);
        let both = [(header::IF_MATCH, quoted(b"x")), (header::IF_NONE_MATCH, own)];
        assert_eq!(
            part(&both.each_ref().map(|(name, tag)| (name.clone(), tag.as_str()))),
            Part::Changed,
            "it is first"
        );
    }

    #[test]
    fn one_range_is_served_and_what_is_not_understood_is_ignored() {
        let range = |text: &str| part(&[(header::RANGE, text)]);
        assert_eq!(range("bytes=0-0"), Part::Bytes(0..1));
        assert_eq!(range("Bytes = 2-4"), Part::Bytes(2..5));
        assert_eq!(range("bytes=7-"), Part::Bytes(7..10));
        assert_eq!(range("bytes=8-99999999999999999999999"), Part::Bytes(8..10));
        assert_eq!(range("bytes=-3"), Part::Bytes(7..10));
        assert_eq!(range("bytes=-99"), Part::Bytes(0..10));
        for outside in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=18446744073709551615-18446744073709551615"] {
            assert_eq!(range(outside), Part::OutOfRange, "{outside}");
        }
        for ignored in
            ["bytes=4-2", "bytes=0-1,3-4", "lines=0-1", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "0-1"]
        {
            assert_eq!(range(ignored), Part::Whole, "{ignored}");
        }
    }

    #[test]
    fn a_range_of_another_value_is_not_served() {
        let range = (header::RANGE, "bytes=1-2");
        let own = quoted(VALUE);
        assert_eq!(part(&[range.clone(), (header::IF_RANGE, &own)]), Part::Bytes(1..3));
        let date = "Fri, 27 Nov 2026 10:00:00 GMT";
        for other in [quoted(b"x").as_str(), &format!("W/{own}"), date, ""] {
            assert_eq!(part(&[range.clone(), (header::IF_RANGE, other)]), Part::Whole, "{other}");
        }
    }

    #[test]
    fn malformed_tags_and_two_conditions_of_a_write_are_refused() {
        for bad in ["", ",", "abc", "\"abc", "\"a\" \"b\"", "W/", "\"a\",x"] {
            let refused =
                ReadConditions::of(&headers(&[(header::IF_NONE_MATCH, bad)])).map_err(|refusal| refusal.kind());
            assert_eq!(refused.err(), Some(ProblemType::InvalidArgument), "{bad}");
        }
        let both = headers(&[(header::IF_MATCH, "*"), (header::IF_NONE_MATCH, "*")]);
        assert!(WriteCondition::of(&both).is_err());
        assert_eq!(WriteCondition::of(&HeaderMap::new()).ok(), Some(None));
    }

    #[test]
    fn a_write_that_must_match_needs_a_record_and_one_that_must_not_needs_none() {
        let (own, found) = (quoted(VALUE), Some(EntityTag::of(&VALUE.into())));
        let condition = |name, tags: &str| WriteCondition::of(&headers(&[(name, tags)])).ok().flatten().expect("one");
        for (tags, holds) in [("*", true), (own.as_str(), true), ("\"x\"", false), (&format!("W/{own}"), false)] {
            let matches = condition(header::IF_MATCH, tags);
            assert_eq!((matches.holds(found), matches.holds(None)), (holds, false), "{tags}");
        }
        for (tags, holds) in [("*", false), (own.as_str(), false), (&format!("W/{own}"), false), ("\"x\"", true)] {
            let none_matches = condition(header::IF_NONE_MATCH, tags);
            assert_eq!((none_matches.holds(found), none_matches.holds(None)), (holds, true), "{tags}");
        }
    }

    proptest! {
        #[test]
        fn ranges_lie_within_the_value(text in "bytes=[0-9]{0,21}-[0-9]{0,21}", bytes in any::<u64>()) {
            if let Some(range) = ByteRange::parse(&text).and_then(|range| range.of(bytes)) {
                prop_assert!(range.start < range.end && range.end <= bytes);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[ -~]{0,40}") {
            let fields = [(header::IF_NONE_MATCH, text.as_str()), (header::RANGE, &text), (header::IF_RANGE, &text)];
            if let Ok(conditions) = ReadConditions::of(&headers(&fields)) {
                let _ = conditions.part_of(EntityTag::of(&Value::default()), 0);
            }
        }
    }
}
