//! Client keys, by which applications and operators prove who they are.
//!
//! `flk1.` and, in URL-safe base64 without padding, 44 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | key id, big-endian |
//! | 32 | random secret |
//! | 4 | first bytes of the BLAKE3 hash of all the above; distinguishes a typo from a refused key |
//!
//! The cluster keeps only [`ClientKey::hash`]. The secret has 256 random bits, so nobody can guess it from a
//! fast hash; a slow one, as passwords need, would let anybody make a node work by sending wrong keys.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::CryptoRng;

const PREFIX: &str = "flk1.";
const BODY_BYTES: usize = 8 + 32;
const CHECK_BYTES: usize = 4;
/// Characters of a key's text.
const TEXT_BYTES: usize = PREFIX.len() + 59;
const HASH_CONTEXT: &str = "flotilla client key v1: hash kept by the cluster";
const CHECK_CONTEXT: &str = "flotilla client key v1: check against typing errors";

/// A text is not a client key. A retry with the same text fails again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client key is malformed; copy the whole key again")]
pub struct KeyError;

/// A client key with its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey {
    id: u64,
    secret: [u8; 32],
}

impl ClientKey {
    /// A new key with a random id and secret.
    pub fn mint<R: CryptoRng + ?Sized>(random: &mut R) -> Self {
        let mut secret = [0; 32];
        random.fill_bytes(&mut secret);
        Self { id: random.next_u64(), secret }
    }

    /// Parses a key. Surrounding whitespace is ignored.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.len() != TEXT_BYTES {
            return Err(KeyError);
        }
        let body = text.strip_prefix(PREFIX).ok_or(KeyError)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| KeyError)?;
        let (body, check) = bytes.split_first_chunk::<BODY_BYTES>().ok_or(KeyError)?;
        if check != checksum(body) {
            return Err(KeyError);
        }
        let (id, secret) = body.split_first_chunk::<8>().ok_or(KeyError)?;
        Ok(Self { id: u64::from_be_bytes(*id), secret: secret.try_into().map_err(|_| KeyError)? })
    }

    /// The key's id in the cluster's records.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The hash that the cluster keeps: a keyed derivation of id and secret, which does not reveal the key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash(blake3::derive_key(HASH_CONTEXT, &self.body()))
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[..8].copy_from_slice(&self.id.to_be_bytes());
        body[8..].copy_from_slice(&self.secret);
        body
    }
}

fn checksum(body: &[u8; BODY_BYTES]) -> [u8; CHECK_BYTES] {
    let hash = blake3::derive_key(CHECK_CONTEXT, body);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash[..CHECK_BYTES]);
    check
}

impl fmt::Display for ClientKey {
    /// The whole key, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(&checksum(&body));
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for ClientKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::parse(text)
    }
}

/// The hash of a client key. Comparison takes constant time.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash(pub [u8; 32]);

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..12])
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{attack, mutated};
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn key() -> ClientKey {
        ClientKey::mint(&mut rand::rngs::StdRng::seed_from_u64(1))
    }

    #[test]
    fn key_round_trips_through_text_and_every_typo_is_malformed() {
        let key = key();
        let text = key.to_string();
        assert_eq!(format!(" {text}\n").parse(), Ok(key.clone()));
        assert_eq!(text.len(), TEXT_BYTES);
        for position in 0..text.len() {
            let mut typo = text.clone().into_bytes();
            typo[position] = if typo[position] == b'A' { b'B' } else { b'A' };
            assert_eq!(ClientKey::parse(&String::from_utf8(typo).unwrap()), Err(KeyError), "position {position}");
            assert_eq!(ClientKey::parse(&text[..position]), Err(KeyError));
        }
    }

    #[test]
    fn hash_depends_on_every_part_and_hides_the_secret() {
        let key = key();
        assert_ne!(ClientKey { id: 4, ..key.clone() }.hash(), key.hash());
        assert_ne!(ClientKey { secret: [0; 32], ..key.clone() }.hash(), key.hash());
        assert_ne!(key.hash().0, key.secret);
        assert!(!format!("{key:?}").contains(&URL_SAFE_NO_PAD.encode(key.secret)[..8]));
    }

    #[test]
    fn hostile_keys_are_malformed_and_others_round_trip() {
        let valid = (any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, secret)| ClientKey { id, secret }.to_string());
        let texts = prop_oneof![mutated(valid), "flk1\\.[A-Za-z0-9_-]{59}".prop_map(String::into_bytes)];
        attack(1_000, texts, |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(key) = ClientKey::parse(&text) {
                assert_eq!(key.to_string(), text.trim(), "only a minted key parses");
            }
        });
    }
}
