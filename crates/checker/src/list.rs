//! A list from which items are lifted and to which they are put back, in the opposite order, at constant cost (Knuth's
//! dancing links 2000, as in Lowe 2017).

/// An item, from 1; [`HEAD`] is before the first and behind the last.
pub(crate) type Link = usize;
pub(crate) const HEAD: Link = 0;

/// Items in their original order, less those that were lifted.
pub(crate) struct List {
    next: Vec<Link>,
    previous: Vec<Link>,
}

impl List {
    /// Of so many items.
    pub(crate) fn new(len: usize) -> Self {
        Self { next: (1..=len).chain([HEAD]).collect(), previous: [len].into_iter().chain(0..len).collect() }
    }

    /// The item behind this one. An item that was lifted still knows what was behind it.
    pub(crate) fn after(&self, link: Link) -> Link {
        self.next[link]
    }

    pub(crate) fn lift(&mut self, link: Link) {
        let (previous, next) = (self.previous[link], self.next[link]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    /// Puts back the item that was lifted last of those that are lifted.
    pub(crate) fn put_back(&mut self, link: Link) {
        let (previous, next) = (self.previous[link], self.next[link]);
        self.next[previous] = link;
        self.previous[next] = link;
    }
}
