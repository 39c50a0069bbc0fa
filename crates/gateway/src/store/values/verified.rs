//! References that are known to be those of their content.

use std::collections::{HashSet, VecDeque};

use flotilla_types::ObjectId;
use flotilla_values::{Chunking, ValueRef};

/// References that are remembered; the oldest are forgotten first, and their content is read again.
const REFS_MAX: usize = 4_096;

/// References whose content was cut, with the same result. Ids are hashes, so this stays true.
#[derive(Debug, Default)]
pub(crate) struct VerifiedRefs {
    known: HashSet<ObjectId>,
    /// From the oldest on.
    order: VecDeque<ObjectId>,
}

impl VerifiedRefs {
    pub(crate) fn has(&self, value: &ValueRef, chunking: Chunking) -> bool {
        self.known.contains(&name(value, chunking))
    }

    pub(crate) fn add(&mut self, value: &ValueRef, chunking: Chunking) {
        let name = name(value, chunking);
        if self.known.insert(name) {
            self.order.push_back(name);
        }
        if self.order.len() > REFS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// A hash of what is known to belong together.
fn name(value: &ValueRef, chunking: Chunking) -> ObjectId {
    let lengths = [chunking.min(), chunking.average(), chunking.max()].map(u32::to_le_bytes).concat();
    ObjectId::of(&[&lengths[..], &value.encode()].concat())
}

#[cfg(test)]
mod tests {
    use flotilla_values::cut;

    use super::*;

    fn value(content: &[u8]) -> ValueRef {
        cut(content, Chunking::default()).expect("a short value").value
    }

    #[test]
    fn a_reference_is_known_for_its_chunking_until_many_others_came() {
        let mut refs = VerifiedRefs::default();
        refs.add(&value(b"x"), Chunking::default());
        assert!(refs.has(&value(b"x"), Chunking::default()) && !refs.has(&value(b"y"), Chunking::default()));
        assert!(!refs.has(&value(b"x"), Chunking::AVERAGE_64_KIB));
        for other in 0..REFS_MAX as u32 {
            refs.add(&value(&other.to_le_bytes()), Chunking::default());
        }
        assert!(!refs.has(&value(b"x"), Chunking::default()));
        assert_eq!((refs.known.len(), refs.order.len()), (REFS_MAX, REFS_MAX));
    }
}
