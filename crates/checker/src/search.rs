//! The search for an order that explains a history.
//!
//! Wing and Gong (1993): put one operation after the other into the order, each time one that may come next, because no
//! other that remains had returned before it was invoked; go back when none fits. Lowe (2017): remember configurations,
//! and keep calls and returns in one doubly linked list in which an operation is lifted out and put back at constant
//! cost. Operations of unknown outcome have no return: they stand apart, in classes of equal ones, and are used or not.
//!
//! Four rules keep it short, and each leaves an order to be found if there is one. They speak of the shortest order from a
//! configuration on, so that they do not get in each other's way:
//!
//! - what [`Model::commits`] allows is put first and never taken back by itself;
//! - of equal operations of unknown outcome, the one invoked first is used first: swapping two changes nothing;
//! - one of unknown outcome that changes nothing is not used: without it the order is shorter;
//! - a configuration is skipped after one that used fewer operations of unknown outcome (see [`crate::seen`]).
//!
//! Not here: keys. Partitions are the caller's.

use std::{collections::HashMap, hash::Hash};

use crate::{
    model::{Budget, Model, Timed},
    seen::{Fingerprint, Seen, Used, fingerprint, fingerprint_of_number},
};

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An order that explains the history: the operations' places in it. Those that are absent have an unknown outcome
    /// and never took effect.
    Linearizable(Vec<usize>),
    /// There is none.
    NotLinearizable {
        /// The operation whose return no attempt got past, of those that got furthest: what everything up to this return
        /// looks like is what is wrong, or something before it.
        stuck: usize,
    },
    /// The budget was used up first. Not a pass.
    Unknown,
}

/// Searches an order for one history of any model, as one partition. Takes what it uses from the budget's steps.
///
/// A history over independent things should be cut into one per thing first (Herlihy and Wing 1990: linearizability is
/// local). The operations may come in any order. One that returns before it is invoked is taken to return with its call.
pub fn search<M: Model>(model: &mut M, history: &[Timed<M::Operation>], budget: &mut Budget) -> Answer {
    let state = model.initial();
    let mut search = Search::new(model, history, state, budget);
    search.run()
}

/// A link of the list, and its two ends. Calls and returns of known operations lie at `1..=2 * known`.
type Link = usize;
const HEAD: Link = 0;

struct Event {
    /// Index into the history.
    operation: usize,
    /// For a call, where its return is.
    ret: Option<Link>,
}

/// Operations of unknown outcome that are equal.
struct Class {
    /// Indices into the history, by time of invocation.
    members: Vec<usize>,
    /// Of each: it may come next while the first return in the list lies at or behind this link.
    from: Vec<Link>,
}

/// One step of the order, and what takes it back.
struct Frame<S> {
    what: Taken,
    before: S,
    /// It was committed: there is no other choice at its place.
    forced: bool,
}

enum Taken {
    Known(Link),
    Unknown { class: usize, used_before: Used },
}

/// Where to look for the next choice.
#[derive(Clone, Copy)]
enum Cursor {
    Known(Link),
    Unknown(usize),
}

struct Search<'a, M: Model> {
    model: &'a mut M,
    history: &'a [Timed<M::Operation>],
    budget: &'a mut Budget,
    events: Vec<Event>,
    next: Vec<Link>,
    previous: Vec<Link>,
    classes: Vec<Class>,
    /// Known operations that remain.
    left: usize,
    state: M::State,
    known_print: Fingerprint,
    used: Used,
    seen: Seen,
    frames: Vec<Frame<M::State>>,
    /// The furthest return that no choice got past.
    furthest: Link,
    exhausted: bool,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a mut M, history: &'a [Timed<M::Operation>], state: M::State, budget: &'a mut Budget) -> Self {
        let (events, from) = events(history);
        let classes = classes(history, &from);
        let links = events.len();
        Self {
            model,
            history,
            budget,
            left: links / 2,
            events,
            next: (1..=links).chain([HEAD]).collect(),
            previous: [links].into_iter().chain(0..links).collect(),
            used: classes.iter().map(|_| 0).collect(),
            classes,
            state,
            known_print: 0,
            seen: Seen::default(),
            frames: Vec::new(),
            furthest: HEAD,
            exhausted: false,
        }
    }

    fn run(&mut self) -> Answer {
        loop {
            self.commit();
            if self.left == 0 {
                return Answer::Linearizable(self.order());
            }
            let print = self.known_print ^ fingerprint(&self.state);
            let mut cursor = self.seen.insert(print, &self.used).then_some(Cursor::Known(self.next[HEAD]));
            loop {
                if cursor.is_some_and(|cursor| self.advance(cursor)) {
                    break;
                }
                if self.exhausted || self.seen.len() > self.budget.configurations {
                    return Answer::Unknown;
                }
                match self.back() {
                    Some(at) => cursor = Some(at),
                    None => return Answer::NotLinearizable { stuck: self.event(self.furthest).operation },
                }
            }
        }
    }

    /// Puts everything first that may be put first without a loss.
    fn commit(&mut self) {
        let mut link = self.next[HEAD];
        while link != HEAD && self.event(link).ret.is_some() {
            let operation = &self.history[self.event(link).operation].operation;
            let after = if self.model.commits(&self.state, operation) { self.step(link) } else { None };
            let Some(after) = after else {
                link = self.next[link];
                continue;
            };
            // In an unchanged state, what was passed over is as impossible as it was.
            let unchanged = after == self.state;
            let (next, ret) = (self.next[link], self.event(link).ret);
            self.take_known(link, after, true);
            link = match unchanged {
                true if Some(next) == ret => self.next[next],
                true => next,
                false => self.next[HEAD],
            };
        }
    }

    /// Puts the next operation that fits into the order; `false` when none is left at this place.
    fn advance(&mut self, mut cursor: Cursor) -> bool {
        if let Cursor::Known(mut link) = cursor {
            while link != HEAD && self.event(link).ret.is_some() {
                if let Some(after) = self.step(link) {
                    let operation = &self.history[self.event(link).operation].operation;
                    self.model.linearized(operation);
                    let useless = self.model.useless(&self.state, operation, &after);
                    self.model.undone(operation);
                    if !useless {
                        self.take_known(link, after, false);
                        return true;
                    }
                }
                link = self.next[link];
            }
            cursor = Cursor::Unknown(0);
        }
        let mut barrier = self.next[HEAD];
        while self.event(barrier).ret.is_some() {
            barrier = self.next[barrier];
        }
        if let Cursor::Unknown(first) = cursor {
            for class in first..self.classes.len() {
                if self.advance_unknown(class, barrier) {
                    return true;
                }
            }
        }
        self.furthest = self.furthest.max(barrier);
        false
    }

    fn advance_unknown(&mut self, class: usize, barrier: Link) -> bool {
        let used = self.used[class] as usize;
        if self.classes[class].from.get(used).is_none_or(|from| *from > barrier) {
            return false;
        }
        let operation = &self.history[self.classes[class].members[used]].operation;
        if !spend(self.budget, &mut self.exhausted) {
            return false;
        }
        let Some(after) = self.model.step(&self.state, operation) else { return false };
        if after == self.state {
            return false;
        }
        self.model.linearized(operation);
        if self.model.useless(&self.state, operation, &after) {
            self.model.undone(operation);
            return false;
        }
        let mut more: Vec<u32> = self.used.to_vec();
        more[class] += 1;
        let used_before = std::mem::replace(&mut self.used, more.into());
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Unknown { class, used_before }, before, forced: false });
        true
    }

    fn step(&mut self, link: Link) -> Option<M::State> {
        if !spend(self.budget, &mut self.exhausted) {
            return None;
        }
        let operation = &self.history[self.events[link - 1].operation].operation;
        self.model.step(&self.state, operation)
    }

    fn take_known(&mut self, call: Link, after: M::State, forced: bool) {
        let Event { operation, ret } = *self.event(call);
        let ret = ret.expect("only calls are taken");
        for link in [call, ret] {
            let (previous, next) = (self.previous[link], self.next[link]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
        self.left -= 1;
        self.known_print ^= fingerprint_of_number(operation as u64);
        self.model.linearized(&self.history[operation].operation);
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Known(call), before, forced });
    }

    /// Takes back the last choice, and says where to look for the next one.
    fn back(&mut self) -> Option<Cursor> {
        loop {
            let Frame { what, before, forced } = self.frames.pop()?;
            self.state = before;
            let cursor = match what {
                Taken::Known(call) => {
                    self.put_back(call);
                    Cursor::Known(self.next[call])
                }
                Taken::Unknown { class, used_before } => {
                    self.used = used_before;
                    let member = self.classes[class].members[self.used[class] as usize];
                    self.model.undone(&self.history[member].operation);
                    Cursor::Unknown(class + 1)
                }
            };
            if !forced {
                return Some(cursor);
            }
        }
    }

    fn put_back(&mut self, call: Link) {
        let Event { operation, ret } = *self.event(call);
        let ret = ret.expect("only calls are taken");
        for link in [ret, call] {
            let (previous, next) = (self.previous[link], self.next[link]);
            self.next[previous] = link;
            self.previous[next] = link;
        }
        self.left += 1;
        self.known_print ^= fingerprint_of_number(operation as u64);
        self.model.undone(&self.history[operation].operation);
    }

    fn order(&self) -> Vec<usize> {
        let operation = |frame: &Frame<M::State>| match &frame.what {
            Taken::Known(link) => self.event(*link).operation,
            Taken::Unknown { class, used_before } => self.classes[*class].members[used_before[*class] as usize],
        };
        self.frames.iter().map(operation).collect()
    }

    fn event(&self, link: Link) -> &Event {
        &self.events[link - 1]
    }
}

/// Takes one step from the budget, if there is one.
fn spend(budget: &mut Budget, exhausted: &mut bool) -> bool {
    *exhausted |= budget.steps == 0;
    budget.steps = budget.steps.saturating_sub(1);
    !*exhausted
}

/// Calls and returns of the known operations in order of time, calls first where times are equal; and for each operation
/// the link at which its call lies, or would lie.
fn events<T>(history: &[Timed<T>]) -> (Vec<Event>, Vec<Link>) {
    let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * history.len());
    for (index, operation) in history.iter().enumerate() {
        times.push((operation.call, false, index));
        times.extend(operation.ret.map(|ret| (ret.max(operation.call), true, index)));
    }
    times.sort_unstable();
    let mut events: Vec<Event> = Vec::with_capacity(times.len());
    let mut from = vec![HEAD; history.len()];
    for (_, is_return, operation) in times {
        let link = events.len() + 1;
        if is_return {
            events[from[operation] - 1].ret = Some(link);
        } else {
            from[operation] = link;
        }
        if is_return || history[operation].ret.is_some() {
            events.push(Event { operation, ret: None });
        }
    }
    (events, from)
}

fn classes<T: Eq + Hash>(history: &[Timed<T>], from: &[Link]) -> Vec<Class> {
    let mut unknown: Vec<usize> = (0..history.len()).filter(|index| history[*index].ret.is_none()).collect();
    unknown.sort_by_key(|index| (history[*index].call, *index));
    let mut by_operation: HashMap<&T, usize> = HashMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for index in unknown {
        let class = *by_operation.entry(&history[index].operation).or_insert(classes.len());
        if class == classes.len() {
            classes.push(Class { members: Vec::new(), from: Vec::new() });
        }
        classes[class].members.push(index);
        classes[class].from.push(from[index]);
    }
    classes
}
