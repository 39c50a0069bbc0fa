//! Requests in pieces, limits, the texts of errors, and hostile bytes.

use flotilla_hostile::{Proportion, attack, extreme_u64, mutated};
use proptest::prelude::*;

use super::*;

fn small() -> DecoderLimits {
    DecoderLimits { arguments_max: 4, bulk_bytes_max: 10, request_bytes_max: 120 }
}

/// Decodes the input in pieces; returns all requests and the first error.
fn decode_pieces<'a>(
    limits: DecoderLimits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Request>, Option<ProtocolError>) {
    let mut decoder = Decoder::new(limits);
    decoder.set_sender(Sender::Authenticated);
    let mut buffer = BytesMut::new();
    let mut requests = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
    }
    (requests, None)
}

fn decode(input: &str) -> (Vec<Vec<String>>, Option<ProtocolError>) {
    let (requests, error) = decode_pieces(small(), [input.as_bytes()]);
    let text = |argument: Bytes| argument.escape_ascii().to_string();
    (requests.into_iter().map(|request| request.into_iter().map(text).collect()).collect(), error)
}

fn error(input: &str) -> Option<ProtocolError> {
    decode(input).1
}

fn encode(request: &[Bytes]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
    for argument in request {
        bytes.extend(format!("${}\r\n", argument.len()).into_bytes());
        bytes.extend(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn request() -> impl Strategy<Value = Request> {
    let argument = proptest::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from);
    proptest::collection::vec(argument, 1..5)
}

proptest! {
    #[test]
    fn any_split_of_a_pipeline_decodes_the_same(
        requests in proptest::collection::vec(request(), 0..8),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream: Vec<u8> = requests.iter().flat_map(|request| encode(request)).chain(*b"PING \"in line\"\r\n").collect();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        let mut expected = requests;
        expected.push(vec![Bytes::from_static(b"PING"), Bytes::from_static(b"in line")]);
        prop_assert_eq!(decode_pieces(DecoderLimits::default(), pieces), (expected.clone(), None));
        prop_assert_eq!(decode_pieces(DecoderLimits::default(), stream.chunks(1)), (expected, None));
    }
}

/// Pipelines as a client library sends them, mixed with inline commands.
fn pipeline() -> impl Strategy<Value = Vec<u8>> {
    let line = "[a-z]{1,4}( \"[a-z\\\\x0-9]{0,6}\"| '[a-z]{0,4}'| [a-z]{1,4}){0,3}\r?\n".prop_map(String::into_bytes);
    let part =
        prop_oneof![4 => request().prop_map(|request| encode(&request)), 1 => line, 1 => Just(b"*0\r\n".to_vec())];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

#[test]
fn hostile_pipelines_give_requests_within_the_limits_and_one_error() {
    // Includes the test's own memory: copies of the pieces, and the buffer that collects them.
    let proportion = Proportion { base: 32 << 10, per_byte: 256 };
    let hostile = prop_oneof![
        3 => mutated(pipeline()),
        1 => "[*$0-9\r\n\"'\\\\x ]{0,60}".prop_map(String::into_bytes),
    ];
    attack(1_500, (hostile, 1_usize..60, any::<bool>()), |(stream, step, tight)| {
        let limits = if tight { small() } else { DecoderLimits::default() };
        let (requests, error) = proportion.of(stream.len(), || decode_pieces(limits, stream.chunks(step)));
        for request in &requests {
            assert!(!request.is_empty());
            // An inline command is bounded by its own length.
            let bytes: usize = request.iter().map(Bytes::len).sum();
            assert!(bytes <= stream.len());
        }
        // The result does not depend on how the bytes are split.
        assert_eq!(decode_pieces(limits, [&stream[..]]), (requests.clone(), error));
        for request in requests {
            // An error reply is a single line, whatever the request contained.
            if let Err(error) = crate::parse::parse(request) {
                let mut reply = BytesMut::new();
                crate::Reply::error(error).encode(crate::Protocol::Resp2, &mut reply);
                let line = reply.strip_suffix(b"\r\n").expect("a line");
                assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n')), "{line:?}");
            }
        }
    });
}

#[test]
fn hostile_lengths_reserve_nothing() {
    let lengths = (extreme_u64(), extreme_u64());
    attack(300, lengths, |(count, bytes)| {
        for header in [format!("*{count}\r\n${bytes}\r\n"), format!("*2\r\n${bytes}\r\nx")] {
            Proportion::DEFAULT.of(header.len(), || decode_pieces(DecoderLimits::default(), [header.as_bytes()]));
        }
    });
}

#[test]
fn arguments_are_slices_of_the_input() {
    let mut input = BytesMut::from(&b"*2\r\n$3\r\nGET\r\n$9\r\nsome:keys\r\n"[..]);
    let range = input.as_ptr_range();
    let request = Decoder::new(small()).decode(&mut input).unwrap().unwrap();
    assert!(request.iter().all(|argument| range.contains(&argument.as_ptr())));
}

#[test]
fn inline_commands_are_split_as_by_a_shell() {
    let (requests, error) = decode("PING\r\n\r\n  set k  \"a \\x41\\n\\q\" \nget 'it\\'s'\r\nset k \"\"\n");
    assert_eq!(error, None);
    assert_eq!(requests[0], ["PING"]);
    assert_eq!(requests[1], ["set", "k", "a A\\nq"]);
    assert_eq!(requests[2], ["get", "it\\'s"]);
    assert_eq!(requests[3], ["set", "k", ""]);
    for unbalanced in ["get \"x\n", "get 'x\n", "get \"x\"y\n", "get 'x'y\n", "get \"x\\\n"] {
        assert_eq!(self::error(unbalanced), Some(ProtocolError::UnbalancedQuotes), "{unbalanced:?}");
    }
}

#[test]
fn empty_arrays_are_skipped() {
    let (requests, error) = decode("*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n");
    assert_eq!((requests, error), (vec![vec!["PING".to_owned()]], None));
}

#[test]
fn limits_are_checked_before_the_bytes_arrive() {
    assert_eq!(error("*5\r\n"), Some(ProtocolError::ArrayLength));
    assert_eq!(error("*9223372036854775807\r\n"), Some(ProtocolError::ArrayLength));
    assert_eq!(error("*1\r\n$11\r\n"), Some(ProtocolError::BulkLength));
    assert_eq!(error("*1\r\n$-1\r\n"), Some(ProtocolError::BulkLength));
    let long = "$10\r\n0123456789\r\n";
    assert_eq!(error(&format!("*4\r\n{long}{long}$10\r\n")), Some(ProtocolError::RequestTooLarge));
    assert_eq!(error(&format!("*{}", "1".repeat(HEADER_BYTES_MAX))), Some(ProtocolError::HeaderTooLong));
    assert_eq!(error(&"x".repeat(INLINE_BYTES_MAX)), Some(ProtocolError::InlineTooLong));
}

#[test]
fn who_has_not_authenticated_may_send_little() {
    let decode = |decoder: &mut Decoder, input: &str| decoder.decode(&mut BytesMut::from(input.as_bytes()));
    let unauthenticated = |input: &str| decode(&mut Decoder::new(DecoderLimits::default()), input);
    for (input, text) in [
        ("*11\r\n", "ERR Protocol error: unauthenticated multibulk length"),
        ("*2\r\n$4\r\nAUTH\r\n$16385\r\n", "ERR Protocol error: unauthenticated bulk length"),
        // What nobody may send is refused with the same text as to anybody else.
        ("*9223372036854775807\r\n", "ERR Protocol error: invalid multibulk length"),
        ("*1\r\n$9223372036854775807\r\n", "ERR Protocol error: invalid bulk length"),
    ] {
        assert_eq!(unauthenticated(input).map_err(|error| error.to_string()), Err(text.to_owned()), "{input:?}");
    }
    let request = |arguments: usize, bytes: usize| encode(&vec![Bytes::from(vec![b'x'; bytes]); arguments]);
    let (longest, longer) = (request(10, 16 << 10), request(11, (16 << 10) + 1));
    let mut input = BytesMut::from(&[longest, longer].concat()[..]);
    let mut decoder = Decoder::new(DecoderLimits::default());
    assert_eq!(decoder.decode(&mut input).unwrap().map(|request| request.len()), Some(10));
    // Who sends is looked at again for each request of a pipeline.
    decoder.set_sender(Sender::Authenticated);
    assert_eq!(decoder.decode(&mut input).unwrap().map(|request| request.len()), Some(11));
}

#[test]
fn framing_errors_have_the_texts_of_redis() {
    for (input, text) in [
        ("*x\r\n", "ERR Protocol error: invalid multibulk length"),
        ("*1\r\n+PING\r\n", "ERR Protocol error: expected '$', got '+'"),
        ("*1\r\n\r\n", "ERR Protocol error: expected '$', got '\\r'"),
        ("*1\r\n$x\r\n", "ERR Protocol error: invalid bulk length"),
        ("*1\r\n$4\r\nPINGxx", "ERR Protocol error: expected CRLF"),
        ("*1\rx", "ERR Protocol error: expected CRLF"),
        ("POST / HTTP/1.1\r\n", "ERR Protocol error: this port does not speak HTTP"),
        ("GET / HTTP/1.1\r\nHost: x\r\n", "ERR Protocol error: this port does not speak HTTP"),
    ] {
        assert_eq!(error(input).map(|error| error.to_string()).as_deref(), Some(text), "{input:?}");
    }
}
