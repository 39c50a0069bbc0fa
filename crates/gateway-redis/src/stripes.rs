//! Locks by which the clients of one node take turns on a key, before they read it to write it.
//!
//! Only a matter of speed: a commit fails anyway when a key has changed since it was read. Without turns most
//! attempts on a busy key would fail. A key has one of a fixed number of locks; locks are taken in ascending
//! order, so that no two clients wait for each other.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    time::Instant,
};

use bytes::Bytes;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout_at,
};

/// Number of locks: keys that differ rarely share one.
const STRIPES: usize = 1_024;

/// Locks for all keys.
#[derive(Debug)]
pub(crate) struct Stripes {
    hasher: RandomState,
    locks: Vec<Mutex<()>>,
}

/// The turn did not come before the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoTurn;

impl Default for Stripes {
    fn default() -> Self {
        Self { hasher: RandomState::new(), locks: std::iter::repeat_with(Mutex::default).take(STRIPES).collect() }
    }
}

impl Stripes {
    /// Waits for the turn on all these keys, which lasts until the guards are dropped.
    pub(crate) async fn turn<'a>(
        &'a self,
        keys: impl Iterator<Item = &Bytes>,
        deadline: Instant,
    ) -> Result<Vec<MutexGuard<'a, ()>>, NoTurn> {
        let stripes: BTreeSet<_> = keys.map(|key| self.hasher.hash_one(key) as usize % STRIPES).collect();
        let mut guards = Vec::with_capacity(stripes.len());
        for lock in stripes.into_iter().filter_map(|stripe| self.locks.get(stripe)) {
            guards.push(timeout_at(deadline.into(), lock.lock()).await.map_err(|_| NoTurn)?);
        }
        Ok(guards)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_turn_on_a_key_excludes_others_until_it_ends() {
        let stripes = Stripes::default();
        let keys = [Bytes::from_static(b"a"), Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        let turn = stripes.turn(keys.iter(), Instant::now() + Duration::from_secs(60)).await.unwrap();
        assert!(turn.len() <= 2, "a key that is named twice has one lock");
        assert_eq!(stripes.turn(keys[2..].iter(), Instant::now()).await.err(), Some(NoTurn));
        drop(turn);
        assert!(stripes.turn(keys[2..].iter(), Instant::now() + Duration::from_secs(60)).await.is_ok());
    }
}
