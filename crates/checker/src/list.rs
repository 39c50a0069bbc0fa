//! A list whose items are removed and put back in the opposite order, each at constant cost (Knuth's dancing
//! links 2000, as in Lowe 2017).

/// An item, from 1; [`HEAD`] is before the first and after the last.
pub(crate) type Link = usize;
pub(crate) const HEAD: Link = 0;

/// Items in their original order, without those that were removed.
pub(crate) struct List {
    next: Vec<Link>,
    previous: Vec<Link>,
}

impl List {
    /// A list of `len` items.
    pub(crate) fn new(len: usize) -> Self {
        Self { next: (1..=len).chain([HEAD]).collect(), previous: [len].into_iter().chain(0..len).collect() }
    }

    /// The item after this one. Also works for a removed item, as of its removal.
    pub(crate) fn after(&self, link: Link) -> Link {
        self.next[link]
    }

    pub(crate) fn remove(&mut self, link: Link) {
        let (previous, next) = (self.previous[link], self.next[link]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    /// Puts back an item. It must be the one that was removed last.
    pub(crate) fn put_back(&mut self, link: Link) {
        let (previous, next) = (self.previous[link], self.next[link]);
        self.next[previous] = link;
        self.previous[next] = link;
    }
}
