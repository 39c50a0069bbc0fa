//! Tests of the load loop against a minimal server.

use std::{io::BufRead, net::TcpListener, thread};

use super::*;

/// Responds to GETs in the Redis protocol, to each only after `lag` further requests. Returns the number of
/// requests.
fn serve(listener: &TcpListener, lag: usize) -> usize {
    let (stream, _) = listener.accept().expect("a connection");
    let (mut output, mut input) = (stream.try_clone().expect("a socket"), std::io::BufReader::new(stream));
    let (mut received, mut line) = (0, String::new());
    // A GET is five lines.
    while (0..5).all(|_| input.read_line(&mut line).is_ok_and(|bytes| bytes > 0)) {
        received += 1;
        if received > lag {
            output.write_all(b"$1\r\nv\r\n").expect("an open connection");
        }
        line.clear();
    }
    received
}

struct Hundred {
    left: usize,
    answers: Vec<Option<String>>,
    ticks: usize,
    waited: bool,
}

impl Driver for Hundred {
    fn next(&mut self, _: usize, _: Instant) -> Next {
        let Some(left) = self.left.checked_sub(1) else { return Next::End };
        self.left = left;
        // Every tenth request is delayed until the next tick.
        self.waited = left.is_multiple_of(10) && !self.waited;
        if self.waited {
            self.left += 1;
            return Next::Wait;
        }
        Next::Send(Operation::Get, left as u64)
    }

    fn answered(&mut self, connection: usize, ticket: Ticket, now: Instant, refusal: Option<String>) {
        assert!(connection == 0 && ticket.operation == Operation::Get && ticket.sent <= now);
        self.answers.push(refusal);
    }

    fn tick(&mut self, _: Instant) -> Result<()> {
        self.ticks += 1;
        // The last three responses never arrive, so end the run when all others have.
        ensure!(self.answers.len() < 97, "enough");
        Ok(())
    }
}

/// A server that responds only after 3 further requests starves a loop that waits for all responses before it
/// sends again. The run ends with 3 requests in flight.
#[test]
fn each_response_triggers_a_new_request() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let servers = [listener.local_addr().expect("a bound port")];
    let server = thread::spawn(move || serve(&listener, 3));
    let values = Values::new(1);
    let options = LoadOptions { servers: &servers, wire: Wire::Redis, in_flight: 4, values: &values };
    let mut driver = Hundred { left: 100, answers: Vec::new(), ticks: 0, waited: false };
    let end = drive(&options, &mut driver).expect_err("three requests get no response");
    assert_eq!(end.to_string(), "enough");
    assert_eq!(driver.answers, vec![None; 97]);
    assert_eq!(server.join().expect("no panic"), 100);
}

#[test]
fn a_closed_connection_is_an_error() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let servers = [listener.local_addr().expect("a bound port")];
    let server = thread::spawn(move || drop(listener.accept()));
    let values = Values::new(1);
    let options = LoadOptions { servers: &servers, wire: Wire::Redis, in_flight: 1, values: &values };
    let mut driver = Hundred { left: 5, answers: Vec::new(), ticks: 0, waited: false };
    assert!(drive(&options, &mut driver).is_err());
    server.join().expect("no panic");
}
