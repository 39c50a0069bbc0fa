//! The pipeline window: the unanswered requests of one connection, which of them may run, and which reply is
//! sent next.
//!
//! Pure. Invariants: answers are returned in the order of the requests; a request runs only when every
//! earlier one that touches one of its keys has finished, unless both only read; a request that touches
//! everything runs alone. Requests that share no key may run concurrently, in any order.
//!
//! It runs nothing itself and does not limit itself: its owner checks [`Window::len`],
//! [`Window::held_bytes`] and [`Window::expected_bytes`] before it pushes.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// The sequence number of a request within its connection.
pub(crate) type Ordinal = u64;

/// Whether a request changes what it touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The keys that a request touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Footprint {
    Key(Bytes, Access),
    Keys(Vec<Bytes>, Access),
    Everything,
}

impl Footprint {
    fn keys(&self) -> &[Bytes] {
        match self {
            Self::Key(key, _) => std::slice::from_ref(key),
            Self::Keys(keys, _) => keys,
            Self::Everything => &[],
        }
    }

    fn access(&self) -> Access {
        match self {
            Self::Key(_, access) | Self::Keys(_, access) => *access,
            Self::Everything => Access::Write,
        }
    }

    /// Whether both are writes of the same single key.
    fn rewrites(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(one, Access::Write), Self::Key(two, Access::Write)) => one == two,
            _ => false,
        }
    }
}

/// The unanswered requests of a connection, with their work (`W`) and their answers (`A`).
#[derive(Debug)]
pub(crate) struct Window<W, A> {
    slots: VecDeque<Slot<W, A>>,
    /// Ordinal of the first slot.
    first: Ordinal,
    /// Which unfinished requests touch a key.
    keys: HashMap<Bytes, KeyUsers>,
    /// The last unfinished request that touches everything.
    barrier: Option<Ordinal>,
    ready: VecDeque<Ordinal>,
    held_bytes: usize,
    expected_bytes: usize,
}

#[derive(Debug)]
struct Slot<W, A> {
    state: State<W, A>,
    footprint: Option<Footprint>,
    /// Unfinished requests that must finish first.
    waits_for: usize,
    /// Requests that wait for this one.
    blocks: Vec<Ordinal>,
    bytes: usize,
    /// Bytes of the answer, as far as they are only expected.
    expected_bytes: usize,
}

#[derive(Debug)]
enum State<W, A> {
    Waiting(W),
    Running,
    Done(A),
}

#[derive(Debug, Default)]
struct KeyUsers {
    /// The last writer.
    writer: Option<Ordinal>,
    /// Readers after that writer.
    readers: Vec<Ordinal>,
}

impl<W, A> Default for Window<W, A> {
    fn default() -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            keys: HashMap::new(),
            barrier: None,
            ready: VecDeque::new(),
            held_bytes: 0,
            expected_bytes: 0,
        }
    }
}

impl<W, A> Window<W, A> {
    /// Requests whose answers have not been taken.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The ordinal of the request whose answer is taken next.
    pub(crate) fn first(&self) -> Ordinal {
        self.first
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of unfinished requests and of answers not yet taken.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Bytes of answers that are only expected.
    pub(crate) fn expected_bytes(&self) -> usize {
        self.expected_bytes
    }

    /// Adds a request that takes `bytes`, and whose answer will take about `expected_bytes`.
    pub(crate) fn push(&mut self, footprint: Footprint, work: W, bytes: usize, expected_bytes: usize) {
        let ordinal = self.first + self.slots.len() as u64;
        let mut waits_for = 0;
        for before in self.predecessors(ordinal, &footprint) {
            if let Some(slot) = self.slot(before) {
                slot.blocks.push(ordinal);
                waits_for += 1;
            }
        }
        if footprint == Footprint::Everything {
            self.barrier = Some(ordinal);
        }
        if waits_for == 0 {
            self.ready.push_back(ordinal);
        }
        let footprint = Some(footprint);
        let (state, blocks) = (State::Waiting(work), Vec::new());
        self.slots.push_back(Slot { state, footprint, waits_for, blocks, bytes, expected_bytes });
        self.held_bytes += bytes;
        self.expected_bytes += expected_bytes;
    }

    /// Adds a request that touches no key and is already answered.
    pub(crate) fn push_done(&mut self, answer: A, bytes: usize) {
        let state = State::Done(answer);
        let slot = Slot { state, footprint: None, waits_for: 0, blocks: Vec::new(), bytes, expected_bytes: 0 };
        self.slots.push_back(slot);
        self.held_bytes += bytes;
    }

    /// Takes a request that may run now.
    pub(crate) fn take_ready(&mut self) -> Option<(Ordinal, W)> {
        let ordinal = self.ready.pop_front()?;
        let work = self.start(ordinal)?;
        Some((ordinal, work))
    }

    /// Takes the next write of the same single key, if it waits only for `ordinal` and `accepts` its work.
    /// The caller must run it directly after that request.
    pub(crate) fn take_follower(&mut self, ordinal: Ordinal, accepts: impl Fn(&W) -> bool) -> Option<(Ordinal, W)> {
        let slot = self.slot(ordinal)?;
        let footprint = slot.footprint.clone()?;
        // A writer's direct successors on its key are either readers or one writer.
        let next = *slot.blocks.first()?;
        let follower = self.slot(next)?;
        let fits = follower.waits_for == 1 && follower.footprint.as_ref().is_some_and(|next| footprint.rewrites(next));
        if !fits || !matches!(&follower.state, State::Waiting(work) if accepts(work)) {
            return None;
        }
        let work = self.start(next)?;
        Some((next, work))
    }

    /// Marks a taken request as finished. `bytes` is the size of its answer.
    pub(crate) fn finish(&mut self, ordinal: Ordinal, answer: A, bytes: usize) {
        let Some(slot) = self.slot(ordinal) else { return };
        slot.state = State::Done(answer);
        let freed = std::mem::replace(&mut slot.bytes, bytes);
        let came = std::mem::take(&mut slot.expected_bytes);
        let blocks = std::mem::take(&mut slot.blocks);
        let footprint = slot.footprint.take();
        self.held_bytes = self.held_bytes - freed + bytes;
        self.expected_bytes -= came;
        for key in footprint.iter().flat_map(Footprint::keys) {
            self.release(key, ordinal);
        }
        if self.barrier == Some(ordinal) {
            self.barrier = None;
        }
        for next in blocks {
            let Some(slot) = self.slot(next) else { continue };
            slot.waits_for -= 1;
            if slot.waits_for == 0 && matches!(slot.state, State::Waiting(_)) {
                self.ready.push_back(next);
            }
        }
    }

    /// Takes the answer to the oldest request, if it has finished.
    pub(crate) fn pop(&mut self) -> Option<A> {
        let slot = self.slots.pop_front()?;
        match slot.state {
            State::Done(answer) => {
                self.first += 1;
                self.held_bytes -= slot.bytes;
                Some(answer)
            }
            _ => {
                self.slots.push_front(slot);
                None
            }
        }
    }

    fn slot(&mut self, ordinal: Ordinal) -> Option<&mut Slot<W, A>> {
        let at = usize::try_from(ordinal.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(at)
    }

    fn start(&mut self, ordinal: Ordinal) -> Option<W> {
        let slot = self.slot(ordinal)?;
        match std::mem::replace(&mut slot.state, State::Running) {
            State::Waiting(work) => Some(work),
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// Unfinished requests that must finish before this one, each once. Registers this one as a user of its
    /// keys.
    fn predecessors(&mut self, ordinal: Ordinal, footprint: &Footprint) -> Vec<Ordinal> {
        if *footprint == Footprint::Everything {
            let unfinished = |(_, slot): &(Ordinal, &Slot<W, A>)| !matches!(slot.state, State::Done(_));
            return (self.first..).zip(&self.slots).filter(unfinished).map(|(before, _)| before).collect();
        }
        let mut before: Vec<_> = self.barrier.into_iter().collect();
        for key in footprint.keys() {
            if !self.keys.contains_key(key) {
                self.keys.insert(key.clone(), KeyUsers::default());
            }
            let Some(users) = self.keys.get_mut(key) else { continue };
            match footprint.access() {
                Access::Read => {
                    before.extend(users.writer);
                    users.readers.push(ordinal);
                }
                Access::Write if users.readers.is_empty() => before.extend(users.writer.replace(ordinal)),
                Access::Write => {
                    before.append(&mut users.readers);
                    users.writer = Some(ordinal);
                }
            }
        }
        before.sort_unstable();
        before.dedup();
        // A request may name a key twice.
        before.retain(|before| *before != ordinal);
        before
    }

    fn release(&mut self, key: &Bytes, ordinal: Ordinal) {
        let Some(users) = self.keys.get_mut(key) else { return };
        users.writer = users.writer.filter(|writer| *writer != ordinal);
        users.readers.retain(|reader| *reader != ordinal);
        if users.writer.is_none() && users.readers.is_empty() {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: &'static str, access: Access) -> Footprint {
        Footprint::Key(Bytes::from_static(key.as_bytes()), access)
    }

    fn read(name: &'static str) -> Footprint {
        key(name, Access::Read)
    }

    fn write(name: &'static str) -> Footprint {
        key(name, Access::Write)
    }

    fn keys(names: &[&'static str], access: Access) -> Footprint {
        Footprint::Keys(names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect(), access)
    }

    fn window(footprints: impl IntoIterator<Item = Footprint>) -> Window<(), Ordinal> {
        let mut window = Window::default();
        for footprint in footprints {
            window.push(footprint, (), 10, 5);
        }
        window
    }

    fn ready(window: &mut Window<(), Ordinal>) -> Vec<Ordinal> {
        std::iter::from_fn(|| window.take_ready()).map(|(ordinal, ())| ordinal).collect()
    }

    #[test]
    fn answers_are_returned_in_the_order_of_requests() {
        let mut window = window([write("a"), write("b"), write("c")]);
        window.push_done(3, 5);
        assert_eq!(ready(&mut window), [0, 1, 2]);
        window.finish(2, 2, 1);
        window.finish(1, 1, 1);
        assert_eq!(window.pop(), None);
        window.finish(0, 0, 1);
        let answers: Vec<_> = std::iter::from_fn(|| window.pop()).collect();
        assert_eq!(answers, [0, 1, 2, 3]);
        assert!(window.is_empty() && window.held_bytes() + window.expected_bytes() == 0 && window.keys.is_empty());
    }

    #[test]
    fn writes_of_one_key_run_one_after_another() {
        let mut window = window([write("a"), write("a"), write("b")]);
        assert_eq!(ready(&mut window), [0, 2]);
        window.finish(2, 2, 0);
        assert!(ready(&mut window).is_empty());
        window.finish(0, 0, 0);
        assert_eq!(ready(&mut window), [1]);
    }

    #[test]
    fn reads_run_together_between_writes() {
        let mut window = window([write("a"), read("a"), read("a"), write("a"), read("a")]);
        assert_eq!(ready(&mut window), [0]);
        window.finish(0, 0, 0);
        assert_eq!(ready(&mut window), [1, 2]);
        window.finish(2, 2, 0);
        assert!(ready(&mut window).is_empty());
        window.finish(1, 1, 0);
        assert_eq!(ready(&mut window), [3]);
        window.finish(3, 3, 0);
        assert_eq!(ready(&mut window), [4]);
    }

    #[test]
    fn a_request_of_many_keys_waits_for_all_and_a_repeated_key_does_not_block_it() {
        let both = keys(&["a", "b", "a"], Access::Write);
        let mut window = window([write("a"), write("b"), both, write("b")]);
        assert_eq!(ready(&mut window), [0, 1]);
        window.finish(0, 0, 0);
        assert!(ready(&mut window).is_empty());
        window.finish(1, 1, 0);
        assert_eq!(ready(&mut window), [2]);
        window.finish(2, 2, 0);
        assert_eq!(ready(&mut window), [3]);
    }

    #[test]
    fn a_request_that_touches_everything_runs_alone() {
        let everything = || Footprint::Everything;
        let mut window = window([read("a"), everything(), read("a"), everything()]);
        assert_eq!(ready(&mut window), [0]);
        for ordinal in 0..4 {
            window.finish(ordinal, ordinal, 0);
            let expected: &[Ordinal] = if ordinal < 3 { &[ordinal + 1] } else { &[] };
            assert_eq!(ready(&mut window), expected);
        }
    }

    #[test]
    fn consecutive_writes_of_a_key_can_be_taken_together() {
        let mut window = window([write("a"), write("b"), write("a"), write("a"), read("a"), write("a")]);
        assert_eq!(window.take_ready(), Some((0, ())));
        assert_eq!(window.take_follower(0, |()| false), None);
        assert_eq!(window.take_follower(0, |()| true), Some((2, ())));
        assert_eq!(window.take_follower(2, |()| true), Some((3, ())));
        assert_eq!(window.take_follower(3, |()| true), None, "a read comes first");
        assert_eq!(ready(&mut window), [1]);
        for ordinal in [0, 3, 2] {
            window.finish(ordinal, ordinal, 0);
        }
        assert_eq!(ready(&mut window), [4]);
    }

    fn footprint() -> impl Strategy<Value = Footprint> {
        let name = || proptest::sample::select(vec!["a", "b", "c"]);
        let access = || proptest::sample::select(vec![Access::Read, Access::Write]);
        prop_oneof![
            6 => (name(), access()).prop_map(|(name, access)| key(name, access)),
            2 => (proptest::collection::vec(name(), 1..4), access()).prop_map(|(names, access)| keys(&names, access)),
            1 => Just(Footprint::Everything),
        ]
    }

    fn conflict(one: &Footprint, two: &Footprint) -> bool {
        let share = one.keys().iter().any(|key| two.keys().contains(key));
        let all = *one == Footprint::Everything || *two == Footprint::Everything;
        all || share && (one.access() == Access::Write || two.access() == Access::Write)
    }

    proptest! {
        /// Requests finish in a random order. A request that starts must not conflict with an earlier
        /// unfinished one; in the end, all have run and the window is empty.
        #[test]
        fn conflicting_requests_keep_their_order(
            footprints in proptest::collection::vec(footprint(), 0..20),
            picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 40),
        ) {
            let mut window = Window::<(), Ordinal>::default();
            let mut waiting = footprints.clone().into_iter();
            let mut running: Vec<Ordinal> = Vec::new();
            let mut finished = vec![false; footprints.len()];
            let mut answers = Vec::new();
            let mut picks = picks.iter().cycle();
            while answers.len() < footprints.len() {
                let (pick, pushes) = picks.next().unwrap();
                if (*pushes || running.is_empty()) && let Some(footprint) = waiting.next() {
                    window.push(footprint, (), 3, 7);
                }
                for ordinal in ready(&mut window) {
                    for before in 0..ordinal as usize {
                        prop_assert!(finished[before] || !conflict(&footprints[before], &footprints[ordinal as usize]));
                    }
                    running.push(ordinal);
                }
                prop_assert!(!running.is_empty(), "nothing runs, and requests wait");
                let ordinal = running.swap_remove(pick.index(running.len()));
                finished[ordinal as usize] = true;
                window.finish(ordinal, ordinal, 1);
                answers.extend(std::iter::from_fn(|| window.pop()));
            }
            prop_assert!(answers.iter().copied().eq(0..footprints.len() as u64), "{answers:?}");
            prop_assert!(window.keys.is_empty() && window.held_bytes() + window.expected_bytes() == 0 && window.barrier.is_none());
        }
    }
}
