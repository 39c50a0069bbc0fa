//! The search for an order that explains a history.
//!
//! Wing and Gong (1993): extend the order by one operation at a time that may come next, because no other
//! remaining operation returned before it was invoked; backtrack when none fits. Lowe (2017): memoize
//! configurations, and keep calls and returns in one list from which an operation is removed and reinserted
//! at constant cost. Operations of unknown outcome have no return: they are kept apart, in classes of equal
//! ones, and may be used or not.
//!
//! Four rules prune the search, and each preserves an order if there is one. All of them are about the
//! shortest order from a configuration on, so that they can be combined:
//!
//! - an operation that [`Model::commits`] allows is placed first, and backtracking never tries an alternative
//!   to it;
//! - of equal operations of unknown outcome, the one invoked first is used first: swapping two changes
//!   nothing;
//! - one of unknown outcome that changes nothing is not used: without it the order is shorter;
//! - a configuration is skipped if an earlier one used fewer operations of unknown outcome (see
//!   [`crate::seen`]).
//!
//! Partitioning by key is up to the caller.

use std::{collections::HashMap, hash::Hash};

use crate::{
    list::{HEAD, Link, List},
    model::{Budget, Model, Timed},
    seen::{Fingerprint, Seen, Used, fingerprint, fingerprint_of_number},
};

/// The result of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// An order that explains the history, as indexes into it. Absent operations have an unknown outcome and
    /// never took effect.
    Linearizable(Vec<usize>),
    /// There is none.
    NotLinearizable {
        /// The operation at whose return the attempts that got furthest failed: the cause is at or before
        /// this return.
        stuck: usize,
    },
    /// The budget was used up first. Not a pass.
    Unknown,
}

/// Searches for an order of a history of any model, as one partition. Deducts the steps it takes from the
/// budget.
///
/// A history over independent objects should be split into one per object first (Herlihy and Wing 1990:
/// linearizability is local). The operations may be in any order. One that returns before it is invoked is
/// treated as returning with its call.
pub fn search<M: Model>(model: &mut M, history: &[Timed<M::Operation>], budget: &mut Budget) -> Answer {
    let state = model.initial();
    let mut search = Search::new(model, history, state, budget);
    let answer = search.run();
    // Undoes everything, so that the model can be used again.
    while search.back().is_some() {}
    answer
}

struct Event {
    /// Index into the history.
    operation: usize,
    /// For a call: the link of its return.
    ret: Option<Link>,
}

/// Operations of unknown outcome that are equal.
struct Class {
    /// Indexes into the history, by time of invocation.
    members: Vec<usize>,
    /// For each member: it may come next while the first return in the list is at or after this link.
    from: Vec<Link>,
}

/// One step of the order, with the state to undo it.
struct Frame<S> {
    what: Taken,
    before: S,
    choice: Choice,
}

/// Whether backtracking tries alternatives to a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Free,
    /// Committed by the model: no alternatives.
    Forced,
}

enum Taken {
    /// The call of a known operation.
    Known(Link),
    /// A member of the class at this link (from 1).
    Unknown { link: Link, used_before: Used },
}

/// The position from which the next candidate is searched.
#[derive(Clone, Copy)]
enum Cursor {
    Known(Link),
    Unknown(Link),
}

struct Search<'a, M: Model> {
    model: &'a mut M,
    history: &'a [Timed<M::Operation>],
    budget: &'a mut Budget,
    events: Vec<Event>,
    /// Calls and returns of known operations that remain.
    list: List,
    classes: Vec<Class>,
    /// Classes with unused members, in order of their first invocation.
    live: List,
    /// Known operations that remain.
    left: usize,
    state: M::State,
    known_print: Fingerprint,
    used: Used,
    seen: Seen,
    frames: Vec<Frame<M::State>>,
    /// The last return at which a search got stuck.
    furthest: Link,
    exhausted: bool,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a mut M, history: &'a [Timed<M::Operation>], state: M::State, budget: &'a mut Budget) -> Self {
        let (events, from) = events(history);
        let classes = classes(history, &from);
        Self {
            model,
            history,
            budget,
            left: events.len() / 2,
            list: List::new(events.len()),
            events,
            used: classes.iter().map(|_| 0).collect(),
            live: List::new(classes.len()),
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
            while self.commit() {}
            if self.left == 0 {
                return Answer::Linearizable(self.order());
            }
            let print = self.known_print ^ fingerprint(&self.state);
            let mut cursor = self.seen.insert(print, &self.used).then_some(Cursor::Known(self.list.after(HEAD)));
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

    /// Places operations that the model commits; returns whether there was one.
    fn commit(&mut self) -> bool {
        let Some(barrier) = self.barrier() else { return false };
        let horizon = self.returned_at(barrier);
        let mut committed = false;
        let mut link = self.list.after(HEAD);
        while link != barrier && self.spend() {
            let operation = &self.history[self.event(link).operation].operation;
            let after = if self.model.commits(&self.state, operation, horizon) { self.step(link) } else { None };
            let Some(after) = after else {
                link = self.list.after(link);
                continue;
            };
            committed = true;
            let (next, ret, unchanged) = (self.list.after(link), self.event(link).ret, after == self.state);
            self.take_known(link, after, Choice::Forced);
            // The horizon moves, or an operation that was skipped may have become possible.
            if ret == Some(barrier) || !unchanged {
                return true;
            }
            link = next;
            if ret == Some(next) {
                link = self.list.after(next);
            }
        }
        committed || self.commit_unknown(barrier, horizon)
    }

    fn commit_unknown(&mut self, barrier: Link, horizon: u64) -> bool {
        let mut link = self.live.after(HEAD);
        while let Some(member) = self.next_unknown(&mut link, barrier) {
            let operation = &self.history[member].operation;
            if self.model.commits(&self.state, operation, horizon)
                && let Some(after) = self.model.step(&self.state, operation)
                && after != self.state
                && self.spend()
            {
                self.take_unknown(link, after, Choice::Forced);
                return true;
            }
            link = self.live.after(link);
        }
        false
    }

    /// Places the next operation that fits; `false` when none is left at this position.
    fn advance(&mut self, mut cursor: Cursor) -> bool {
        if let Cursor::Known(mut link) = cursor {
            while link != HEAD && self.event(link).ret.is_some() {
                if let Some(after) = self.step(link)
                    && !self.is_useless(self.event(link).operation, &after)
                {
                    self.take_known(link, after, Choice::Free);
                    return true;
                }
                link = self.list.after(link);
            }
            cursor = Cursor::Unknown(self.live.after(HEAD));
        }
        let Some(barrier) = self.barrier() else { return false };
        if let Cursor::Unknown(mut link) = cursor {
            while let Some(member) = self.next_unknown(&mut link, barrier) {
                if self.spend()
                    && let Some(after) = self.model.step(&self.state, &self.history[member].operation)
                    && after != self.state
                    && !self.is_useless(member, &after)
                {
                    self.take_unknown(link, after, Choice::Free);
                    return true;
                }
                link = self.live.after(link);
            }
        }
        self.furthest = self.furthest.max(barrier);
        false
    }

    /// The first return in the list: operations invoked after it cannot come next.
    fn barrier(&self) -> Option<Link> {
        let mut link = self.list.after(HEAD);
        while link != HEAD && self.event(link).ret.is_some() {
            link = self.list.after(link);
        }
        (link != HEAD).then_some(link)
    }

    /// The operation of the first class from `link` on that may come next; moves `link` to that class.
    fn next_unknown(&self, link: &mut Link, barrier: Link) -> Option<usize> {
        while *link != HEAD && self.classes[*link - 1].from[0] <= barrier {
            let class = &self.classes[*link - 1];
            let used = self.used[*link - 1] as usize;
            if class.from[used] <= barrier {
                return Some(class.members[used]);
            }
            *link = self.live.after(*link);
        }
        None
    }

    fn step(&mut self, link: Link) -> Option<M::State> {
        if !self.spend() {
            return None;
        }
        let operation = &self.history[self.event(link).operation].operation;
        self.model.step(&self.state, operation)
    }

    fn is_useless(&mut self, operation: usize, after: &M::State) -> bool {
        let operation = &self.history[operation].operation;
        self.model.linearized(operation);
        let useless = self.model.useless(&self.state, operation, after);
        self.model.undone(operation);
        useless
    }

    fn take_known(&mut self, call: Link, after: M::State, choice: Choice) {
        let Event { operation, ret } = *self.event(call);
        self.list.remove(call);
        self.list.remove(ret.expect("only calls are taken"));
        self.left -= 1;
        self.known_print ^= fingerprint_of_number(operation as u64);
        self.model.linearized(&self.history[operation].operation);
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Known(call), before, choice });
    }

    fn take_unknown(&mut self, link: Link, after: M::State, choice: Choice) {
        let class = &self.classes[link - 1];
        let mut more: Vec<u32> = self.used.to_vec();
        self.model.linearized(&self.history[class.members[more[link - 1] as usize]].operation);
        more[link - 1] += 1;
        if more[link - 1] as usize == class.members.len() {
            self.live.remove(link);
        }
        let used_before = std::mem::replace(&mut self.used, more.into());
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Unknown { link, used_before }, before, choice });
    }

    /// Undoes the last free step; returns where to search for an alternative.
    fn back(&mut self) -> Option<Cursor> {
        loop {
            let Frame { what, before, choice } = self.frames.pop()?;
            self.state = before;
            let cursor = match what {
                Taken::Known(call) => {
                    self.put_back(call);
                    Cursor::Known(self.list.after(call))
                }
                Taken::Unknown { link, used_before } => {
                    let class = &self.classes[link - 1];
                    if self.used[link - 1] as usize == class.members.len() {
                        self.live.put_back(link);
                    }
                    self.used = used_before;
                    self.model.undone(&self.history[class.members[self.used[link - 1] as usize]].operation);
                    Cursor::Unknown(self.live.after(link))
                }
            };
            if choice == Choice::Free {
                return Some(cursor);
            }
        }
    }

    fn put_back(&mut self, call: Link) {
        let Event { operation, ret } = *self.event(call);
        self.list.put_back(ret.expect("only calls are taken"));
        self.list.put_back(call);
        self.left += 1;
        self.known_print ^= fingerprint_of_number(operation as u64);
        self.model.undone(&self.history[operation].operation);
    }

    fn order(&self) -> Vec<usize> {
        let operation = |frame: &Frame<M::State>| match &frame.what {
            Taken::Known(call) => self.event(*call).operation,
            Taken::Unknown { link, used_before } => self.classes[*link - 1].members[used_before[*link - 1] as usize],
        };
        self.frames.iter().map(operation).collect()
    }

    fn event(&self, link: Link) -> &Event {
        &self.events[link - 1]
    }

    fn returned_at(&self, ret: Link) -> u64 {
        let operation = &self.history[self.event(ret).operation];
        operation.ret.unwrap_or(operation.call).max(operation.call)
    }

    /// Deducts one step from the budget; `false` when it is used up.
    fn spend(&mut self) -> bool {
        self.exhausted |= self.budget.steps == 0;
        self.budget.steps = self.budget.steps.saturating_sub(1);
        !self.exhausted
    }
}

/// Calls and returns of the known operations in order of time, calls first at equal times; and for each
/// operation the link of its call, or where it would be.
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
