//! Client keys: who a request comes from, and what its key may do. Shared by all client protocols.
//!
//! Invariants: without a valid key nothing but [`Right::Probe`] is granted, unless access is open; a key is
//! looked up again for every request, so that a revoked one ends with the metadata that this node has.

mod rights;
mod tries;

use std::{net::IpAddr, sync::Arc};

use flotilla_identity::{ClientKey, KeyHash};
use flotilla_types::Role;
use parking_lot::Mutex;

pub use rights::{Right, TABLE};
use tries::FailedTries;

/// Bytes of a key that are looked at; a longer one is malformed.
const KEY_BYTES_MAX: usize = 128;

/// A client key as the cluster's metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    /// Hash of its secret.
    pub hash: [u8; 32],
    /// What its holder may do.
    pub role: Role,
    /// The collections whose records it opens; empty for all.
    pub collections: Vec<String>,
    /// The time from which it is refused, in Unix milliseconds; 0 for never.
    pub expires_at_ms: u64,
}

/// Finds client keys. Never waits.
pub trait Keys: Send + Sync + 'static {
    /// The key with this id, as this node knows it.
    fn key(&self, id: u64) -> Option<KeyFacts>;
}

/// Who may do what on this node.
pub struct Access {
    /// `None` when everybody may do everything.
    keys: Option<Arc<dyn Keys>>,
    tries: Mutex<FailedTries>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key was given.
    #[error("this node serves clients with a key only; create one with `flotilla key create`")]
    NoKey,
    /// The key is malformed, unknown, revoked or expired.
    #[error("the key is not valid: it is malformed, unknown, revoked or expired")]
    BadKey,
    /// This address has sent too many wrong keys.
    #[error("too many wrong keys came from this address; wait")]
    TooManyTries {
        /// How long to wait.
        retry_after_ms: u64,
    },
    /// The key's role does not include this.
    #[error("a key with the role {role} may not do this; it needs the right to {right}")]
    Right {
        /// The key's role.
        role: Role,
        /// What is missing.
        right: Right,
    },
    /// The key does not open this collection.
    #[error("the key does not open this collection")]
    Collection,
}

/// What an authenticated client may do, until its key is revoked or expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The key's id; `None` when access is open.
    key: Option<u64>,
    role: Role,
    /// Empty for all.
    collections: Vec<String>,
}

impl Grant {
    /// The grant of everybody while access is open.
    const OPEN: Self = Self { key: None, role: Role::Admin, collections: Vec::new() };

    /// The id of the key that it comes from.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.key
    }

    /// Checks a right that concerns no collection.
    ///
    /// # Errors
    /// [`Denied::Right`].
    pub fn check(&self, right: Right) -> Result<(), Denied> {
        if right.is_held_by(self.role) { Ok(()) } else { Err(Denied::Right { role: self.role, right }) }
    }

    /// Checks that the key opens all collections.
    ///
    /// # Errors
    /// [`Denied::Collection`].
    pub fn check_all_collections(&self) -> Result<(), Denied> {
        if self.collections.is_empty() { Ok(()) } else { Err(Denied::Collection) }
    }

    /// Checks a right to the records of a collection.
    ///
    /// # Errors
    /// [`Denied::Right`], [`Denied::Collection`].
    pub fn check_collection(&self, right: Right, collection: &str) -> Result<(), Denied> {
        self.check(right)?;
        let opens = self.collections.is_empty() || self.collections.iter().any(|name| name == collection);
        if opens { Ok(()) } else { Err(Denied::Collection) }
    }
}

impl Access {
    /// Everybody may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self { keys: None, tries: Mutex::default() }
    }

    /// Only holders of keys are served.
    #[must_use]
    pub fn by_keys(keys: Arc<dyn Keys>) -> Self {
        Self { keys: Some(keys), tries: Mutex::default() }
    }

    /// Whether clients need a key.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        self.keys.is_some()
    }

    /// What a client without a key may do: everything while access is open.
    ///
    /// # Errors
    /// [`Denied::NoKey`].
    pub fn anonymous(&self) -> Result<Grant, Denied> {
        if self.needs_key() { Err(Denied::NoKey) } else { Ok(Grant::OPEN) }
    }

    /// Checks the key that a client sent. While access is open any key is accepted, since none is needed.
    ///
    /// # Errors
    /// [`Denied::BadKey`], [`Denied::TooManyTries`].
    pub fn authenticate(&self, text: &[u8], address: IpAddr, now_ms: u64) -> Result<Grant, Denied> {
        let Some(keys) = &self.keys else { return Ok(Grant::OPEN) };
        let key = str::from_utf8(&text[..text.len().min(KEY_BYTES_MAX)]).ok().and_then(|text| text.parse().ok());
        let id = key.as_ref().map(ClientKey::id);
        if let Some(retry_after_ms) = self.tries.lock().refuses(address, id, now_ms) {
            metrics::counter!("flotilla_auth_refused_total", "reason" => "too_many_tries").increment(1);
            return Err(Denied::TooManyTries { retry_after_ms });
        }
        match key.and_then(|key| grant(keys.as_ref(), &key, now_ms)) {
            Some((id, grant)) => {
                self.tries.lock().succeeded(address, id);
                Ok(grant)
            }
            None => {
                self.tries.lock().failed(address, now_ms);
                metrics::counter!("flotilla_auth_refused_total", "reason" => "bad_key").increment(1);
                Err(Denied::BadKey)
            }
        }
    }

    /// Whether a grant still holds: its key is neither revoked nor expired.
    #[must_use]
    pub fn is_current(&self, grant: &Grant, now_ms: u64) -> bool {
        match (&self.keys, grant.key) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(keys), Some(id)) => keys.key(id).is_some_and(|facts| !is_expired(&facts, now_ms)),
        }
    }
}

fn grant(keys: &dyn Keys, key: &ClientKey, now_ms: u64) -> Option<(u64, Grant)> {
    let facts = keys.key(key.id())?;
    let valid = KeyHash(facts.hash) == key.hash() && !is_expired(&facts, now_ms);
    let grant = Grant { key: Some(key.id()), role: facts.role, collections: facts.collections };
    valid.then_some((key.id(), grant))
}

fn is_expired(facts: &KeyFacts, now_ms: u64) -> bool {
    facts.expires_at_ms != 0 && now_ms >= facts.expires_at_ms
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rand::SeedableRng as _;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Keys that a test can revoke.
    struct Book(Mutex<Vec<(u64, KeyFacts)>>);

    impl Keys for Book {
        fn key(&self, id: u64) -> Option<KeyFacts> {
            self.0.lock().iter().find(|(known, _)| *known == id).map(|(_, facts)| facts.clone())
        }
    }

    fn book(role: Role, collections: &[&str], expires_at_ms: u64) -> (ClientKey, Arc<Book>, Access) {
        let key = ClientKey::mint(&mut rand::rngs::StdRng::seed_from_u64(7));
        let collections = collections.iter().map(|name| (*name).to_owned()).collect();
        let facts = KeyFacts { hash: key.hash().0, role, collections, expires_at_ms };
        let book = Arc::new(Book(Mutex::new(vec![(key.id(), facts)])));
        (key, book.clone(), Access::by_keys(book))
    }

    #[test]
    fn without_keys_everybody_may_do_everything() {
        let access = Access::open();
        for grant in [access.anonymous(), access.authenticate(b"anything", HERE, 0)] {
            let grant = grant.expect("open");
            assert_eq!(grant.check(Right::Administer), Ok(()));
            assert!(access.is_current(&grant, u64::MAX));
        }
    }

    #[test]
    fn a_key_opens_what_its_role_and_collections_say_until_it_is_revoked_or_expires() {
        let (key, book, access) = book(Role::Reader, &["a"], 100);
        assert_eq!(access.anonymous(), Err(Denied::NoKey));
        let grant = access.authenticate(key.to_string().as_bytes(), HERE, 99).expect("valid");
        assert_eq!(grant.check_collection(Right::Read, "a"), Ok(()));
        assert_eq!(grant.check_collection(Right::Read, "b"), Err(Denied::Collection));
        let missing = Denied::Right { role: Role::Reader, right: Right::Write };
        assert_eq!(grant.check_collection(Right::Write, "a"), Err(missing));
        assert!(access.is_current(&grant, 99) && !access.is_current(&grant, 100), "it expires");
        assert_eq!(access.authenticate(key.to_string().as_bytes(), HERE, 100), Err(Denied::BadKey));
        book.0.lock().clear();
        assert!(!access.is_current(&grant, 0), "it was revoked");
        assert!(!access.is_current(&Grant::OPEN, 0), "a grant of another mode");
    }

    #[test]
    fn a_key_with_a_right_id_and_a_wrong_secret_is_refused() {
        let (key, book, access) = book(Role::Admin, &[], 0);
        let other = ClientKey::mint(&mut rand::rngs::StdRng::seed_from_u64(8));
        book.0.lock()[0].1.hash = other.hash().0;
        assert_eq!(access.authenticate(key.to_string().as_bytes(), HERE, 0), Err(Denied::BadKey));
        for bad in [&b""[..], b"flk1.", &[b'x'; 10_000], b"\xff\xfe"] {
            assert_eq!(access.authenticate(bad, HERE, 0), Err(Denied::BadKey));
        }
    }

    #[test]
    fn an_address_with_many_wrong_keys_waits_and_its_known_keys_go_on() {
        let (key, _, access) = book(Role::Admin, &[], 0);
        let good = key.to_string();
        access.authenticate(good.as_bytes(), HERE, 0).expect("valid");
        while access.authenticate(b"wrong", HERE, 0) == Err(Denied::BadKey) {}
        let wait = access.authenticate(b"wrong", HERE, 0);
        assert!(matches!(wait, Err(Denied::TooManyTries { retry_after_ms }) if retry_after_ms > 0));
        assert!(access.authenticate(good.as_bytes(), HERE, 0).is_ok(), "it was accepted from here before");
        let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(access.authenticate(b"wrong", elsewhere, 0), Err(Denied::BadKey));
        let Err(Denied::TooManyTries { retry_after_ms }) = wait else { return };
        assert_eq!(access.authenticate(b"wrong", HERE, retry_after_ms), Err(Denied::BadKey), "after the wait");
    }
}
