//! The search for an order that explains a history.
//!
//! Wing and Gong (1993): put one operation after the other into the order, each time one that may come next, because no
//! other that remains had returned before it was invoked; go back when none fits. Lowe (2017): remember configurations,
//! and keep calls and returns in one list from which an operation is lifted and put back at constant cost. Operations of unknown outcome have no return: they stand apart, in classes of equal ones, and are used or not.
//!
//! These rules keep it short, and none loses the last order that there is:
//!
//! 1. What [`Model::commits`] allows is put first and never taken back by itself.
//! 2. Only what is linked to the operation that returns first is tried next (see `nearby`): a persistent set, as
//!    partial-order reduction has it (Godefroid 1996).
//! 3. Of equal operations of unknown outcome, the one invoked first is used first.
//! 4. One of unknown outcome that changes nothing, or is [`Model::useless`], is not used.
//! 5. Right after one of unknown outcome comes nothing that overwrites it, and no known one that does not touch what it did.
//! 6. A configuration is skipped after one that used fewer operations of unknown outcome (see [`crate::seen`]).
//!
//! Proof. Say that the search ended without success, although an order completes some of the configurations that it looked
//! at (the first one, in particular). Of these take one V with the fewest known operations left, and then such a V and a
//! completion π that have the fewest operations of unknown outcome in π among the linked (2) before the first known linked one,
//! and then the fewest used in V. Not linked ones come later in π just as well, so let π begin with a linked one, x. If
//! x is known, it was tried after V and led to a completable configuration with fewer known ones left, unless rule
//! 5 forbade it for a u that V just used: then the configuration before u can be completed by π, without u or with u right
//! after x, and has used fewer. If x is of unknown outcome, it was tried, unless π without x completes V as well (4) or, after
//! swapping equal ones (3), or the configuration before u can be completed by π (5). It led to a configuration, or to one
//! that used fewer and is completed alike (6), with one operation less before the first known linked one. Either way V and
//! π were not the fewest. What is committed (1) on the way only shortens π.
//!
//! Not here: keys. Partitions are the caller's.

use std::{collections::HashMap, hash::Hash};

use crate::{
    list::{HEAD, Link, List},
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
    let answer = search.run();
    // The model may be searched again.
    while search.back().is_some() {}
    answer
}

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
    /// How many of them are in the order.
    used: usize,
    /// The bit of the first of them among those that are in the order. The others follow.
    bit: usize,
    footprint: u64,
    /// Of each: it may come next while the first return in the list lies at or behind this link.
    from: Vec<Link>,
}

/// One step of the order, and what takes it back.
struct Frame<S> {
    what: Taken,
    before: S,
    choice: Choice,
}

/// Whether something else can come at a place of the order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Free,
    /// It was committed.
    Forced,
}

enum Taken {
    /// The call of a known operation.
    Known(Link),
    /// A class, from 1.
    Unknown { link: Link, member: usize, used_before: Used },
}

/// Where to look for the next choice.
#[derive(Clone, Copy)]
enum Cursor {
    Known(Link),
    Unknown(Link),
}

struct Search<'a, M: Model> {
    model: &'a mut M,
    history: &'a [Timed<M::Operation>],
    budget: &'a mut Budget,
    /// By operation.
    footprints: Vec<u64>,
    all_footprints: u64,
    events: Vec<Event>,
    /// Calls and returns of known operations that remain.
    list: List,
    classes: Vec<Class>,
    /// Classes, in order of their first invocation, of which not all are used.
    live: List,
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
        let footprints: Vec<u64> = history.iter().map(|operation| model.footprint(&operation.operation)).collect();
        let classes = classes(history, &from, &footprints);
        Self {
            all_footprints: footprints.iter().fold(0, |all, footprint| all | footprint),
            footprints,
            model,
            history,
            budget,
            left: events.len() / 2,
            list: List::new(events.len()),
            used: vec![0; (history.len() - events.len() / 2).div_ceil(64)].into(),
            events,
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
            let mut work = 0;
            let new = self.seen.insert(print, &self.used, &mut work);
            self.spend(work);
            let mut cursor = new.then_some(Cursor::Known(self.list.after(HEAD)));
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

    /// Puts one operation first that may be put first without a loss, and those that can follow it at once.
    fn commit(&mut self) -> bool {
        let Some(barrier) = self.barrier() else { return false };
        let horizon = self.returned_at(barrier);
        let mut committed = false;
        let mut link = self.list.after(HEAD);
        while link != barrier && self.spend(1) {
            let operation = &self.history[self.event(link).operation].operation;
            let after = if self.model.commits(&self.state, operation, horizon) { self.step(link) } else { None };
            let Some(after) = after else {
                link = self.list.after(link);
                continue;
            };
            committed = true;
            let (next, ret, unchanged) = (self.list.after(link), self.event(link).ret, after == self.state);
            self.take_known(link, after, Choice::Forced);
            // The horizon moves, or what was passed over may have become possible.
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
            if self.spend(1)
                && self.model.commits(&self.state, operation, horizon)
                && let Some(after) = self.model.step(&self.state, operation)
                && after != self.state
            {
                self.take_unknown(link, after, Choice::Forced);
                return true;
            }
            link = self.live.after(link);
        }
        false
    }

    /// Puts the next operation that fits into the order; `false` when none is left at this place.
    fn advance(&mut self, mut cursor: Cursor) -> bool {
        let Some(barrier) = self.barrier() else { return false };
        let nearby = self.nearby(barrier);
        let fresh = self.fresh();
        if let Cursor::Known(mut link) = cursor {
            while link != HEAD && self.event(link).ret.is_some() {
                let operation = self.event(link).operation;
                if self.footprints[operation] & nearby != 0
                    && fresh.is_none_or(|fresh| self.needs(operation, fresh))
                    && let Some(after) = self.step(link)
                    && !self.is_useless(operation, &after)
                {
                    self.take_known(link, after, Choice::Free);
                    return true;
                }
                link = self.list.after(link);
            }
            cursor = Cursor::Unknown(self.live.after(HEAD));
        }
        if let Cursor::Unknown(mut link) = cursor {
            while let Some(member) = self.next_unknown(&mut link, barrier) {
                if self.footprints[member] & nearby != 0
                    && fresh.is_none_or(|fresh| !self.overwrites(member, fresh))
                    && self.spend(1)
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

    /// The footprint of the operation that returns at the barrier, and of all that may come next and are linked to it by
    /// others that may come next. One of these comes first in some order: before the barrier's operation come only such
    /// that may come next, and those that are not linked to it can as well come after it.
    ///
    /// Depends on nothing but which known operations remain: those of unknown outcome count whether they were used or not.
    fn nearby(&mut self, barrier: Link) -> u64 {
        let mut nearby = self.footprints[self.event(barrier).operation];
        while nearby != self.all_footprints {
            let before = nearby;
            let mut add = |footprint: u64| nearby |= if footprint & nearby != 0 { footprint } else { 0 };
            let mut link = self.list.after(HEAD);
            while link != barrier {
                add(self.footprints[self.event(link).operation]);
                link = self.list.after(link);
            }
            let classes = self.classes.iter().take_while(|class| class.from[0] <= barrier);
            let looked_at = classes.map(|class| add(class.footprint)).count();
            self.spend(looked_at as u64);
            if nearby == before {
                break;
            }
        }
        nearby
    }

    /// The operation of unknown outcome that was chosen last, if nothing was put into the order since.
    fn fresh(&self) -> Option<usize> {
        match self.frames.last()? {
            Frame { what: Taken::Unknown { member, .. }, choice: Choice::Free, .. } => Some(*member),
            _ => None,
        }
    }

    /// Whether a known operation may come right after this one of unknown outcome: not when the latter would come as well
    /// after it, or not at all.
    fn needs(&self, known: usize, fresh: usize) -> bool {
        self.footprints[known] & self.footprints[fresh] != 0 && !self.overwrites(known, fresh)
    }

    fn overwrites(&self, second: usize, first: usize) -> bool {
        self.model.overwrites(&self.history[second].operation, &self.history[first].operation)
    }

    /// The first return in the list: what was invoked after it cannot come next.
    fn barrier(&self) -> Option<Link> {
        let mut link = self.list.after(HEAD);
        while link != HEAD && self.event(link).ret.is_some() {
            link = self.list.after(link);
        }
        (link != HEAD).then_some(link)
    }

    /// The operation of the first class from `link` on that may come next, which is then at `link`.
    fn next_unknown(&self, link: &mut Link, barrier: Link) -> Option<usize> {
        while *link != HEAD && self.classes[*link - 1].from[0] <= barrier {
            let class = &self.classes[*link - 1];
            if class.from[class.used] <= barrier {
                return Some(class.members[class.used]);
            }
            *link = self.live.after(*link);
        }
        None
    }

    fn step(&mut self, link: Link) -> Option<M::State> {
        if !self.spend(1) {
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
        self.list.lift(call);
        self.list.lift(ret.expect("only calls are taken"));
        self.left -= 1;
        self.known_print ^= fingerprint_of_number(operation as u64);
        self.model.linearized(&self.history[operation].operation);
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Known(call), before, choice });
    }

    fn take_unknown(&mut self, link: Link, after: M::State, choice: Choice) {
        let class = &mut self.classes[link - 1];
        let (member, bit) = (class.members[class.used], class.bit + class.used);
        class.used += 1;
        if class.used == class.members.len() {
            self.live.lift(link);
        }
        self.model.linearized(&self.history[member].operation);
        let mut more = self.used.to_vec();
        more[bit / 64] |= 1 << (bit % 64);
        let used_before = std::mem::replace(&mut self.used, more.into());
        let before = std::mem::replace(&mut self.state, after);
        self.frames.push(Frame { what: Taken::Unknown { link, member, used_before }, before, choice });
    }

    /// Takes back the last choice, and says where to look for the next one.
    fn back(&mut self) -> Option<Cursor> {
        loop {
            let Frame { what, before, choice } = self.frames.pop()?;
            self.state = before;
            let cursor = match what {
                Taken::Known(call) => {
                    self.put_back(call);
                    Cursor::Known(self.list.after(call))
                }
                Taken::Unknown { link, member, used_before } => {
                    let class = &mut self.classes[link - 1];
                    if class.used == class.members.len() {
                        self.live.put_back(link);
                    }
                    class.used -= 1;
                    self.used = used_before;
                    self.model.undone(&self.history[member].operation);
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
            Taken::Unknown { member, .. } => *member,
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

    /// Takes steps from the budget, if it has them.
    fn spend(&mut self, steps: u64) -> bool {
        self.exhausted |= self.budget.steps < steps;
        self.budget.steps = self.budget.steps.saturating_sub(steps);
        !self.exhausted
    }
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

fn classes<T: Eq + Hash>(history: &[Timed<T>], from: &[Link], footprints: &[u64]) -> Vec<Class> {
    let mut unknown: Vec<usize> = (0..history.len()).filter(|index| history[*index].ret.is_none()).collect();
    unknown.sort_by_key(|index| (history[*index].call, *index));
    let mut by_operation: HashMap<&T, usize> = HashMap::new();
    let mut classes: Vec<Class> = Vec::new();
    for index in unknown {
        let class = *by_operation.entry(&history[index].operation).or_insert(classes.len());
        if class == classes.len() {
            classes.push(Class {
                members: Vec::new(),
                from: Vec::new(),
                footprint: footprints[index],
                used: 0,
                bit: 0,
            });
        }
        classes[class].members.push(index);
        classes[class].from.push(from[index]);
    }
    let mut bit = 0;
    for class in &mut classes {
        class.bit = bit;
        bit += class.members.len();
    }
    classes
}
