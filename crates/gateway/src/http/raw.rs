//! Parses paths and query strings as bytes, because keys are arbitrary bytes and need not be text.
//!
//! In a path, `+` is itself; in a query it is a space, as in form encoding. A `%` without two hexadecimal
//! digits is refused. So are unknown and repeated parameters: a mistyped condition must not be ignored.

use std::str::FromStr;

use bytes::Bytes;
use flotilla_api::ProblemType;

use super::problem::Refusal;
use crate::{StoreError, store::check_key};

/// Decodes percent-encoded bytes, strictly.
pub(super) fn percent_decode(text: &str) -> Result<Vec<u8>, Refusal> {
    let bytes = text.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            let detail = "a `%` must be followed by two hexadecimal digits; write `%25` for a literal `%`";
            return Err(Refusal::new(ProblemType::MalformedRequest, detail));
        }
    }
    Ok(percent_encoding::percent_decode(bytes).collect())
}

/// Decodes one segment of a path that is text, such as the name of a collection.
pub(super) fn segment(text: &str) -> Result<String, Refusal> {
    String::from_utf8(percent_decode(text)?)
        .map_err(|_| Refusal::new(ProblemType::MalformedRequest, "a name in the path is not UTF-8"))
}

/// What a path below `/v1/kv/` addresses: a collection, or one key in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) collection: String,
    pub(super) key: Option<Bytes>,
}

impl Target {
    /// Parses the raw path after `/v1/kv/`. Everything after the first `/` is the key, including further
    /// slashes.
    pub(super) fn parse(rest: &str) -> Result<Self, Refusal> {
        let (collection, key) = match rest.split_once('/') {
            Some((collection, key)) => (collection, Some(checked_key(percent_decode(key)?)?)),
            None => (rest, None),
        };
        Ok(Self { collection: segment(collection)?, key })
    }
}

/// A decoded key, unless it is empty or above the limit.
pub(super) fn checked_key(key: Vec<u8>) -> Result<Bytes, StoreError> {
    check_key(&key)?;
    Ok(key.into())
}

/// The parameters of a request, each known and given at most once.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Parses a query string; refuses parameters that are not in `known`.
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self, Refusal> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = known
                .iter()
                .find(|known| **known == name)
                .ok_or_else(|| invalid(format!("unknown parameter; known here: {}", known.join(", "))))?;
            if parameters.iter().any(|(given, _)| given == name) {
                return Err(invalid(format!("parameter `{name}` is given twice")));
            }
            parameters.push(((*name).to_owned(), percent_decode(&value.replace('+', " "))?));
        }
        Ok(Self(parameters))
    }

    /// Takes a parameter as bytes.
    pub(super) fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|(given, _)| given == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// Takes a parameter as text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.bytes(name)
            .map(|bytes| String::from_utf8(bytes).map_err(|_| invalid(format!("parameter `{name}` is not UTF-8"))))
            .transpose()
    }

    /// Takes a parameter as a number.
    pub(super) fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        self.text(name)?
            .map(|text| text.parse().map_err(|_| invalid(format!("parameter `{name}` is not a number in range"))))
            .transpose()
    }

    /// Takes a parameter as a boolean; without a value it is true.
    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.bytes(name).as_deref() {
            None => Ok(None),
            Some(b"" | b"true" | b"1") => Ok(Some(true)),
            Some(b"false" | b"0") => Ok(Some(false)),
            Some(_) => Err(invalid(format!("parameter `{name}` must be true or false"))),
        }
    }

    /// Takes `consistency`: only strong reads are offered.
    pub(super) fn consistency(&mut self) -> Result<crate::Consistency, Refusal> {
        let Some(text) = self.text("consistency")? else { return Ok(crate::Consistency::Strong) };
        let seconds = text.strip_prefix("bounded_staleness:").map(str::parse::<f64>);
        let bounded = matches!(seconds, Some(Ok(seconds)) if seconds.is_finite() && seconds >= 0.0);
        match text.as_str() {
            "strong" => Ok(crate::Consistency::Strong),
            _ if text == "eventual" || bounded => Err(Refusal::new(
                ProblemType::UnsupportedConsistency,
                "this node offers `consistency=strong` only; leave the parameter out",
            )),
            _ => Err(Refusal::new(
                ProblemType::InvalidConsistency,
                "`consistency` must be `strong`, `bounded_staleness:<seconds>` or `eventual`",
            )),
        }
    }
}

/// A refusal of a parameter.
pub(super) fn invalid(detail: impl Into<String>) -> Refusal {
    Refusal::new(ProblemType::InvalidArgument, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rest: &str) -> Bytes {
        Target::parse(rest).expect("a target").key.expect("a key")
    }

    #[test]
    fn keys_keep_every_byte_and_every_slash() {
        assert_eq!(key("default/a%2Fb"), "a/b");
        assert_eq!(key("default/a/b//c/"), "a/b//c/");
        assert_eq!(key("default//a"), "/a");
        assert_eq!(key("default/%00%ff%25+"), b"\0\xff%+"[..]);
        assert_eq!(Target::parse("my%20own").expect("a target"), Target { collection: "my own".into(), key: None });
    }

    #[test]
    fn empty_and_too_long_keys_are_refused() {
        for rest in ["c/", &format!("c/{}", "%41".repeat(4_097))] {
            assert_eq!(Target::parse(rest).map_err(|refusal| refusal.kind()), Err(ProblemType::KeySize));
        }
        assert_eq!(key(&format!("c/{}", "%41".repeat(4_096))).len(), 4_096);
    }

    #[test]
    fn an_incomplete_escape_is_refused() {
        for bad in ["%", "%4", "%zz", "a%2", "%+1"] {
            assert!(percent_decode(bad).is_err_and(|refusal| refusal.kind() == ProblemType::MalformedRequest), "{bad}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        let known = ["limit", "prefix", "values"];
        let mut query = Query::parse(Some("prefix=a+%2b%ff&limit=3&values"), &known).expect("a query");
        assert_eq!(query.bytes("prefix").as_deref(), Some(&b"a +\xff"[..]));
        assert_eq!(query.number::<usize>("limit").expect("a number"), Some(3));
        assert_eq!(query.flag("values").expect("a flag"), Some(true));
        for bad in ["limits=3", "limit=1&limit=2"] {
            assert!(Query::parse(Some(bad), &known).is_err(), "{bad}");
        }
        let mut query = Query::parse(Some("limit=-1&values=maybe"), &known).expect("a query");
        assert!(query.number::<usize>("limit").is_err());
        assert!(query.flag("values").is_err());
    }

    #[test]
    fn only_strong_consistency_is_supported() {
        let parse = |text: &str| {
            let query = format!("consistency={text}");
            Query::parse(Some(&query), &["consistency"]).and_then(|mut query| query.consistency()).map_err(|r| r.kind())
        };
        assert!(parse("strong").is_ok());
        for unsupported in ["eventual", "bounded_staleness:5", "bounded_staleness:0.5"] {
            assert_eq!(parse(unsupported), Err(ProblemType::UnsupportedConsistency), "{unsupported}");
        }
        for invalid in
            ["", "weak", "bounded_staleness", "bounded_staleness:", "bounded_staleness:-1", "bounded_staleness:nan"]
        {
            assert_eq!(parse(invalid), Err(ProblemType::InvalidConsistency), "{invalid}");
        }
    }
}
