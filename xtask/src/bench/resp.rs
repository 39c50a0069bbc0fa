//! The least of a Redis client: pipelined requests, RESP2 answers.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail, ensure};

use super::{
    keys::KEY_BYTES,
    protocol::{Admission, OnAnswer, Protocol, Request, Ticket, put_decimal},
    workload::Operation,
};

/// Longest answer, in bytes. Values are ours, so this is only a guard.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Resp {
    waiting: VecDeque<Ticket>,
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
        self.waiting.push_back(request.ticket);
        Admission::Sent
    }

    fn answers(&mut self, input: &[u8], _: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize> {
        let mut used = 0;
        while let Some((length, refusal)) = answer(&input[used..])? {
            used += length;
            on_answer(self.waiting.pop_front().context("an answer to nothing")?, refusal);
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

/// The first answer's length, and why it is a refusal; `None` while it is not whole. Every key was filled in, so an
/// absent one is a refusal too.
fn answer(input: &[u8]) -> Result<Option<(usize, Option<String>)>> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    match line.split_first() {
        Some((b'+' | b':', _)) => Ok(Some((end + 1, None))),
        Some((b'-', message)) => Ok(Some((end + 1, Some(String::from_utf8_lossy(message).into_owned())))),
        Some((b'$', b"-1")) => Ok(Some((end + 1, Some("no such key".to_owned())))),
        Some((b'$', length)) => {
            let length: usize = std::str::from_utf8(length)?.parse()?;
            ensure!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
            let whole = end + 1 + length + 2;
            Ok((input.len() >= whole).then_some((whole, None)))
        }
        _ => bail!("unexpected answer {:?}", String::from_utf8_lossy(line)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::bench::keys;

    fn asked(operations: &[Operation]) -> (Resp, Vec<u8>) {
        let (mut client, mut out) = (Resp::default(), Vec::new());
        for &operation in operations {
            let ticket = Ticket { operation, sent: Instant::now() };
            client.request(&Request { key: keys::name(1), value: b"v", ticket }, &mut out);
        }
        (client, out)
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let (_, out) = asked(&[Operation::Set, Operation::Get]);
        let expected =
            "*3\r\n$3\r\nSET\r\n$14\r\nbench-00000001\r\n$1\r\nv\r\n*2\r\n$3\r\nGET\r\n$14\r\nbench-00000001\r\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn answers_of_every_kind_are_told_apart_wherever_they_are_cut() {
        let input = b"+OK\r\n$3\r\na\nb\r\n$-1\r\n-ERR no\r\n:7\r\n";
        for cut in 0..=input.len() {
            let (mut client, mut refusals) = (asked(&[Operation::Get; 5]).0, Vec::new());
            let mut on_answer = |_, refusal| refusals.push(refusal);
            let used = client.answers(&input[..cut], &mut Vec::new(), &mut on_answer).expect("sound answers");
            let rest = client.answers(&input[used..], &mut Vec::new(), &mut on_answer).expect("sound answers");
            assert_eq!(used + rest, input.len());
            assert_eq!(refusals, [None, None, Some("no such key".to_owned()), Some("ERR no".to_owned()), None]);
        }
        assert!(asked(&[]).0.answers(b"+OK\r\n", &mut Vec::new(), &mut |_, _| ()).is_err(), "nobody asked");
    }
}
