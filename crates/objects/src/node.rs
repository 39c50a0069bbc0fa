//! What the index keeps of an object, in 56 bytes: there may be a million objects for each 16 GiB of values.

use std::num::NonZeroU32;

use flotilla_types::ObjectId;
use slab::Slab;

use crate::{
    segment::{ID_BYTES, Lengths, RECORD_HEADER_BYTES_MAX},
    tables::SegmentKey,
};

/// The place of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of an object's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Whether an fsync covered them.
    pub(crate) synced: bool,
    /// Whether they were verified against the id since the store was opened.
    pub(crate) verified: bool,
}

/// Where an object's bytes are: a [`Location`](crate::index::Location) in 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: SegmentKey,
    pub(crate) offset: u32,
    pub(crate) lengths: Lengths,
}

const PRESENT: u32 = 1;
const SYNCED: u32 = 2;
const VERIFIED: u32 = 4;
const COMPRESSED: u32 = 8;
const FLAG_BITS: u32 = 4;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: ObjectId,
    /// The key of the segment, then the flags.
    segment: u32,
    offset: u32,
    /// Bytes of the object; of one that is compressed the stored bytes, then those of the object less one, in 16
    /// bits each.
    lengths: u32,
    /// Holders, held parents, and one if it is pinned. The object is held while this is not 0.
    pub(crate) holds: u32,
    /// Children lists that name it.
    pub(crate) named: u32,
    pub(crate) children: Children,
}

impl Node {
    /// A node of an object that is absent.
    pub(crate) fn new(id: ObjectId) -> Self {
        Self { id, segment: 0, offset: 0, lengths: 0, holds: 0, named: 0, children: Children::NONE }
    }

    pub(crate) const fn is_present(&self) -> bool {
        self.segment & PRESENT > 0
    }

    /// What is known of its bytes, if it is present.
    pub(crate) fn stored(&self) -> Option<Stored> {
        let stored = Stored { synced: self.segment & SYNCED > 0, verified: self.segment & VERIFIED > 0 };
        self.is_present().then_some(stored)
    }

    /// Where its bytes are, if it is present.
    pub(crate) fn place(&self) -> Option<Place> {
        let lengths = if self.segment & COMPRESSED > 0 {
            Lengths { stored: self.lengths >> 16, plain: (self.lengths & 0xFFFF) + 1 }
        } else {
            Lengths::uncompressed(self.lengths)
        };
        let place = Place { segment: SegmentKey(self.segment >> FLAG_BITS), offset: self.offset, lengths };
        self.is_present().then_some(place)
    }

    pub(crate) fn set_place(&mut self, place: Place, stored: Stored) {
        let Place { segment, offset, lengths } = place;
        self.segment = segment.0 << FLAG_BITS | PRESENT;
        self.offset = offset;
        self.lengths = lengths.plain;
        if lengths.is_compressed() {
            // A frame is shorter than its content, which is no longer than 2^16.
            self.lengths = lengths.stored << 16 | (lengths.plain - 1);
            self.segment |= COMPRESSED;
        }
        self.set_stored(stored);
    }

    /// Changes what is known of the bytes of an object that is present.
    pub(crate) fn set_stored(&mut self, stored: Stored) {
        let flags = u32::from(stored.synced) * SYNCED + u32::from(stored.verified) * VERIFIED;
        self.segment = self.segment & !(SYNCED | VERIFIED) | flags;
    }

    pub(crate) fn set_absent(&mut self) {
        self.segment = 0;
    }

    /// Bytes of its record on disk, with this number of children. What is not payload counts as well: a segment of
    /// small objects would never be dense otherwise. A record of an earlier format is a little shorter.
    pub(crate) fn record_bytes(&self, children: usize) -> u64 {
        let stored = self.place().map_or(0, |place| place.lengths.stored);
        RECORD_HEADER_BYTES_MAX + ID_BYTES * children as u64 + u64::from(stored)
    }
}

/// The place of a list of children. Most objects have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Children(NonZeroU32);

impl Children {
    const NONE: Self = Self(NonZeroU32::MIN);

    pub(crate) fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

/// The lists of children of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Lists(Slab<Box<[Slot]>>);

impl Lists {
    /// A list: ascending, without duplicates and without the node itself.
    pub(crate) fn of(&self, children: Children) -> &[Slot] {
        if children.is_empty() { &[] } else { &self.0[children.0.get() as usize - 2] }
    }

    pub(crate) fn insert(&mut self, children: Vec<Slot>) -> Children {
        if children.is_empty() {
            return Children::NONE;
        }
        let at = self.0.insert(children.into_boxed_slice());
        // There are no more lists than nodes.
        Children(NonZeroU32::MIN.saturating_add(at as u32 + 1))
    }

    /// Removes a list, and leaves none in its place.
    pub(crate) fn take(&mut self, children: &mut Children) -> Box<[Slot]> {
        let taken = std::mem::replace(children, Children::NONE);
        if taken.is_empty() { Box::default() } else { self.0.remove(taken.0.get() as usize - 2) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_small_and_its_place_in_the_slab_no_larger() {
        assert_eq!((size_of::<Node>(), size_of::<Option<Node>>()), (56, 56));
    }

    #[test]
    fn a_place_is_read_back_whatever_the_flags() {
        let mut node = Node::new(ObjectId::of(b"x"));
        assert_eq!((node.place(), node.stored()), (None, None));
        let lengths = [(0, 0), (1, 1), (u32::MAX, u32::MAX), (65_535, 65_536), (0, 1), (1, 300), (70_000, 70_000)];
        for (n, (stored, plain)) in (0..).zip(lengths) {
            let lengths = Lengths { stored, plain };
            let place = Place { segment: SegmentKey((1 << 28) - 1 - n), offset: u32::MAX - n, lengths };
            for (synced, verified) in [(false, false), (true, false), (false, true), (true, true)] {
                let known = Stored { synced, verified };
                node.set_place(place, known);
                assert_eq!((node.place(), node.stored()), (Some(place), Some(known)));
                let other = Stored { synced: !synced, verified };
                node.set_stored(other);
                assert_eq!((node.place(), node.stored()), (Some(place), Some(other)));
            }
        }
        node.set_absent();
        assert_eq!((node.place(), node.stored()), (None, None));
    }

    #[test]
    fn lists_are_found_until_they_are_taken() {
        let mut lists = Lists::default();
        let mut children = lists.insert(vec![Slot(1), Slot(7)]);
        let other = lists.insert(vec![Slot(2)]);
        assert_eq!((lists.of(children), lists.of(other)), (&[Slot(1), Slot(7)][..], &[Slot(2)][..]));
        assert!(lists.insert(Vec::new()).is_empty() && lists.of(Children::NONE).is_empty());
        assert_eq!(*lists.take(&mut children), [Slot(1), Slot(7)]);
        assert!(children.is_empty() && lists.take(&mut children).is_empty());
        assert_eq!(lists.of(other), [Slot(2)]);
    }
}
