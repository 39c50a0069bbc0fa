//! The map: a B-tree whose nodes are shared by pointers and copied when a shared one is changed.
//!
//! Invariants: all leaves have the same depth; no node but the root is empty, and none has more than
//! [`FANOUT`] parts; a node's parts are ordered, and a child is found by the first key in it.

use std::{borrow::Borrow, fmt, slice, sync::Arc};

use crate::Changes;

/// Entries of a leaf, or children of an inner node, at most. A change copies so many on each level.
const FANOUT: usize = 32;

/// An ordered map. See the crate's documentation.
pub struct Map<K, V> {
    pub(crate) root: Arc<Node<K, V>>,
    len: usize,
}

#[derive(Clone)]
pub(crate) enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    Inner(Vec<Child<K, V>>),
}

#[derive(Clone)]
pub(crate) struct Child<K, V> {
    /// The first key in it.
    first: K,
    pub(crate) node: Arc<Node<K, V>>,
}

impl<K, V> Map<K, V> {
    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the maps are copies of each other that were not changed since. If not, they may still be equal.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// Every entry, in the order of the keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.iter_from(|_| false)
    }

    /// The entries from the first one on whose key is not `before`, which must hold for a number of first keys
    /// and for none after them.
    pub fn iter_from(&self, before: impl Fn(&K) -> bool) -> Iter<'_, K, V> {
        let mut inner = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let leaf = entries[entries.partition_point(|(key, _)| before(key))..].iter();
                    return Iter { inner, leaf };
                }
                Node::Inner(children) => {
                    let at = children.partition_point(|child| before(&child.first)).saturating_sub(1);
                    inner.push(children[at + 1..].iter());
                    node = &children[at].node;
                }
            }
        }
    }

    /// The last entry whose key is `before`, as for [`Map::iter_from`].
    pub fn last_before(&self, before: impl Fn(&K) -> bool) -> Option<(&K, &V)> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let (key, value) = &entries[entries.partition_point(|(key, _)| before(key)).checked_sub(1)?];
                    return Some((key, value));
                }
                Node::Inner(children) => {
                    node = &children[children.partition_point(|child| before(&child.first)).checked_sub(1)?].node;
                }
            }
        }
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Every value, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> Map<K, V> {
    /// The value of a key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let found = self.last_before(|known| known.borrow() <= key);
        found.filter(|(known, _)| (*known).borrow() == key).map(|(_, value)| value)
    }

    /// Whether the key has a value.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }
}

impl<K: Ord, V: PartialEq> Map<K, V> {
    /// What differs between two maps, in the order of the keys.
    pub fn changes<'a>(before: &'a Self, after: &'a Self) -> Changes<'a, K, V> {
        Changes::new(before, after)
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    /// Sets the value of a key. Returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (before, beside) = insert(&mut self.root, key, value);
        if let Some(beside) = beside {
            let root = std::mem::take(&mut self.root);
            let children = root.first_key().cloned().map(|first| Child { first, node: root });
            self.root = Arc::new(Node::Inner(children.into_iter().chain([beside]).collect()));
        }
        self.len += usize::from(before.is_none());
        before
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.contains_key(key) {
            return None;
        }
        let mut node = Arc::make_mut(&mut self.root);
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
                    return Some(&mut entries[at].1);
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children[at].node);
                }
            }
        }
    }

    /// Removes a key. Returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // Without the key, no node is to be copied.
        if !self.contains_key(key) {
            return None;
        }
        let removed = remove(&mut self.root, key);
        while let Node::Inner(children) = &*self.root
            && let [only] = &children[..]
        {
            self.root = only.node.clone();
        }
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Removes all entries but those that are to be kept. Visits every entry.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let removed: Vec<K> =
            self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone()).collect();
        for key in removed {
            self.remove(&key);
        }
    }
}

impl<K, V> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    fn first_key(&self) -> Option<&K> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key),
            Self::Inner(children) => children.first().map(|child| &child.first),
        }
    }
}

impl<K: Clone, V> Node<K, V> {
    /// The upper half of a node that has too many parts, as its new neighbour.
    fn split(&mut self) -> Option<Child<K, V>> {
        if self.len() <= FANOUT {
            return None;
        }
        let at = self.len() / 2;
        let upper = match self {
            Self::Leaf(entries) => Self::Leaf(entries.split_off(at)),
            Self::Inner(children) => Self::Inner(children.split_off(at)),
        };
        Some(Child { first: upper.first_key()?.clone(), node: Arc::new(upper) })
    }
}

/// The position of the child that has the key, if one has it.
fn child_of<K: Ord, V>(children: &[Child<K, V>], key: &K) -> usize {
    children.partition_point(|child| child.first <= *key).saturating_sub(1)
}

/// Returns the value before, and the new neighbour of the node if it was split.
fn insert<K: Ord + Clone, V: Clone>(node: &mut Arc<Node<K, V>>, key: K, value: V) -> (Option<V>, Option<Child<K, V>>) {
    let node = Arc::make_mut(node);
    let before = match node {
        Node::Leaf(entries) => match entries.binary_search_by(|(known, _)| known.cmp(&key)) {
            Ok(at) => Some(std::mem::replace(&mut entries[at].1, value)),
            Err(at) => {
                entries.insert(at, (key, value));
                None
            }
        },
        Node::Inner(children) => {
            let at = child_of(children, &key);
            if key < children[at].first {
                children[at].first = key.clone();
            }
            let (before, beside) = insert(&mut children[at].node, key, value);
            if let Some(beside) = beside {
                children.insert(at + 1, beside);
            }
            before
        }
    };
    (before, node.split())
}

fn remove<K: Ord + Clone, V: Clone>(node: &mut Arc<Node<K, V>>, key: &K) -> Option<V> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|(known, _)| known.cmp(key)).ok()?;
            Some(entries.remove(at).1)
        }
        Node::Inner(children) => {
            let at = child_of(children, key);
            let child = &mut children[at];
            let removed = remove(&mut child.node, key);
            match child.node.first_key().cloned() {
                None => {
                    children.remove(at);
                }
                Some(first) => {
                    child.first = first;
                    let fits = |pair: &[Child<K, V>]| pair[0].node.len() + pair[1].node.len() <= FANOUT / 2;
                    let from = at.saturating_sub(1);
                    if let Some(small) = children[from..].windows(2).take(2).position(fits) {
                        merge(children, from + small);
                    }
                }
            }
            removed
        }
    }
}

/// Merges a child with the next one.
fn merge<K: Clone, V: Clone>(children: &mut Vec<Child<K, V>>, at: usize) {
    let next = Arc::unwrap_or_clone(children.remove(at + 1).node);
    match (Arc::make_mut(&mut children[at].node), next) {
        (Node::Leaf(entries), Node::Leaf(mut more)) => entries.append(&mut more),
        (Node::Inner(children), Node::Inner(mut more)) => children.append(&mut more),
        _ => unreachable!("all leaves have the same depth"),
    }
}

/// Iterates over entries in the order of their keys.
pub struct Iter<'a, K, V> {
    /// What follows on each level above the leaf.
    inner: Vec<slice::Iter<'a, Child<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let child = loop {
                match self.inner.last_mut()?.next() {
                    Some(child) => break child,
                    None => self.inner.pop(),
                };
            };
            let mut node = &*child.node;
            while let Node::Inner(children) = node {
                let mut children = children.iter();
                let Some(first) = children.next() else { break };
                self.inner.push(children);
                node = &first.node;
            }
            if let Node::Leaf(entries) = node {
                self.leaf = entries.iter();
            }
        }
    }
}

impl<K, V> Default for Node<K, V> {
    fn default() -> Self {
        Self::Leaf(Vec::new())
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { root: Arc::default(), len: 0 }
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && Self::changes(self, other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for Map<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    impl<K: Ord, V> Map<K, V> {
        /// Asserts the invariants, and returns how many nodes there are.
        fn check(&self) -> usize {
            fn visit<K: Ord, V>(node: &Node<K, V>, is_root: bool) -> (usize, usize) {
                assert!(node.len() <= FANOUT && (is_root || node.len() > 0));
                match node {
                    Node::Leaf(entries) => {
                        assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
                        (0, 1)
                    }
                    Node::Inner(children) => {
                        assert!(children.len() > usize::from(is_root));
                        assert!(children.is_sorted_by(|a, b| a.first < b.first));
                        assert!(children.iter().all(|child| child.node.first_key() == Some(&child.first)));
                        let visited: Vec<_> = children.iter().map(|child| visit(&child.node, false)).collect();
                        assert!(visited.iter().all(|(depth, _)| *depth == visited[0].0));
                        (visited[0].0 + 1, 1 + visited.iter().map(|(_, nodes)| nodes).sum::<usize>())
                    }
                }
            }
            assert!(self.keys().is_sorted());
            assert_eq!(self.iter().count(), self.len());
            visit(&self.root, true).1
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16, u8),
        Remove(u16),
        Change(u16, u8),
        /// Removes all keys of a range.
        RemoveRange(u16, u16),
        /// Inserts all keys of a range.
        InsertRange(u16, u16),
        Copy,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let key = 0_u16..400;
        prop_oneof![
            8 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Insert(key, value)),
            6 => key.clone().prop_map(Step::Remove),
            4 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Change(key, value)),
            1 => (key.clone(), 0_u16..200).prop_map(|(from, count)| Step::RemoveRange(from, count)),
            2 => (key, 0_u16..200).prop_map(|(from, count)| Step::InsertRange(from, count)),
            2 => Just(Step::Copy),
        ]
    }

    type Model = BTreeMap<u16, u8>;

    fn take(step: &Step, map: &mut Map<u16, u8>, model: &mut Model) {
        match *step {
            Step::Insert(key, value) => assert_eq!(map.insert(key, value), model.insert(key, value)),
            Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
            Step::Change(key, value) => {
                assert_eq!(
                    map.get_mut(&key).map(|known| *known = value),
                    model.get_mut(&key).map(|known| *known = value)
                );
            }
            Step::RemoveRange(from, count) => {
                map.retain(|key, _| !(from..from + count).contains(key));
                model.retain(|key, _| !(from..from + count).contains(key));
            }
            Step::InsertRange(from, count) => {
                for key in from..from + count {
                    map.insert(key, 7);
                    model.insert(key, 7);
                }
            }
            Step::Copy => {}
        }
    }

    fn entries(map: &Map<u16, u8>) -> Model {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_map_and_its_copies_behave_as_ordered_maps(steps in vec(any_step(), 0..120), bound in 0_u16..420) {
            let (mut map, mut model) = (Map::default(), Model::new());
            let mut copies = Vec::new();
            for step in &steps {
                if matches!(step, Step::Copy) {
                    copies.push((map.clone(), model.clone()));
                }
                take(step, &mut map, &mut model);
                map.check();
            }
            copies.push((map, model));
            for (map, model) in &copies {
                prop_assert_eq!(&entries(map), model);
                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.get(&bound), model.get(&bound));
                let from: Vec<_> = map.iter_from(|key| *key < bound).collect();
                prop_assert_eq!(from, model.range(bound..).collect::<Vec<_>>());
                prop_assert_eq!(map.last_before(|key| *key < bound), model.range(..bound).next_back());
            }
            for ((before, known_before), (after, known_after)) in
                copies.iter().flat_map(|before| copies.iter().map(move |after| (before, after)))
            {
                let found = Map::changes(before, after).map(|change| (*change.key, change.before, change.after));
                let keys = known_before.keys().chain(known_after.keys()).collect::<std::collections::BTreeSet<_>>();
                let differ = keys.into_iter().map(|key| (*key, known_before.get(key), known_after.get(key)));
                let differ = differ.filter(|(_, before, after)| before != after);
                prop_assert_eq!(found.collect::<Vec<_>>(), differ.collect::<Vec<_>>());
                prop_assert_eq!(before == after, known_before == known_after);
            }
        }
    }

    #[test]
    fn nodes_that_become_small_are_merged() {
        let mut map: Map<u64, u64> = (0..20_000).map(|key| (key, key)).collect();
        let full = map.check();
        map.retain(|key, _| key.is_multiple_of(100));
        assert!(map.check() < full / 15, "{} nodes of {full} for a hundredth of the entries", map.check());
        map.retain(|_, _| false);
        assert_eq!((map.check(), map.len()), (1, 0));
    }
}
