//! Positions of scans. A cursor of `SCAN` is a number, but a position is a key.
//!
//! A bounded table from cursor to key that evicts the least recently used cursor; what is not in it may be in
//! the cluster (see `execute::positions`). The cursor of a key is a hash with a secret of this process, so
//! that equal positions share an entry, and no client can choose keys whose cursors collide. Cursors have 53
//! bits, for clients that store them as floats.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Instant,
};

use bytes::Bytes;

/// Maximum number of scan positions; with the longest keys they take 16 MiB.
pub(crate) const CURSORS_MAX: usize = 4_096;

const CURSOR_BITS: u32 = 53;

/// The positions of scans.
#[derive(Debug)]
pub(crate) struct Cursors {
    secret: RandomState,
    positions: BTreeMap<u64, Position>,
    /// Cursors by the time of their last use.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
    capacity: usize,
    /// Until when positions are not shared.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Position {
    /// The key from which its scan continues.
    from: Bytes,
    /// When it was last used, counted in uses.
    used: u64,
    /// Until when other nodes find it.
    shared_until: Option<Instant>,
}

impl Cursors {
    /// Creates an empty table with a capacity of at least 1.
    pub(crate) fn new(capacity: usize) -> Self {
        let (positions, by_use) = (BTreeMap::new(), BTreeMap::new());
        Self { secret: RandomState::new(), positions, by_use, uses: 0, capacity: capacity.max(1), paused_until: None }
    }

    /// Stores the position of this key and returns its cursor, which is never 0.
    pub(crate) fn insert(&mut self, key: &Bytes) -> u64 {
        let cursor = self.cursor_of(key);
        if !self.touch(cursor) {
            if self.positions.len() == self.capacity
                && let Some((_, oldest)) = self.by_use.pop_first()
            {
                self.positions.remove(&oldest);
            }
            // Copies the key, which may be a slice of a whole page that it would keep in memory.
            let position = Position { from: Bytes::copy_from_slice(key), used: 0, shared_until: None };
            self.positions.insert(cursor, position);
            self.touch(cursor);
        }
        cursor
    }

    /// The key from which the scan of this cursor continues. A cursor may be used repeatedly.
    pub(crate) fn find(&mut self, cursor: u64) -> Option<Bytes> {
        self.touch(cursor);
        self.positions.get(&cursor).map(|position| position.from.clone())
    }

    /// Whether other nodes find this cursor, too.
    pub(crate) fn is_shared(&self, cursor: u64, now: Instant) -> bool {
        let until = self.positions.get(&cursor).and_then(|position| position.shared_until);
        until.is_some_and(|until| now < until)
    }

    /// Other nodes find this cursor until then.
    pub(crate) fn shared(&mut self, cursor: u64, until: Instant) {
        if let Some(position) = self.positions.get_mut(&cursor) {
            position.shared_until = Some(until);
        }
    }

    /// Positions are not shared until then.
    pub(crate) fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    pub(crate) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// A cursor for this key that no other key has, even if their hashes collide.
    fn cursor_of(&self, key: &Bytes) -> u64 {
        let mut salt = 0_u32;
        loop {
            let cursor = self.secret.hash_one((&key[..], salt)) >> (u64::BITS - CURSOR_BITS);
            let taken = self.positions.get(&cursor).is_some_and(|other| other.from != key);
            if cursor != 0 && !taken {
                return cursor;
            }
            salt += 1;
        }
    }

    /// Marks a cursor as just used. `false` if it is unknown.
    fn touch(&mut self, cursor: u64) -> bool {
        let Some(position) = self.positions.get_mut(&cursor) else { return false };
        self.by_use.remove(&position.used);
        self.uses += 1;
        position.used = self.uses;
        self.by_use.insert(self.uses, cursor);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: usize) -> Bytes {
        format!("key:{number}").into()
    }

    #[test]
    fn a_cursor_finds_its_key_repeatedly() {
        let mut cursors = Cursors::new(2);
        let cursor = cursors.insert(&key(1));
        assert!(cursor != 0 && cursor < 1 << 53);
        assert_eq!(cursors.find(cursor), Some(key(1)));
        assert_eq!(cursors.find(cursor), Some(key(1)));
        assert_eq!(cursors.insert(&key(1)), cursor);
        assert_eq!(cursors.find(cursor ^ 1), None);
    }

    #[test]
    fn a_cursor_is_shared_until_a_time() {
        let (mut cursors, now) = (Cursors::new(1), Instant::now());
        let cursor = cursors.insert(&key(1));
        assert!(!cursors.is_shared(cursor, now));
        cursors.shared(cursor, now + Duration::from_secs(1));
        assert_eq!(cursors.insert(&key(1)), cursor);
        assert!(cursors.is_shared(cursor, now) && !cursors.is_shared(cursor, now + Duration::from_secs(1)));
        cursors.insert(&key(2));
        assert!(!cursors.is_shared(cursor, now), "it was evicted");
    }

    #[test]
    fn the_least_recently_used_position_is_evicted_first() {
        let mut cursors = Cursors::new(2);
        let (one, two) = (cursors.insert(&key(1)), cursors.insert(&key(2)));
        cursors.find(one);
        let three = cursors.insert(&key(3));
        assert_eq!([one, two, three].map(|cursor| cursors.find(cursor).is_some()), [true, false, true]);
        assert_eq!((cursors.positions.len(), cursors.by_use.len()), (2, 2));
    }

    #[test]
    fn a_cursor_of_another_process_is_not_found() {
        let cursor = Cursors::new(1).insert(&key(1));
        let mut other = Cursors::new(1);
        other.insert(&key(1));
        assert_eq!(other.find(cursor), None);
    }
}
