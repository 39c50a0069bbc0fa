//! Join tokens, which an operator copies from a running cluster to a new node.
//!
//! `flt1.` and, in URL-safe base64 without padding, 92 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 16 | cluster id |
//! | 32 | BLAKE3 hash of the authority's certificate, which the joiner pins |
//! | 8 | token id, big-endian |
//! | 32 | random secret |
//! | 4 | first bytes of the BLAKE3 hash of all the above; distinguishes a typo from a refused token |
//!
//! The cluster keeps only [`JoinToken::hash`], and decides how long and how often a token is valid.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flotilla_types::ClusterId;
use rand::CryptoRng;

use crate::CaFingerprint;

const PREFIX: &str = "flt";
const VERSION: u32 = 1;
const BODY_BYTES: usize = 16 + 32 + 8 + 32;
const CHECK_BYTES: usize = 4;
/// Longest text that is parsed, in bytes. A token has 128 characters.
const TEXT_BYTES_MAX: usize = 1024;
const HASH_CONTEXT: &str = "flotilla join token v1: hash kept by the cluster";
const CHECK_CONTEXT: &str = "flotilla join token v1: check against typing errors";

/// A text is not a token that this version understands. Nothing was sent; a retry with the same text fails
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, or one with a wrong or missing character.
    #[error("the join token is malformed; copy the whole token again")]
    Malformed,
    /// A token of another version. Use a newer or older binary.
    #[error("the join token has version {found}, this binary supports version {VERSION}")]
    ForeignVersion {
        /// The version in the token.
        found: u32,
    },
}

/// The id of a token in the cluster's records. Allocated by the cluster, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u64);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a new node needs to join: the cluster, the authority to trust, and a secret that admits the node.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    cluster: ClusterId,
    ca: CaFingerprint,
    id: TokenId,
    secret: [u8; 32],
}

impl JoinToken {
    /// A new token with a random secret.
    pub fn mint<R: CryptoRng + ?Sized>(cluster: ClusterId, ca: CaFingerprint, id: TokenId, random: &mut R) -> Self {
        let mut secret = [0; 32];
        random.fill_bytes(&mut secret);
        Self { cluster, ca, id, secret }
    }

    /// Parses a token. Surrounding whitespace is ignored.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (version, body) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).ok_or(TokenError::Malformed)?;
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TokenError::Malformed);
        }
        let found = version.parse().map_err(|_| TokenError::Malformed)?;
        if found != VERSION {
            return Err(TokenError::ForeignVersion { found });
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed)?;
        let (body, check) = bytes.split_first_chunk::<BODY_BYTES>().ok_or(TokenError::Malformed)?;
        if check != checksum(body) {
            return Err(TokenError::Malformed);
        }
        Self::from_body(body).ok_or(TokenError::Malformed)
    }

    /// The cluster to join.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority to pin.
    #[must_use]
    pub fn fingerprint(&self) -> CaFingerprint {
        self.ca
    }

    /// The token's id in the cluster's records.
    #[must_use]
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The hash that the cluster keeps: a keyed derivation of secret, cluster, authority and id. A token
    /// whose hash equals the stored one is genuine; the hash does not reveal the token.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(blake3::derive_key(HASH_CONTEXT, &self.body()))
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[..16].copy_from_slice(&self.cluster.0);
        body[16..48].copy_from_slice(&self.ca.0);
        body[48..56].copy_from_slice(&self.id.0.to_be_bytes());
        body[56..].copy_from_slice(&self.secret);
        body
    }

    fn from_body(body: &[u8; BODY_BYTES]) -> Option<Self> {
        let (cluster, rest) = body.split_first_chunk::<16>()?;
        let (ca, rest) = rest.split_first_chunk::<32>()?;
        let (id, secret) = rest.split_first_chunk::<8>()?;
        Some(Self {
            cluster: ClusterId(*cluster),
            ca: CaFingerprint(*ca),
            id: TokenId(u64::from_be_bytes(*id)),
            secret: secret.try_into().ok()?,
        })
    }
}

fn checksum(body: &[u8; BODY_BYTES]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key(CHECK_CONTEXT, body);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash[..CHECK_BYTES]);
    check
}

impl fmt::Display for JoinToken {
    /// The whole token, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(&checksum(&body));
        write!(f, "{PREFIX}{VERSION}.{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("cluster", &self.cluster).field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::parse(text)
    }
}

/// The hash of a token. Comparison takes constant time.
#[derive(Clone, Copy, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..12])
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, attack, mutated};
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn token() -> JoinToken {
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        JoinToken::mint(ClusterId([7; 16]), CaFingerprint([9; 32]), TokenId(3), &mut random)
    }

    #[test]
    fn token_round_trips_through_text() {
        let token = token();
        let read: JoinToken = format!("  {token}\n").parse().unwrap();
        assert_eq!(read, token);
        assert_eq!(read.hash(), token.hash());
        assert_eq!(token.to_string().len(), 128);
    }

    #[test]
    fn every_single_typo_is_malformed() {
        let text = token().to_string();
        for position in 5..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[position] = if typo[position] == b'A' { b'B' } else { b'A' };
            let typo = String::from_utf8(typo).unwrap();
            assert_eq!(JoinToken::parse(&typo), Err(TokenError::Malformed), "position {position}");
            assert_eq!(JoinToken::parse(&text[..position]), Err(TokenError::Malformed));
        }
    }

    #[test]
    fn other_versions_are_reported() {
        let text = token().to_string().replacen("flt1", "flt2", 1);
        assert_eq!(JoinToken::parse(&text), Err(TokenError::ForeignVersion { found: 2 }));
        assert_eq!(JoinToken::parse("flt+1.AAAA"), Err(TokenError::Malformed));
        assert_eq!(JoinToken::parse("flt99999999999999.AAAA"), Err(TokenError::Malformed));
    }

    #[test]
    fn hash_depends_on_every_part_and_hides_the_secret() {
        let token = token();
        for change in [
            JoinToken { cluster: ClusterId([8; 16]), ..token.clone() },
            JoinToken { ca: CaFingerprint([8; 32]), ..token.clone() },
            JoinToken { id: TokenId(4), ..token.clone() },
            JoinToken { secret: [0; 32], ..token.clone() },
        ] {
            assert_ne!(change.hash(), token.hash());
        }
        assert_ne!(token.hash().0, token.secret);
        let secret = blake3::Hash::from_bytes(token.secret).to_hex();
        assert!(!format!("{token:?}").contains(&secret[..8]));
    }

    #[test]
    fn hostile_tokens_are_malformed_or_foreign_and_others_round_trip() {
        let valid = (any::<[u8; 16]>(), any::<[u8; 32]>(), any::<u64>(), any::<[u8; 32]>()).prop_map(
            |(cluster, ca, id, secret)| JoinToken {
                cluster: ClusterId(cluster),
                ca: CaFingerprint(ca),
                id: TokenId(id),
                secret,
            },
        );
        attack(128, &valid, |token| {
            assert_eq!(JoinToken::parse(&token.to_string()), Ok(token));
        });
        let texts = prop_oneof![
            3 => mutated(valid.prop_map(|token| token.to_string())),
            1 => "flt1\\.[A-Za-z0-9_-]{0,140}".prop_map(String::into_bytes),
            1 => ".{0,200}".prop_map(String::into_bytes),
        ];
        attack(1_000, texts, |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(token) = Proportion::DEFAULT.of(text.len(), || JoinToken::parse(&text)) {
                assert_eq!(token.to_string(), text.trim(), "only a minted token parses");
            }
        });
    }
}
