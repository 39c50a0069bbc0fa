//! A minimal Redis client: pipelined requests, RESP2 replies.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};

use super::{
    keys::KEY_BYTES,
    protocol::{Admission, OnAnswer, Protocol, Request, Ticket, put_decimal},
    workload::Operation,
};

/// Longest reply, in bytes: a safeguard, since the values are our own.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Resp {
    pending: VecDeque<Ticket>,
}

impl Protocol for Resp {
    fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Admission {
        match request.ticket.operation {
            Operation::Set => out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n"),
            Operation::Get | Operation::GetLocal => out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n"),
        }
        put_part(out, &request.key);
        if request.ticket.operation == Operation::Set {
            put_part(out, request.value);
        }
        self.pending.push_back(request.ticket);
        Admission::Sent
    }

    fn answers(&mut self, input: &[u8], _: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize> {
        let mut used = 0;
        while let Some((length, refusal)) = answer(&input[used..])? {
            used += length;
            on_answer(self.pending.pop_front().context("a reply without a request")?, refusal);
        }
        Ok(used)
    }
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    const { assert!(KEY_BYTES == 14, "keys are announced with their length") };
    out.push(b'$');
    put_decimal(out, part.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(part);
    out.extend_from_slice(b"\r\n");
}

/// The first reply's length, and the reason if it is a refusal; `None` while it is incomplete. Every key was
/// filled in, so a missing one counts as a refusal.
fn answer(input: &[u8]) -> Result<Option<(usize, Option<String>)>> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    match line.split_first() {
        Some((b'+' | b':', _)) => Ok(Some((end + 1, None))),
        Some((b'-', message)) => Ok(Some((end + 1, Some(String::from_utf8_lossy(message).into_owned())))),
        Some((b'$', b"-1")) => Ok(Some((end + 1, Some("no such key".to_owned())))),
        Some((b'$', length)) => {
            let length: usize = std::str::from_utf8(length)?.parse()?;
            ensure!(length <= REPLY_BYTES_MAX, "a reply of {length} bytes");
            let reply_end = end + 1 + length + 2;
            Ok((input.len() >= reply_end).then_some((reply_end, None)))
        }
        _ => bail!("unexpected reply {:?}", String::from_utf8_lossy(line)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::bench::keys;

    fn client_with(operations: &[Operation]) -> (Resp, Vec<u8>) {
        let (mut client, mut out) = (Resp::default(), Vec::new());
        for &operation in operations {
            let ticket = Ticket { operation, sent: Instant::now() };
            client.request(&Request { key: keys::name(1), value: b"v", ticket }, &mut out);
        }
        (client, out)
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let (_, out) = client_with(&[Operation::Set, Operation::Get]);
        let expected =
            "*3\r\n$3\r\nSET\r\n$14\r\nbench-00000001\r\n$1\r\nv\r\n*2\r\n$3\r\nGET\r\n$14\r\nbench-00000001\r\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn replies_of_every_kind_are_recognised_wherever_the_input_is_split() {
        let input = b"+OK\r\n$3\r\na\nb\r\n$-1\r\n-ERR no\r\n:7\r\n";
        for cut in 0..=input.len() {
            let (mut client, mut refusals) = (client_with(&[Operation::Get; 5]).0, Vec::new());
            let mut on_answer = |_, refusal| refusals.push(refusal);
            let used = client.answers(&input[..cut], &mut Vec::new(), &mut on_answer).expect("sound answers");
            let rest = client.answers(&input[used..], &mut Vec::new(), &mut on_answer).expect("sound answers");
            assert_eq!(used + rest, input.len());
            assert_eq!(refusals, [None, None, Some("no such key".to_owned()), Some("ERR no".to_owned()), None]);
        }
        assert!(client_with(&[]).0.answers(b"+OK\r\n", &mut Vec::new(), &mut |_, _| ()).is_err(), "no request");
    }
}
