//! Tests of the gRPC client against handwritten frames.

use std::time::Instant;

use super::*;
use crate::bench::keys;

/// `grpc-status: 0` as etcd sends it: a Huffman-coded name, a plain value.
const STATUS_OK: &[u8] = &[0x40, 0x88, 0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f, 0x01, 0x30];
const STATUS_UNAVAILABLE: &[u8] = b"\x00\x0bgrpc-status\x0214";

fn send(client: &mut Grpc, operation: Operation, value: &[u8], out: &mut Vec<u8>) -> Admission {
    let ticket = Ticket { operation, sent: Instant::now() };
    client.request(&Request { key: keys::name(1), value, ticket }, out)
}

fn receive(client: &mut Grpc, input: &[u8]) -> (Vec<(Operation, Option<String>)>, Vec<u8>) {
    let (mut answers, mut out) = (Vec::new(), Vec::new());
    let used = client.answers(input, &mut out, &mut |ticket, refusal| answers.push((ticket.operation, refusal)));
    assert_eq!(used.expect("sound frames"), input.len());
    (answers, out)
}

#[test]
fn a_put_is_encoded_as_headers_and_one_message() {
    let (mut client, mut out) = (Grpc::new(200), Vec::new());
    assert_eq!(send(&mut client, Operation::Set, &[b'v'; 200], &mut out), Admission::Sent);
    let headers = u32::from_be_bytes([0, out[0], out[1], out[2]]) as usize;
    assert_eq!(out[3..9], [HEADERS, END_HEADERS, 0, 0, 0, 1]);
    let message = &out[FRAME_HEAD_BYTES + headers..];
    let mut expected = vec![0, 0, 224, DATA, END_STREAM, 0, 0, 0, 1, 0, 0, 0, 0, 219, 0x0a, 14];
    expected.extend_from_slice(b"bench-00000001\x12\xc8\x01");
    expected.extend_from_slice(&[b'v'; 200]);
    assert_eq!(message, expected);
}

#[test]
fn responses_in_any_order_are_matched_to_requests() {
    let (mut client, mut input) = (Grpc::new(1), Vec::new());
    for operation in [Operation::Set, Operation::Get, Operation::GetLocal] {
        send(&mut client, operation, b"v", &mut Vec::new());
    }
    put_frame(&mut input, DATA, 0, 5, b"12345");
    put_frame(&mut input, HEADERS, END_HEADERS | END_STREAM, 5, STATUS_OK);
    put_frame(&mut input, HEADERS, END_HEADERS | END_STREAM, 1, STATUS_UNAVAILABLE);
    put_frame(&mut input, HEADERS, END_HEADERS | END_STREAM, 3, STATUS_OK);
    let (answers, _) = receive(&mut client, &input);
    let expected = [
        (Operation::GetLocal, None),
        (Operation::Set, Some("grpc-status 14".to_owned())),
        (Operation::Get, Some("no such key".to_owned())),
    ];
    assert_eq!(answers, expected);
}

#[test]
fn flow_control_blocks_requests() {
    let (mut client, mut out) = (Grpc::new(1), Vec::new());
    let value = vec![b'v'; 30_000];
    assert_eq!(send(&mut client, Operation::Set, &value, &mut out), Admission::Sent);
    assert_eq!(send(&mut client, Operation::Set, &value, &mut out), Admission::Sent);
    assert_eq!(send(&mut client, Operation::Set, &value, &mut out), Admission::Blocked);
    let mut input = Vec::new();
    put_frame(&mut input, WINDOW_UPDATE, 0, 0, &40_000_u32.to_be_bytes());
    receive(&mut client, &input);
    assert_eq!(send(&mut client, Operation::Set, &value, &mut out), Admission::Sent);
    let one_stream = [0, 3, 0, 0, 0, 3];
    let mut input = Vec::new();
    put_frame(&mut input, SETTINGS, 0, 0, &one_stream);
    let (_, out) = receive(&mut client, &input);
    assert_eq!(out, [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0]);
    assert_eq!(send(&mut client, Operation::Get, b"", &mut Vec::new()), Admission::Blocked);
}

#[test]
fn pings_are_acknowledged_and_incomplete_frames_wait() {
    let mut client = Grpc::new(1);
    let ping = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    for cut in 0..ping.len() {
        assert_eq!(client.answers(&ping[..cut], &mut Vec::new(), &mut |_, _| ()).expect("no error"), 0);
    }
    let (_, out) = receive(&mut client, &ping);
    assert_eq!(out, [0, 0, 8, PING, ACK, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(client.answers(&[255; 9], &mut Vec::new(), &mut |_, _| ()).is_err(), "a frame that is too long");
}
