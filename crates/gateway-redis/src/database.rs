//! The databases of `SELECT`, each a collection of its own: `default`, `db1` … `db15`.

use std::fmt;

use flotilla_kv::parse_integer;

const COLLECTIONS: [&str; 16] = [
    "default", "db1", "db2", "db3", "db4", "db5", "db6", "db7", "db8", "db9", "db10", "db11", "db12", "db13", "db14",
    "db15",
];

/// A database by its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Database(u8);

impl Database {
    /// Their number.
    pub const COUNT: usize = COLLECTIONS.len();

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).take(Self::COUNT).map(Self)
    }

    /// The database with this number, if there is one.
    #[must_use]
    pub fn new(number: i64) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| usize::from(*number) < Self::COUNT).map(Self)
    }

    /// As [`new`](Self::new), of a number as a client writes it. The outer `None`: it is not a number.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Option<Self>> {
        parse_integer(text).map(Self::new)
    }

    /// Its place in a list of all.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// The collection that holds its keys.
    #[must_use]
    pub fn collection(self) -> &'static str {
        COLLECTIONS[self.index()]
    }

    /// Whether its collection exists from the start. Others are created when they are first written.
    #[must_use]
    pub fn is_founded(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_has_a_collection_of_its_own() {
        let collections: Vec<_> = Database::all().map(Database::collection).collect();
        assert_eq!(
            (collections[0], collections[1], collections[15], collections.len()),
            ("default", "db1", "db15", 16)
        );
        assert_eq!((Database::new(16), Database::new(-1), Database::parse(b"x")), (None, None, None));
        assert_eq!(Database::parse(b"15").flatten().map(Database::collection), Some("db15"));
    }
}
