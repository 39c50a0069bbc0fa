use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_storage::{Manifest, MemoryEngine, PieceRef, Value};
use flotilla_types::{
    ByteOrder, CheckpointFormat, Epoch, KeyRange, LogIndex, ObjectRef, Position, Refs, ReplicaDescriptor,
    ShardDescriptor, ShardId, TableKind, TableRef, Tables, Term,
};

use super::*;

const REPLICA: ReplicaId = ReplicaId(7);
/// Three of these objects fit in a response.
const BOUNDS: PullBounds = PullBounds {
    requests_max: 3,
    requests_total_max: 4,
    objects_max: 4,
    response_bytes_max: 30,
    unsynced_bytes_max: 50,
};
/// The node that receives, the one that offers, and two more with a replica.
const ME: NodeId = NodeId(1);
const LEADER: NodeId = NodeId(2);
const SECOND: NodeId = NodeId(3);
const THIRD: NodeId = NodeId(4);

/// An engine with objects of ten bytes, and a checkpoint that names them.
fn source(count: u64) -> (MemoryEngine, Checkpoint) {
    let engine = MemoryEngine::default();
    let object = |n: u64| Bytes::from(format!("object {n:>3}"));
    let base: Vec<_> = (0..count).map(|n| ObjectId::of(&object(n))).collect();
    for (n, id) in (0..).zip(&base) {
        engine.import(*id, object(n), &[]).unwrap();
    }
    let descriptor =
        ShardDescriptor { shard: ShardId(1), range: KeyRange::all(), epoch: Epoch::default(), replicas: Vec::new() };
    let position =
        Position { index: LogIndex(9), term: Term(1), conf: Arc::default(), descriptor: Arc::new(descriptor) };
    (engine, Checkpoint { tables: Tables::Pieces { base, runs: Vec::new() }, ..Checkpoint::empty(position) })
}

fn no_lists(_: &ObjectRef, _: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
    Err("there are no lists")
}

/// A pull from the leader alone.
fn start(target: &MemoryEngine, checkpoint: Checkpoint) -> Pull {
    let order = PullOrder::of_snapshot(ME, REPLICA, LEADER, &checkpoint, no_lists);
    Pull::start(target, order, BOUNDS).unwrap()
}

fn answer(pull: &mut Pull, target: &MemoryEngine, source: &MemoryEngine, request: PullRequest) -> usize {
    answer_after(1, pull, target, source, request)
}

fn answer_after(
    took_ms: u64,
    pull: &mut Pull,
    target: &MemoryEngine,
    source: &MemoryEngine,
    request: PullRequest,
) -> usize {
    let served = serve(source, request.encode(), BOUNDS);
    assert_eq!(served.replica, Some(REPLICA));
    let stored = request.store(target, served.response);
    assert_eq!(stored.objects, served.objects);
    let objects = stored.objects;
    if pull.on_stored(0, took_ms, request, stored) {
        pull.sync(target).unwrap();
    }
    objects
}

#[test]
fn a_few_requests_are_in_flight_and_every_object_is_fetched_once() {
    let (source, checkpoint) = source(50);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let (mut in_flight, mut fetched) = (VecDeque::new(), 0);
    while pull.state() == PullState::Working {
        while let Some(request) = pull.next_request(0) {
            in_flight.push_back(request);
        }
        assert!(in_flight.len() <= BOUNDS.requests_max);
        let request = in_flight.pop_front().expect("a pull that works has a request in flight");
        fetched += answer(&mut pull, &target, &source, request);
    }
    assert_eq!((pull.state(), fetched, pull.progress()), (PullState::Fetched, 50, (50, 0)));
}

/// A source whose checkpoint names manifests of these objects.
fn source_with_manifests(tables: &[&[u64]]) -> (MemoryEngine, Checkpoint) {
    let (engine, checkpoint) = source(50);
    let table = |pieces: &&[u64]| {
        let piece = |n: &u64| PieceRef {
            id: ObjectId::of(format!("object {n:>3}").as_bytes()),
            first_key: n.to_be_bytes().to_vec().into(),
            bytes: 10,
            records: 1,
            footer_bytes: 0,
            footer_crc: 0,
        };
        let manifest = Manifest { pieces: pieces.iter().map(piece).collect() }.encode();
        let id = ObjectId::of(&manifest);
        let children = Manifest::decode(manifest.clone()).unwrap().children();
        engine.import(id, manifest, &children).unwrap();
        TableRef { kind: TableKind::Run, clip: KeyRange::all(), manifest: id, fold: None }
    };
    let tables = Tables::Manifests(tables.iter().map(table).collect());
    (engine, Checkpoint { tables, ..checkpoint })
}

#[test]
fn pieces_are_fetched_after_their_manifests_and_once() {
    let (source, checkpoint) = source_with_manifests(&[&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[5, 6, 7, 8, 9, 10, 11]]);
    let target = MemoryEngine::default();
    let mut fetched = 0;
    // The second time a manifest and some pieces are here.
    for answers in [4, usize::MAX] {
        let mut pull = start(&target, checkpoint.clone());
        for _ in 0..answers {
            let Some(request) = pull.next_request(0) else { break };
            fetched += answer(&mut pull, &target, &source, request);
        }
        let left = 2 + 11 - fetched;
        assert_eq!((pull.state() == PullState::Fetched, pull.progress()), (left == 0, (2 + 11, left)));
    }
    let objects: Vec<_> = checkpoint.objects().collect();
    assert!(target.missing(&objects).is_empty());
}

/// A piece that is a manifest itself is stored, and of no use: nothing it names is fetched.
#[test]
fn a_peer_cannot_make_the_chain_of_objects_longer() {
    let (source, checkpoint) = source_with_manifests(&[&[1]]);
    let inner = checkpoint.tables.objects().next().unwrap();
    let mut piece = Manifest::decode(source.object(inner).unwrap()).unwrap();
    piece.pieces[0].id = inner;
    let outer = piece.encode();
    let manifest = ObjectId::of(&outer);
    source.import(manifest, outer, &[inner]).unwrap();
    let table = TableRef { kind: TableKind::Run, clip: KeyRange::all(), manifest, fold: None };
    let checkpoint = Checkpoint { tables: Tables::Manifests(vec![table]), ..checkpoint };
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let mut fetched = 0;
    while let Some(request) = pull.next_request(0) {
        fetched += answer(&mut pull, &target, &source, request);
    }
    assert_eq!((pull.state(), fetched), (PullState::Fetched, 2));
}

#[test]
fn an_interrupted_pull_keeps_what_it_stored_even_over_a_restart() {
    let (source, checkpoint) = source(40);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint.clone());
    for _ in 0..8 {
        let request = pull.next_request(0).unwrap();
        answer(&mut pull, &target, &source, request);
    }
    let (_, missing) = pull.progress();
    assert_eq!(missing, 40 - 8 * 3);
    let again = start(&target, checkpoint.clone());
    assert_eq!(again.progress(), (40, missing));
    let restarted = start(&target.reopen(), checkpoint);
    assert!(restarted.progress().1 <= missing + 5, "{:?} after a power failure", restarted.progress());
}

#[test]
fn a_pull_that_is_stopped_ends_with_the_answers_in_flight() {
    let (source, checkpoint) = source(40);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let in_flight = [pull.next_request(0).unwrap(), pull.next_request(0).unwrap()];
    pull.stop();
    assert_eq!((pull.next_request(0).is_none(), pull.state()), (true, PullState::Working));
    for request in in_flight {
        answer(&mut pull, &target, &source, request);
    }
    assert_eq!((pull.state(), pull.progress()), (PullState::Failed, (40, 34)));
}

#[test]
fn a_pull_goes_on_without_an_object_that_is_gone() {
    let (source, mut checkpoint) = source(20);
    let Tables::Pieces { base, .. } = &mut checkpoint.tables else { panic!("they have no manifests") };
    base.insert(5, ObjectId::of(b"gone"));
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let mut fetched = 0;
    while let Some(request) = pull.next_request(0) {
        fetched += answer(&mut pull, &target, &source, request);
    }
    assert_eq!((pull.state(), fetched, pull.progress()), (PullState::Failed, 20, (21, 1)));
}

#[test]
fn failures_end_a_pull_only_if_nothing_succeeds_in_between() {
    let (source, checkpoint) = source(50);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let mut now_ms = 0;
    for _ in 0..3 {
        for failed in 1..FAILURES_MAX {
            let request = pull.next_request(now_ms).unwrap();
            pull.on_failure(now_ms, request);
            assert_eq!(pull.wakes_at_ms(now_ms), Some(now_ms + (BACKOFF_MS << failed)));
            assert_eq!((pull.next_request(now_ms).is_none(), pull.state()), (true, PullState::Working));
            now_ms += BACKOFF_MS << failed;
        }
        let request = pull.next_request(now_ms).unwrap();
        answer(&mut pull, &target, &source, request);
    }
    for _ in 0..FAILURES_MAX {
        now_ms += 10_000;
        let request = pull.next_request(now_ms).unwrap();
        pull.on_failure(now_ms, request);
    }
    assert_eq!((pull.state(), pull.next_request(now_ms + 10_000).is_none()), (PullState::Failed, true));
}

/// A pull whose snapshot's shard has replicas on all four nodes.
fn start_with_three_sources(target: &MemoryEngine, mut checkpoint: Checkpoint) -> Pull {
    let on = |node: NodeId| ReplicaDescriptor { replica: ReplicaId(node.0), node, role: ReplicaRole::Voter };
    Arc::make_mut(&mut checkpoint.position.descriptor).replicas = [ME, LEADER, SECOND, THIRD].map(on).to_vec();
    start(target, checkpoint)
}

/// Answers the pull's requests, oldest first, until it ends. `serves` says what a source does with a request.
fn run(
    pull: &mut Pull,
    target: &MemoryEngine,
    mut serves: impl FnMut(&PullRequest) -> Does,
) -> BTreeMap<NodeId, usize> {
    let (mut in_flight, mut now_ms) = (VecDeque::new(), 0);
    let (mut fetched, mut asked_for) = (BTreeMap::new(), HashSet::new());
    loop {
        while let Some(request) = pull.next_request(now_ms) {
            for object in request.fetches() {
                assert!(asked_for.insert(*object), "{object} is requested twice");
            }
            in_flight.push_back(request);
        }
        assert!(in_flight.iter().filter(|request| !request.asks).count() <= BOUNDS.requests_total_max);
        let Some(request) = in_flight.pop_front() else {
            match pull.wakes_at_ms(now_ms).filter(|_| pull.state() == PullState::Working) {
                Some(wakes_at_ms) => now_ms = wakes_at_ms,
                None => return fetched,
            }
            continue;
        };
        now_ms += 1;
        let ids = request.fetches().to_vec();
        let (node, stored) = (
            request.source(),
            match serves(&request) {
                Does::Fail => {
                    ids.iter().for_each(|id| assert!(asked_for.remove(id)));
                    pull.on_failure(now_ms, request);
                    continue;
                }
                Does::Serve(engine, took_ms) => {
                    (took_ms, request.store(target, serve(&engine, request.encode(), BOUNDS).response))
                }
                Does::Answer(response) => (1, request.store(target, response)),
            },
        );
        let (took_ms, stored) = stored;
        ids.iter().skip(stored.objects).for_each(|id| assert!(asked_for.remove(id)));
        *fetched.entry(node).or_default() += stored.objects;
        if pull.on_stored(now_ms, took_ms, request, stored) {
            pull.sync(target).unwrap();
        }
    }
}

enum Does {
    Serve(MemoryEngine, u64),
    Answer(Bytes),
    Fail,
}

/// An engine with some of the objects of another one.
fn part_of(whole: &MemoryEngine, checkpoint: &Checkpoint, has: impl Fn(usize) -> bool) -> MemoryEngine {
    let part = MemoryEngine::default();
    for (_, id) in checkpoint.objects().enumerate().filter(|(at, _)| has(*at)) {
        part.import(id, whole.object(id).unwrap(), &[]).unwrap();
    }
    part
}

#[test]
fn objects_are_dealt_over_the_nodes_that_say_that_they_hold_them() {
    let (leader, checkpoint) = source(60);
    let second = part_of(&leader, &checkpoint, |at| at % 2 == 0);
    let target = MemoryEngine::default();
    let mut pull = start_with_three_sources(&target, checkpoint.clone());
    let fetched = run(&mut pull, &target, |request| match request.source() {
        LEADER => Does::Serve(leader.clone(), 1),
        SECOND => Does::Serve(second.clone(), 1),
        // A binary that does not know the question: it serves nothing, and is asked for nothing.
        _ => {
            assert!(request.fetches().is_empty());
            Does::Answer(Bytes::new())
        }
    });
    assert_eq!(pull.state(), PullState::Fetched);
    assert!(fetched[&SECOND] >= 15 && fetched.values().sum::<usize>() == 60, "{fetched:?}");
}

#[test]
fn a_pull_outlives_its_sources_as_long_as_one_holds_the_rest() {
    for dies in [LEADER, SECOND] {
        let (whole, checkpoint) = source(60);
        let target = MemoryEngine::default();
        let mut pull = start_with_three_sources(&target, checkpoint);
        let mut answered = 0;
        let fetched = run(&mut pull, &target, |request| {
            answered += 1;
            if request.source() == dies && answered > 8 { Does::Fail } else { Does::Serve(whole.clone(), 1) }
        });
        assert_eq!((pull.state(), fetched.values().sum::<usize>()), (PullState::Fetched, 60), "{dies} died");
    }
}

#[test]
fn a_slow_source_loses_its_share() {
    let (whole, checkpoint) = source(120);
    let target = MemoryEngine::default();
    let mut pull = start_with_three_sources(&target, checkpoint);
    let fetched = run(&mut pull, &target, |request| {
        let took_ms = if request.source() == SECOND { 3_000 } else { 100 };
        if !request.asks && request.source() == SECOND {
            assert!(request.timeout_ms() < CALL_MS);
        }
        Does::Serve(whole.clone(), took_ms)
    });
    assert_eq!(pull.state(), PullState::Fetched);
    assert!(fetched[&SECOND] * 2 < fetched[&THIRD], "{fetched:?}");
}

#[test]
fn a_source_has_all_the_time_for_what_no_other_source_holds() {
    let (leader, checkpoint) = source(60);
    let second = part_of(&leader, &checkpoint, |at| at < 20);
    let of_second: HashSet<_> = checkpoint.objects().take(20).collect();
    let target = MemoryEngine::default();
    let mut pull = start_with_three_sources(&target, checkpoint);
    let mut seen = [0, 0];
    run(&mut pull, &target, |request| {
        let is_alone = request.fetches().iter().any(|object| !of_second.contains(object));
        match request.source() {
            LEADER => {
                if is_alone {
                    assert_eq!(request.timeout_ms(), CALL_MS);
                }
                seen[usize::from(is_alone)] += 1;
                Does::Serve(leader.clone(), 100)
            }
            SECOND => Does::Serve(second.clone(), 1),
            _ => Does::Fail,
        }
    });
    assert_eq!(pull.state(), PullState::Fetched);
    assert!(seen[1] > 5, "{seen:?}");
}

/// A link that takes so long that a call for several objects times out, as long as that is not known.
#[test]
fn a_pull_ends_over_a_link_slower_than_thought() {
    let (source, checkpoint) = source(20);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let (mut now_ms, mut failures) = (0, 0);
    while pull.state() == PullState::Working {
        let mut sent = Vec::new();
        while let Some(request) = pull.next_request(now_ms) {
            sent.push(request);
        }
        // Answers queue up on the link, those that nobody waits for any more, too.
        let mut took_ms = 0;
        for request in sent {
            took_ms += 15_000 * request.fetches().len() as u64;
            if took_ms > request.timeout_ms() {
                failures += 1;
                pull.on_failure(now_ms + request.timeout_ms(), request);
            } else {
                answer_after(took_ms, &mut pull, &target, &source, request);
            }
        }
        now_ms += took_ms;
    }
    assert_eq!(pull.state(), PullState::Fetched);
    assert!((3..=10).contains(&failures), "{failures}");
}

#[test]
fn a_bad_object_is_fetched_elsewhere_and_three_of_them_end_a_source() {
    let (whole, checkpoint) = source(60);
    let bad = Bytes::from_static(b"other bytes");
    for (bad_answers, banned) in [(2, false), (usize::MAX, true)] {
        let target = MemoryEngine::default();
        let mut pull = start_with_three_sources(&target, checkpoint.clone());
        let (mut given, mut refused) = (0, HashSet::new());
        let fetched = run(&mut pull, &target, |request| {
            if request.asks || request.source() != SECOND || given >= bad_answers {
                return Does::Serve(whole.clone(), 1);
            }
            given += 1;
            let first = request.fetches()[0];
            assert!(refused.insert(first), "{first} is requested from the same source again");
            let answer = flotilla_wire::peer::ObjectsResponse { objects: vec![bad.clone()], ..Default::default() };
            Does::Answer(flotilla_wire::encode(&answer))
        });
        assert_eq!((pull.state(), fetched.values().sum::<usize>()), (PullState::Fetched, 60));
        assert_eq!((fetched[&SECOND] == 0, pull.sources[1].lost), (banned, banned), "{fetched:?}");
        // Three requests were in flight.
        assert!(given <= BAD_MAX as usize + 2, "{given} bad objects");
    }
}

#[test]
fn a_source_that_serves_no_more_than_it_may_is_asked_later_and_keeps_its_place() {
    let (whole, checkpoint) = source(20);
    let target = MemoryEngine::default();
    let mut pull = start(&target, checkpoint);
    let mut refused = 0;
    let fetched = run(&mut pull, &target, |request| {
        refused += 1;
        match serve_later(request.encode(), 700).filter(|_| refused <= 3 * FAILURES_MAX) {
            Some(later) => Does::Answer(later.response),
            None => Does::Serve(whole.clone(), 1),
        }
    });
    assert_eq!((pull.state(), fetched[&LEADER]), (PullState::Fetched, 20));
    assert!(serve_later(waiting_request(REPLICA), 1).is_none(), "who asks for no objects is answered at once");
}

/// A list of the tests: a mark, and then the references that it has.
fn list(refs: &[ObjectRef]) -> Bytes {
    let mut bytes = b"list".to_vec();
    refs.iter().copied().collect::<Refs>().encode(&mut bytes, ByteOrder::Big);
    bytes.into()
}

fn lists(_: &ObjectRef, object: &Bytes) -> Result<Vec<ObjectRef>, &'static str> {
    let mut refs = object.strip_prefix(b"list").ok_or("it is no list")?;
    Refs::decode(&mut refs, ByteOrder::Big).map(|refs| refs.to_vec()).map_err(|_| "it is no list")
}

fn reference(object: &Bytes, height: u8) -> ObjectRef {
    ObjectRef { id: ObjectId::of(object), height, bytes: object.len() as u64 }
}

/// Pulls what these references name from a source that has these objects, and looks whether it is all there.
fn pull_refs(target: &MemoryEngine, refs: &[ObjectRef], objects: &[Bytes]) -> (bool, usize) {
    let source = MemoryEngine::default();
    for object in objects {
        source.import(ObjectId::of(object), object.clone(), &[]).unwrap();
    }
    let order = PullOrder::of_refs(vec![LEADER], refs, lists);
    let mut pull = Pull::start(target, order, BOUNDS).unwrap();
    let (mut fetched, mut now_ms) = (0, 0);
    loop {
        while let Some(request) = pull.next_request(now_ms) {
            let stored = request.store(target, serve(&source, request.encode(), BOUNDS).response);
            fetched += stored.objects;
            let _ = pull.on_stored(now_ms, 1, request, stored);
        }
        match pull.state() {
            PullState::Working => now_ms = pull.wakes_at_ms(now_ms).expect("it goes on"),
            PullState::Fetched if pull.finish(target).unwrap() => return (true, fetched),
            PullState::Fetched => {}
            PullState::Failed => return (false, fetched),
        }
    }
}

/// The leader of a shard may have lost the objects of its records. It offers nothing else in their place.
#[test]
fn what_records_refer_to_comes_from_elsewhere_however_much_of_it_the_first_node_lacks() {
    let chunks: Vec<_> = (0..8 * GONE_MAX).map(|n| Bytes::from(format!("chunk {n}"))).collect();
    let source = MemoryEngine::default();
    for chunk in &chunks {
        source.import(ObjectId::of(chunk), chunk.clone(), &[]).unwrap();
    }
    let refs: Vec<_> = chunks.iter().map(|chunk| reference(chunk, 0)).collect();
    let target = MemoryEngine::default();
    let order = PullOrder::of_refs(vec![LEADER, SECOND, THIRD], &refs, lists);
    let mut pull = Pull::start(&target, order, BOUNDS).unwrap();
    let fetched = run(&mut pull, &target, |request| match request.source() {
        THIRD => Does::Serve(source.clone(), 1),
        _ => Does::Serve(MemoryEngine::default(), 1),
    });
    assert_eq!((pull.state(), fetched[&THIRD]), (PullState::Fetched, chunks.len()));
}

#[test]
fn lists_are_fetched_before_what_they_list_and_only_what_is_missing() {
    let chunks: Vec<_> = (0..9).map(|n| Bytes::from(format!("chunk {n}"))).collect();
    let leaves: Vec<_> =
        chunks.chunks(3).map(|part| list(&part.iter().map(|chunk| reference(chunk, 0)).collect::<Vec<_>>())).collect();
    let root = list(&leaves.iter().map(|leaf| reference(leaf, 1)).collect::<Vec<_>>());
    let all: Vec<_> = chunks.iter().chain(&leaves).chain([&root]).cloned().collect();
    let target = MemoryEngine::default();
    // Some are here as something else, so nothing is known of what they need.
    for here in [&chunks[4], &leaves[1], &root] {
        target.import(ObjectId::of(here), here.clone(), &[]).unwrap();
    }
    assert_eq!(pull_refs(&target, &[reference(&root, 2)], &all), (true, 10));
    let ids: Vec<_> = all.iter().map(|object| ObjectId::of(object)).collect();
    assert_eq!(target.not_durable(&ids), []);
    assert_eq!(pull_refs(&target, &[reference(&root, 2)], &[]), (true, 0), "nothing is missing any more");
}

#[test]
fn what_an_object_needs_follows_from_what_it_is() {
    let absent = Bytes::from_static(b"absent");
    // Chunks that look like a list and a manifest of something that does not exist.
    let piece = PieceRef {
        id: ObjectId::of(&absent),
        first_key: Bytes::new(),
        bytes: 1,
        records: 1,
        footer_bytes: 0,
        footer_crc: 0,
    };
    for chunk in [list(&[reference(&absent, 0)]), Manifest { pieces: vec![piece] }.encode()] {
        let objects = [chunk.clone()];
        assert_eq!(pull_refs(&MemoryEngine::default(), &[reference(&chunk, 0)], &objects), (true, 1));
    }
    // One that is both, at once: what the list needs is fetched, too.
    let both = list(&[reference(&absent, 0)]);
    let refs = [reference(&both, 0), reference(&both, 1)];
    let target = MemoryEngine::default();
    assert_eq!(pull_refs(&target, &refs, &[both.clone(), absent.clone()]), (true, 2));
    assert_eq!(target.not_durable(&[ObjectId::of(&both)]), []);
    assert!(!pull_refs(&MemoryEngine::default(), &refs, &[both]).0);
}

#[test]
fn objects_that_are_not_what_is_said_are_refused_here_and_from_elsewhere() {
    let chunk = Bytes::from_static(b"chunk");
    let leaf = list(&[reference(&chunk, 0)]);
    // A list that contains lists of its own height has no end.
    let endless = list(&[reference(&leaf, 1)]);
    let objects = [chunk.clone(), leaf.clone(), endless.clone()];
    let longer = ObjectRef { bytes: 6, ..reference(&chunk, 0) };
    for refs in [[longer], [reference(&chunk, 1)], [reference(&endless, 1)]] {
        let target = MemoryEngine::default();
        assert!(!pull_refs(&target, &refs, &objects).0, "{refs:?}");
        for object in &objects {
            target.import(ObjectId::of(object), object.clone(), &[]).unwrap();
        }
        assert!(!pull_refs(&target, &refs, &objects).0, "{refs:?} here");
    }
    assert!(pull_refs(&MemoryEngine::default(), &[reference(&endless, 2)], &objects).0);
}

#[test]
fn a_part_that_was_damaged_before_a_restart_is_fetched_again() {
    let chunks = [Bytes::from_static(b"chunk"), Bytes::from_static(b"another")];
    let root = list(&chunks.each_ref().map(|chunk| reference(chunk, 0)));
    let all = [chunks[0].clone(), chunks[1].clone(), root.clone()];
    let before = MemoryEngine::default();
    assert_eq!(pull_refs(&before, &[reference(&root, 1)], &all), (true, 3));
    let target = before.reopen();
    target.rot(ObjectId::of(&chunks[0]));
    assert_eq!(pull_refs(&target, &[reference(&root, 1)], &[]), (false, 0));
    target.rot(ObjectId::of(&chunks[0]));
    assert_eq!(pull_refs(&target, &[reference(&root, 1)], &all), (true, 1));
    assert_eq!(target.object(ObjectId::of(&chunks[0])).unwrap(), chunks[0]);
}

#[test]
fn a_snapshot_brings_what_its_records_refer_to() {
    let chunks = [Bytes::from_static(b"chunk"), Bytes::from_static(b"another")];
    let root = list(&chunks.each_ref().map(|chunk| reference(chunk, 0)));
    let (source, checkpoint) = source(0);
    source.open(REPLICA, &checkpoint).unwrap();
    let ids = chunks.each_ref().map(|chunk| ObjectId::of(chunk));
    for (id, bytes, children) in
        [(ids[0], &chunks[0], &[][..]), (ids[1], &chunks[1], &[]), (ObjectId::of(&root), &root, &ids)]
    {
        source.import_part(id, bytes.clone(), children).unwrap();
    }
    let value = Value::new("reference", [reference(&root, 1)].into_iter().collect());
    source.write(REPLICA, vec![(Bytes::from_static(b"key"), Some(value))], LogIndex(10)).unwrap();
    let position = Position { index: LogIndex(10), ..checkpoint.position };
    assert!(source.freeze(REPLICA, position, Bytes::new()).unwrap());
    let snapshot = source.build(REPLICA, CheckpointFormat::Manifests).unwrap();

    let target = MemoryEngine::default();
    let order = PullOrder::of_snapshot(ME, REPLICA, LEADER, &snapshot, lists);
    let mut pull = Pull::start(&target, order, BOUNDS).unwrap();
    let mut fetched = 0;
    while let Some(request) = pull.next_request(0) {
        fetched += answer(&mut pull, &target, &source, request);
    }
    assert_eq!(fetched, 2 + 3, "a manifest, a piece, a list and its chunks");
    assert_eq!((pull.state(), pull.finish(&target).unwrap()), (PullState::Fetched, true));
    for (id, chunk) in ids.iter().zip(&chunks) {
        assert_eq!(target.object(*id).unwrap(), *chunk);
    }
    // The snapshot holds them: as long as it is received, and once it is installed.
    target.install_snapshot(REPLICA, &snapshot).unwrap();
    assert_eq!(target.not_durable(&ids), []);
}

#[test]
fn objects_travel_compressed_to_who_reads_that_and_plain_to_others() {
    let source = MemoryEngine::default();
    let object = |n: usize| Bytes::from(format!("{n} {}", "lorem ipsum ".repeat(300)));
    let objects: Vec<_> = (0..4).map(object).collect();
    for object in &objects {
        source.import(ObjectId::of(object), object.clone(), &[]).unwrap();
    }
    let need = || objects.iter().map(|object| Bytes::copy_from_slice(ObjectId::of(object).as_bytes())).collect();
    let response = |reads_packed| {
        let request = flotilla_wire::peer::ObjectsRequest { need: need(), reads_packed, ..Default::default() };
        let served = serve(&source, flotilla_wire::encode(&request), PullBounds::default());
        assert_eq!((served.objects, served.complete), (4, true));
        flotilla_wire::decode::<flotilla_wire::peer::ObjectsResponse>(served.response).unwrap()
    };
    let plain = response(false);
    assert!(plain.objects == objects && plain.packed.is_empty());
    let packed = response(true);
    assert!(packed.objects.is_empty() && packed.packed.len() < objects[0].len());

    // Both ways.
    let refs: Vec<_> = objects.iter().map(|object| reference(object, 0)).collect();
    let target = MemoryEngine::default();
    assert_eq!(pull_refs(&target, &refs, &objects), (true, 4));
    assert!(objects.iter().all(|object| target.object(ObjectId::of(object)).unwrap() == object));

    // A frame that is not what is said of it is an answer of no use.
    let order = PullOrder::of_refs(vec![LEADER], &refs, lists);
    let mut pull = Pull::start(&MemoryEngine::default(), order, BOUNDS).unwrap();
    let request = pull.next_request(0).unwrap();
    let packed_lengths = vec![1; 4];
    let spoilt = flotilla_wire::peer::ObjectsResponse { packed_lengths, ..packed };
    let stored = request.store(&target, flotilla_wire::encode(&spoilt));
    assert!(matches!(stored.end, End::Failed(PullError::Packed)) && stored.objects == 0);
}
