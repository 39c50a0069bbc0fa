//! Encoding of bytes in JSON: as UTF-8 text, or as base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// Encoding of the keys and values of one JSON object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Unchanged text; bytes that are not UTF-8 cannot be represented.
    #[default]
    Utf8,
    /// Standard base64 with padding.
    Base64,
}

/// Bytes that an [`Encoding`] cannot represent, or text that it cannot decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The bytes are not UTF-8.
    #[error("the bytes are not UTF-8 text; ask with encoding=base64")]
    NotUtf8,
    /// The text is not standard base64 with padding.
    #[error("the text is not base64 (standard alphabet, with padding)")]
    NotBase64,
}

impl Encoding {
    /// Encodes bytes as text.
    ///
    /// # Errors
    /// [`TextError::NotUtf8`] under [`Encoding::Utf8`].
    pub fn encode(self, bytes: &[u8]) -> Result<String, TextError> {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| TextError::NotUtf8),
            Self::Base64 => Ok(STANDARD.encode(bytes)),
        }
    }

    /// Decodes text to bytes.
    ///
    /// # Errors
    /// [`TextError::NotBase64`] under [`Encoding::Base64`].
    pub fn decode(self, text: &str) -> Result<Vec<u8>, TextError> {
        match self {
            Self::Utf8 => Ok(text.as_bytes().to_vec()),
            Self::Base64 => STANDARD.decode(text).map_err(|_| TextError::NotBase64),
        }
    }

    /// UTF-8 if all parts are UTF-8, else base64.
    #[must_use]
    pub fn for_all(parts: &[&[u8]]) -> Self {
        if parts.iter().all(|part| std::str::from_utf8(part).is_ok()) { Self::Utf8 } else { Self::Base64 }
    }

    /// Whether this is the encoding of an object that does not specify one.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::Utf8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_round_trip() {
        for bytes in [&b"plain"[..], b"", b"\0\xff\xfe", "ü".as_bytes()] {
            let encoding = Encoding::for_all(&[bytes]);
            let text = encoding.encode(bytes).expect("for_all chose it");
            assert_eq!(encoding.decode(&text).as_deref(), Ok(bytes));
        }
        assert_eq!(Encoding::Utf8.encode(b"\xff"), Err(TextError::NotUtf8));
        assert_eq!(Encoding::Base64.decode("a"), Err(TextError::NotBase64));
    }

    #[test]
    fn hostile_texts_and_documents_are_parsed_in_proportionate_memory() {
        use flotilla_hostile::{Proportion, attack, mutated};
        use proptest::sample::select;

        use crate::{BatchReply, ClusterStatus, EventList, Problem, ProblemType, ScanPage, SettingRequest, TokenId};

        let problem = Problem::new(ProblemType::MalformedRequest, "a detail");
        let documents = [
            serde_json::to_string(&problem).expect("JSON"),
            r#"{"items":[{"key":"a","value":"b","version":7}],"cursor":"YQ"}"#.to_owned(),
            r#"{"results":[{"outcome":"written","version":3,"number":1}]}"#.to_owned(),
            r#"{"value":18446744073709551615}"#.to_owned(),
            r#""00000000000000ff""#.to_owned(),
            "AP/+".to_owned(),
        ];
        attack(1_000, mutated(select(documents.to_vec())), |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            Proportion { per_byte: 200, ..Proportion::DEFAULT }.of(text.len(), || {
                // A client need not trust the server that it reads these from.
                let _ = serde_json::from_str::<Problem>(&text);
                let _ = serde_json::from_str::<ScanPage>(&text);
                let _ = serde_json::from_str::<BatchReply>(&text);
                let _ = serde_json::from_str::<ClusterStatus>(&text);
                let _ = serde_json::from_str::<EventList>(&text);
                let _ = serde_json::from_str::<SettingRequest>(&text);
                if let Ok(id) = serde_json::from_str::<TokenId>(&text) {
                    assert_eq!(id.to_string().parse(), Ok(id));
                }
                if let Ok(bytes) = Encoding::Base64.decode(&text) {
                    assert_eq!(Encoding::Base64.encode(&bytes).as_deref(), Ok(&*text));
                }
            });
        });
    }
}
