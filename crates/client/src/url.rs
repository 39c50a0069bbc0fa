//! Paths of calls, with arbitrary bytes as one percent-encoded segment.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::ClientError;

/// All characters except those that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Percent-encodes bytes as one segment of a path, or as the value of a parameter.
pub(crate) fn encode(bytes: &[u8]) -> String {
    percent_encode(bytes, ENCODED).to_string()
}

/// The path of a record.
pub(crate) fn record(collection: &str, key: &[u8]) -> String {
    format!("{}/{}", self::collection(collection), encode(key))
}

/// The path of a collection's records.
pub(crate) fn collection(collection: &str) -> String {
    format!("/v1/kv/{}", encode(collection.as_bytes()))
}

/// Whether a key cannot be in a path: URL parsers resolve `.` and `..` as relative segments, encoded or not.
pub(crate) fn is_dot_segment(key: &[u8]) -> bool {
    key == b"." || key == b".."
}

/// Normalizes `host:port`, `http://host:port` or `https://host:port`, with or without a trailing slash, to an
/// origin. Without a scheme it is `https` if `tls`, else `http`.
pub(crate) fn endpoint(text: &str, tls: bool) -> Result<String, ClientError> {
    let invalid = || ClientError::InvalidEndpoint(text.to_owned());
    let text = text.trim();
    let full =
        if text.contains("://") { text.to_owned() } else { format!("{}://{text}", if tls { "https" } else { "http" }) };
    let url = reqwest::Url::parse(&full).map_err(|_| invalid())?;
    let is_http = matches!(url.scheme(), "http" | "https");
    let is_valid = is_http && url.path() == "/" && url.query().is_none() && url.username().is_empty();
    if is_valid { Ok(url.origin().ascii_serialization()) } else { Err(invalid()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_key_round_trips_through_a_url() {
        let key: Vec<u8> = (0..=255).collect();
        let url = reqwest::Url::parse(&format!("http://h:1{}", record("my own", &key))).expect("a URL");
        let (collection, encoded) =
            url.path().strip_prefix("/v1/kv/").and_then(|rest| rest.split_once('/')).expect("two");
        assert_eq!(collection, "my%20own");
        assert_eq!(percent_encoding::percent_decode_str(encoded).collect::<Vec<u8>>(), key);
        assert!(!encoded.contains('/'));
    }

    #[test]
    fn dot_segments_are_recognized() {
        for key in [".", ".."] {
            let url = reqwest::Url::parse(&format!("http://h:1{}", record("c", key.as_bytes()))).expect("a URL");
            assert_ne!(url.path(), record("c", key.as_bytes()), "such a key does not survive in a path");
            assert!(is_dot_segment(key.as_bytes()));
        }
        let url = reqwest::Url::parse(&format!("http://h:1{}", record("c", b"..."))).expect("a URL");
        assert_eq!(url.path(), "/v1/kv/c/...");
    }

    #[test]
    fn endpoints_are_origins_of_http() {
        assert_eq!(endpoint(" 127.0.0.1:7111 ", false).expect("an endpoint"), "http://127.0.0.1:7111");
        assert_eq!(endpoint("127.0.0.1:7111", true).expect("an endpoint"), "https://127.0.0.1:7111");
        assert_eq!(endpoint("http://[::1]:7111/", true).expect("an endpoint"), "http://[::1]:7111");
        for bad in ["", "ftp://h:1", "http://h:1/path", "http://"] {
            assert!(matches!(endpoint(bad, false), Err(ClientError::InvalidEndpoint(_))), "{bad}");
        }
    }
}
