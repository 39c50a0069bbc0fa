//! Histories from the literature, with numbers for times. The expected verdicts are those of the literature.

use flotilla_checker::{Answer, Budget, Condition, Kind, Model, Operation, Outcome, Timed, Verdict, check, search};

fn done(client: u64, call: u64, ret: u64, kind: Kind) -> Operation {
    returned(client, call, ret, kind, Outcome::Done)
}

fn returned(client: u64, call: u64, ret: u64, kind: Kind, outcome: Outcome) -> Operation {
    Operation { client, call, ret: Some(ret), kind, outcome }
}

fn found(client: u64, call: u64, ret: u64, key: &'static str, value: Option<&'static str>) -> Operation {
    returned(client, call, ret, Kind::get(key), Outcome::Value(value.map(Into::into)))
}

fn lost(client: u64, call: u64, kind: Kind) -> Operation {
    Operation { client, call, ret: None, kind, outcome: Outcome::Unknown }
}

fn put(value: &'static str) -> Kind {
    Kind::put("x", value)
}

fn swap(from: &'static str, to: &'static str) -> Kind {
    Kind::compare_and_set("x", Condition::Equals(from.into()), Some(to.into()))
}

fn judge(history: &[Operation]) -> bool {
    match check(history, &Budget::default()).expect("a valid history") {
        Verdict::Unknown => panic!("a budget used up"),
        verdict => verdict.is_linearizable(),
    }
}

/// A FIFO queue: the example of Herlihy and Wing 1990, and of Wing and Gong 1993.
struct Queue;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Enqueue(char),
    /// The item dequeued; `None`: the queue was empty.
    Dequeue(Option<char>),
}
use Asked::{Dequeue, Enqueue};

impl Model for Queue {
    type Operation = Asked;
    type State = Vec<char>;

    fn initial(&mut self) -> Vec<char> {
        Vec::new()
    }

    fn step(&mut self, state: &Vec<char>, operation: &Asked) -> Option<Vec<char>> {
        match operation {
            Enqueue(item) => Some([state.as_slice(), &[*item]].concat()),
            Dequeue(None) => state.is_empty().then(Vec::new),
            Dequeue(Some(item)) => (state.first() == Some(item)).then(|| state[1..].to_vec()),
        }
    }
}

fn queue(history: &[(u64, Option<u64>, Asked)]) -> bool {
    let timed =
        |(call, ret, operation): &(u64, Option<u64>, Asked)| Timed { call: *call, ret: *ret, operation: *operation };
    let history: Vec<_> = history.iter().map(timed).collect();
    match search(&mut Queue, &history, &mut Budget::default()) {
        Answer::Unknown => panic!("a budget used up"),
        answer => matches!(answer, Answer::Linearizable(_)),
    }
}

/// Herlihy and Wing 1990, "Linearizability: a correctness condition for concurrent objects", after figure 1.
#[test]
fn the_queue_histories_of_herlihy_and_wing_have_the_published_verdicts() {
    let (x, y) = (Dequeue(Some('x')), Dequeue(Some('y')));
    let both_at_once = [(0, Some(4), Enqueue('x')), (1, Some(5), Enqueue('y')), (6, Some(8), y), (7, Some(9), x)];
    assert!(queue(&both_at_once));
    let overtaken = [(0, Some(1), Enqueue('x')), (2, Some(5), Enqueue('y')), (6, Some(8), y)];
    assert!(!queue(&overtaken));
    // Dequeued while it is still being enqueued.
    assert!(queue(&[(0, Some(5), Enqueue('x')), (1, Some(3), x)]));
    let twice = [(0, Some(4), Enqueue('x')), (1, Some(5), Enqueue('y')), (6, Some(8), y), (7, Some(9), y)];
    assert!(!queue(&twice));
}

/// Herlihy and Wing 1990, section 2: an invocation without a response may have taken effect, or not.
#[test]
fn a_pending_enqueue_may_be_seen_once_or_never() {
    let pending = (0, None, Enqueue('x'));
    assert!(queue(&[pending, (5, Some(6), Dequeue(Some('x')))]));
    assert!(queue(&[pending, (5, Some(6), Dequeue(None)), (7, Some(8), Dequeue(Some('x')))]));
    assert!(!queue(&[pending, (5, Some(6), Dequeue(Some('x'))), (7, Some(8), Dequeue(Some('x')))]));
}

/// Wing and Gong 1993, "Testing and verifying concurrent objects": overlapping operations must be tried in
/// every order, with backtracking.
#[test]
fn overlapping_enqueues_are_tried_in_every_order() {
    let enqueues = ['a', 'b', 'c', 'd'].map(|item| (0, Some(9), Enqueue(item)));
    let dequeues = |order: [char; 4]| {
        let one = |(at, item): (usize, char)| (10 + 2 * at as u64, Some(11 + 2 * at as u64), Dequeue(Some(item)));
        order.into_iter().enumerate().map(one).collect::<Vec<_>>()
    };
    assert!(queue(&[enqueues.as_slice(), &dequeues(['d', 'b', 'a', 'c'])].concat()));
    assert!(!queue(&[enqueues.as_slice(), &dequeues(['d', 'b', 'a', 'b'])].concat()));
}

/// Herlihy and Wing 1990, after figure 2: a register that returns to its previous value.
#[test]
fn a_register_may_not_go_back_once_its_new_value_was_read() {
    let writes = [done(1, 0, 1, put("0")), done(1, 2, 9, put("1"))];
    let new_then = |value| [writes.as_slice(), &[found(2, 3, 4, "x", Some("1")), found(3, 5, 6, "x", value)]].concat();
    assert!(judge(&new_then(Some("1"))));
    // Lamport 1986, "On interprocess communication": regular but not atomic, because of a new-old inversion.
    assert!(!judge(&new_then(Some("0"))));
}

/// Lowe 2017, "Testing for linearizability": two configurations with the same operations but different states
/// differ.
#[test]
fn one_set_of_operations_may_leave_different_states() {
    let at_once = [done(1, 0, 9, put("1")), done(2, 0, 9, put("2")), done(3, 0, 9, put("3"))];
    for value in ["1", "2", "3"] {
        assert!(judge(&[at_once.as_slice(), &[found(4, 10, 11, "x", Some(value))]].concat()));
    }
    let two = [found(4, 10, 11, "x", Some("1")), found(5, 12, 13, "x", Some("2"))];
    assert!(!judge(&[at_once.as_slice(), &two].concat()));
}

/// Attiya and Welch 1994, "Sequential consistency versus linearizability": a history that is only
/// sequentially consistent.
#[test]
fn a_sequentially_consistent_but_not_linearizable_history_fails() {
    assert!(!judge(&[done(1, 0, 1, put("1")), found(2, 2, 3, "x", None)]));
    assert!(judge(&[done(1, 0, 2, put("1")), found(2, 2, 3, "x", None)]), "equal times count as overlapping");
}

/// Dekker's flags: each client writes its own key, then reads the other's, and neither sees the other.
#[test]
fn two_clients_cannot_both_miss_the_other() {
    let both = [
        done(1, 0, 1, Kind::put("x", "1")),
        done(2, 0, 1, Kind::put("y", "1")),
        found(1, 2, 3, "y", None),
        found(2, 2, 3, "x", None),
    ];
    assert!(!judge(&both));
    assert!(judge(&both[..2]));
}

/// Kingsbury's Jepsen analyses: stale reads from a deposed leader (etcd and Consul 2014, MongoDB 2015), and a
/// compare-and-set acknowledged to two clients.
#[test]
fn stale_reads_and_lost_updates_of_a_deposed_leader_fail() {
    let stale =
        [done(1, 0, 1, put("1")), returned(2, 2, 3, swap("1", "2"), Outcome::Done), found(3, 4, 5, "x", Some("1"))];
    assert!(!judge(&stale));
    let both_won = [
        done(1, 0, 1, put("1")),
        returned(2, 2, 9, swap("1", "2"), Outcome::Done),
        returned(3, 2, 9, swap("1", "3"), Outcome::Done),
    ];
    assert!(!judge(&both_won));
    let one_failed = returned(3, 2, 9, swap("1", "3"), Outcome::ConditionFailed);
    assert!(judge(&[both_won[0].clone(), both_won[1].clone(), one_failed]));
}

/// Knossos: an operation that crashed stays concurrent with everything after it.
#[test]
fn a_crashed_write_may_take_effect_late_and_only_once() {
    let before = [done(1, 0, 1, put("1")), lost(2, 2, put("2")), found(3, 100, 101, "x", Some("1"))];
    let late = found(3, 102, 103, "x", Some("2"));
    let back = found(3, 104, 105, "x", Some("1"));
    assert!(judge(&before));
    assert!(judge(&[before.as_slice(), std::slice::from_ref(&late)].concat()));
    assert!(!judge(&[before.as_slice(), &[late, back]].concat()));
    // It cannot be read before it was invoked.
    assert!(!judge(&[found(1, 0, 1, "x", Some("2")), lost(2, 2, put("2"))]));
    // A retried increment must not count twice.
    let add = |client, call, sum| returned(client, call, call + 1, Kind::add("n", 1), Outcome::Number(sum));
    assert!(judge(&[add(1, 0, 1), lost(2, 2, Kind::add("n", 1)), add(3, 4, 3)]));
    assert!(!judge(&[add(1, 0, 1), lost(2, 2, Kind::add("n", 1)), add(3, 4, 4)]));
}
