//! Ids that are 16 hexadecimal digits in JSON and in paths, because many readers lose digits of JSON numbers
//! of this size.

/// Defines such an id, and the error of a text that is none.
macro_rules! hex_id {
    ($(#[$doc:meta])+ $id:ident; $(#[$error_doc:meta])+ $error:ident = $text:literal) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $id(pub u64);

        $(#[$error_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error($text)]
        pub struct $error;

        impl std::fmt::Display for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl std::str::FromStr for $id {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                // `from_str_radix` alone would accept a sign.
                if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err($error);
                }
                u64::from_str_radix(text, 16).map(Self).map_err(|_| $error)
            }
        }

        impl serde::Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(<D::Error as serde::de::Error>::custom)
            }
        }
    };
}

hex_id! {
    /// Id of a client key; not a secret. In JSON and in paths it is 16 hexadecimal digits.
    KeyId;
    /// The text is not a key id.
    InvalidKeyId = "a key id has 16 hexadecimal digits"
}

hex_id! {
    /// Id of a join token; not a secret. In JSON and in paths it is 16 hexadecimal digits.
    TokenId;
    /// The text is not a token id.
    InvalidTokenId = "a token id has 16 hexadecimal digits"
}

hex_id! {
    /// Id of an upload, drawn at random. In JSON, headers and paths it is 16 hexadecimal digits.
    UploadId;
    /// The text is not the id of an upload.
    InvalidUploadId = "the id of an upload has 16 hexadecimal digits"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_keeps_every_digit_in_json_and_nothing_else_is_one() {
        for id in [0, u64::MAX, (1 << 53) + 1] {
            let text = serde_json::to_string(&TokenId(id)).expect("JSON");
            assert_eq!(text.len(), 18, "{text}");
            assert_eq!(serde_json::to_string(&KeyId(id)).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<TokenId>(&text).expect("an id"), TokenId(id));
            assert_eq!(serde_json::from_str::<KeyId>(&text).expect("an id"), KeyId(id));
        }
        for bad in ["", "1", "+000000000000001", "00000000000000011", "000000000000000g", "../cluster/nodes"] {
            assert_eq!(bad.parse::<TokenId>(), Err(InvalidTokenId), "{bad}");
            assert_eq!(bad.parse::<KeyId>(), Err(InvalidKeyId), "{bad}");
        }
    }
}
