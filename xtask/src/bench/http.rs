//! A minimal HTTP/1.1 client. Responses arrive in the order of requests.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};

use super::{
    protocol::{Admission, OnAnswer, Protocol, Request, Ticket, put_decimal},
    workload::Operation,
};

/// Longest body, in bytes: a safeguard, since the values are our own.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Longest head, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Http {
    pending: VecDeque<Ticket>,
}

impl Protocol for Http {
    fn request(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> Admission {
        let operation = request.ticket.operation;
        out.extend_from_slice(match operation {
            Operation::Set => b"PUT /v1/kv/default/",
            Operation::Get | Operation::GetLocal => b"GET /v1/kv/default/",
        });
        out.extend_from_slice(&request.key);
        if operation == Operation::GetLocal {
            out.extend_from_slice(b"?consistency=eventual");
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: localhost\r\n");
        if operation == Operation::Set {
            out.extend_from_slice(b"content-length: ");
            put_decimal(out, request.value.len());
            out.extend_from_slice(b"\r\n\r\n");
            out.extend_from_slice(request.value);
        } else {
            out.extend_from_slice(b"\r\n");
        }
        self.pending.push_back(request.ticket);
        Admission::Sent
    }

    fn answers(&mut self, input: &[u8], _: &mut Vec<u8>, on_answer: OnAnswer<'_>) -> Result<usize> {
        let mut used = 0;
        while let Some((length, refusal)) = answer(&input[used..])? {
            used += length;
            on_answer(self.pending.pop_front().context("a response without a request")?, refusal);
        }
        Ok(used)
    }
}

/// The first response's length, and the reason if it is a refusal; `None` while it is incomplete.
fn answer(input: &[u8]) -> Result<Option<(usize, Option<String>)>> {
    let Some(head) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
        ensure!(input.len() <= HEAD_BYTES_MAX, "a response head of more than {HEAD_BYTES_MAX} bytes");
        return Ok(None);
    };
    let mut lines = input[..head].split(|&byte| byte == b'\n');
    let status = lines.next().and_then(|line| line.split(|&byte| byte == b' ').nth(1));
    let status: u16 = std::str::from_utf8(status.context("a response without a status")?)?.parse()?;
    let length = lines.find_map(content_length).context("a response without content-length")?;
    let length: usize = std::str::from_utf8(length)?.trim().parse()?;
    ensure!(length <= BODY_BYTES_MAX, "a response of {length} bytes");
    let end = head + 4 + length;
    if input.len() < end {
        return Ok(None);
    }
    let refusal = || format!("{status} {}", String::from_utf8_lossy(&input[head + 4..end]));
    Ok(Some((end, (!(200..300).contains(&status)).then(refusal))))
}

fn content_length(line: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"content-length:";
    let (name, value) = line.split_at_checked(NAME.len())?;
    name.eq_ignore_ascii_case(NAME).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::bench::keys;

    #[test]
    fn requests_match_the_http_api() {
        let (mut client, mut out) = (Http::default(), Vec::new());
        for operation in [Operation::Set, Operation::GetLocal] {
            let ticket = Ticket { operation, sent: Instant::now() };
            client.request(&Request { key: keys::name(1), value: b"v", ticket }, &mut out);
        }
        let put = "PUT /v1/kv/default/bench-00000001 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nv";
        let get = "GET /v1/kv/default/bench-00000001?consistency=eventual HTTP/1.1\r\nhost: localhost\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&out), format!("{put}{get}"));
    }

    #[test]
    fn refusals_are_recognised_wherever_the_input_is_split() {
        let input =
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx: y\r\n\r\nhiHTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";
        for cut in 0..=input.len() {
            let (mut client, mut refusals) = (Http::default(), Vec::new());
            let ticket = Ticket { operation: Operation::Get, sent: Instant::now() };
            client.pending.extend([ticket, ticket]);
            let mut on_answer = |_, refusal| refusals.push(refusal);
            let used = client.answers(&input[..cut], &mut Vec::new(), &mut on_answer).expect("sound answers");
            let rest = client.answers(&input[used..], &mut Vec::new(), &mut on_answer).expect("sound answers");
            assert_eq!(used + rest, input.len());
            assert_eq!(refusals, [None, Some("503 busy".to_owned())]);
        }
    }
}
