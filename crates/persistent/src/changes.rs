//! What differs between two maps, without a look at what they share.

use std::{cmp::Ordering, sync::Arc};

use crate::{Map, map::Node};

/// A difference of two maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// Its value in the first map.
    pub before: Option<&'a V>,
    /// Its value in the second map.
    pub after: Option<&'a V>,
}

/// Iterates over the differences of two maps in the order of the keys.
pub struct Changes<'a, K, V> {
    before: Rest<'a, K, V>,
    after: Rest<'a, K, V>,
}

/// What is left of a map, the next part last: whole nodes with their heights above the leaves, and entries.
type Rest<'a, K, V> = Vec<Part<'a, K, V>>;

enum Part<'a, K, V> {
    Node(&'a Arc<Node<K, V>>, usize),
    Entry(&'a (K, V)),
}

/// Replaces the node that comes next by its parts.
fn open<'a, K, V>(rest: &mut Rest<'a, K, V>) {
    let Some(Part::Node(node, height)) = rest.pop() else { return };
    match &**node {
        Node::Leaf(entries) => rest.extend(entries.iter().rev().map(Part::Entry)),
        Node::Inner(children) => {
            rest.extend(children.iter().rev().map(|child| Part::Node(&child.node, height - 1)));
        }
    }
}

fn whole<K, V>(map: &Map<K, V>) -> Rest<'_, K, V> {
    let (mut height, mut node) = (0, &map.root);
    while let Node::Inner(children) = &**node
        && let Some(first) = children.first()
    {
        (height, node) = (height + 1, &first.node);
    }
    vec![Part::Node(&map.root, height)]
}

impl<'a, K: Ord, V: PartialEq> Changes<'a, K, V> {
    pub(crate) fn new(before: &'a Map<K, V>, after: &'a Map<K, V>) -> Self {
        Self { before: whole(before), after: whole(after) }
    }
}

impl<'a, K: Ord, V: PartialEq> Iterator for Changes<'a, K, V> {
    type Item = Change<'a, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        let removed = |(key, value): &'a (K, V)| Change { key, before: Some(value), after: None };
        let added = |(key, value): &'a (K, V)| Change { key, before: None, after: Some(value) };
        loop {
            match (self.before.last(), self.after.last()) {
                // A node that both have: neither differs in it.
                (Some(Part::Node(old, _)), Some(Part::Node(new, _))) if Arc::ptr_eq(old, new) => {
                    self.before.pop();
                    self.after.pop();
                }
                // Nodes of one height are compared, so that shared ones meet.
                (Some(Part::Node(_, old)), Some(Part::Node(_, new))) => {
                    let (old, new) = (*old, *new);
                    if old >= new {
                        open(&mut self.before);
                    }
                    if new >= old {
                        open(&mut self.after);
                    }
                }
                (Some(Part::Node(..)), _) => open(&mut self.before),
                (_, Some(Part::Node(..))) => open(&mut self.after),
                (Some(Part::Entry(old)), Some(Part::Entry(new))) => {
                    let (old, new) = (*old, *new);
                    let order = old.0.cmp(&new.0);
                    if order.is_le() {
                        self.before.pop();
                    }
                    if order.is_ge() {
                        self.after.pop();
                    }
                    match order {
                        Ordering::Less => return Some(removed(old)),
                        Ordering::Greater => return Some(added(new)),
                        Ordering::Equal if old.1 != new.1 => {
                            return Some(Change { key: &new.0, before: Some(&old.1), after: Some(&new.1) });
                        }
                        Ordering::Equal => {}
                    }
                }
                (Some(Part::Entry(old)), None) => {
                    let old = *old;
                    self.before.pop();
                    return Some(removed(old));
                }
                (None, Some(Part::Entry(new))) => {
                    let new = *new;
                    self.after.pop();
                    return Some(added(new));
                }
                (None, None) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Counts how often values are compared.
    #[derive(Clone)]
    struct Counted<'a>(u64, &'a Cell<u64>);

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.1.set(self.1.get() + 1);
            self.0 == other.0
        }
    }

    #[test]
    fn comparing_copies_visits_only_what_differs() {
        let compared = Cell::new(0);
        let before: Map<u64, Counted<'_>> = (0..20_000).map(|key| (2 * key, Counted(key, &compared))).collect();
        let mut after = before.clone();
        assert!(before == after);
        assert_eq!(compared.get(), 0, "they share everything");
        for key in [0, 7_777, 20_000, 39_998] {
            after.insert(key, Counted(u64::MAX, &compared));
        }
        after.remove(&31_000);
        let changed: Vec<_> = Map::changes(&before, &after).map(|change| *change.key).collect();
        assert_eq!(changed, [0, 7_777, 20_000, 31_000, 39_998]);
        assert!(compared.get() < 5 * 2 * 64, "{} values were compared", compared.get());
    }
}
