//! Which objects a value needs, level by level: for whoever holds some of them and fetches the others.
//!
//! A plan takes memory in proportion to the lists that it was given, not to what they claim: an object that a
//! level needs many times is named once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Kind, ListNode, Need, ValueRef, VerifyError};

/// The objects of a value: first those that its reference names, then those below them.
///
/// For each level: ask which objects of [`level`](Self::level) are missing, fetch them,
/// [`supply`](Self::supply) every list, and [`descend`](Self::descend). The last level has the chunks, which
/// [`Need::verify`] verifies.
#[derive(Debug)]
pub struct Plan {
    level: Vec<Need>,
    /// Lists of this level, with what was supplied.
    lists: BTreeMap<Need, Option<ListNode>>,
}

/// The lists of a level have to be supplied before the next level is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{lists} lists of this level were not supplied")]
pub struct NotSupplied {
    /// How many are not.
    pub lists: usize,
}

impl Plan {
    /// Begins with what the reference names.
    #[must_use]
    pub fn new(value: &ValueRef) -> Self {
        Self::of(value.needs())
    }

    /// The objects of this level, each once, in the order of the value. Empty if the value is.
    #[must_use]
    pub fn level(&self) -> &[Need] {
        &self.level
    }

    /// Takes a list of this level, held or fetched, after checking it. A second time is of no effect.
    pub fn supply(&mut self, need: &Need, object: &[u8]) -> Result<(), VerifyError> {
        let list = self.lists.get_mut(need).ok_or(VerifyError::Unexpected(need.id))?;
        if list.is_none() {
            *list = need.verify(object)?;
        }
        Ok(())
    }

    /// Goes to the next level. Returns false, and stays, if this is the last one.
    pub fn descend(&mut self) -> Result<bool, NotSupplied> {
        let lists = self.lists.values().filter(|list| list.is_none()).count();
        if lists > 0 {
            return Err(NotSupplied { lists });
        }
        if self.lists.is_empty() {
            return Ok(false);
        }
        let below = self.level.iter().filter_map(|need| self.lists[need].as_ref()).flat_map(ListNode::needs);
        *self = Self::of(below);
        Ok(true)
    }

    fn of(needs: impl Iterator<Item = Need>) -> Self {
        let mut seen = BTreeSet::new();
        let level: Vec<_> = needs.filter(|need| seen.insert(*need)).collect();
        let lists = level.iter().filter(|need| need.kind != Kind::Chunk).map(|need| (*need, None)).collect();
        Self { level, lists }
    }
}
