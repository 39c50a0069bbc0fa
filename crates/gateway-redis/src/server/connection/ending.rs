//! How a connection ends when the server stops: every request that was read is answered, and the client
//! learns of the end together with the last answer.
//!
//! A client that sends one pipeline after another has none on its way at the moment in which its last answer
//! leaves. The end of the stream travels in the same segment, so a client that looks before it sends never
//! sends into a connection that is closed. A client that is silent gets some time for a request that is on
//! its way. One that never stops sending is not read any further after that time.

use std::{io, time::Duration};

use tokio::time::Instant;

use super::Connection;

/// How long a connection whose client is silent stays open, and how long one whose client sends without a
/// pause is still read.
const CLOSE_NOTICE: Duration = Duration::from_millis(200);

impl Connection {
    /// The server stops.
    pub(super) fn stop(&mut self) {
        self.read_until = Some(Instant::now() + CLOSE_NOTICE);
    }

    /// Reads nothing more. What was read is still answered.
    pub(super) fn stop_reading(&mut self) {
        self.lingers |= !self.window.is_empty() || self.has_output() || self.is_mid_request();
        self.is_eof = true;
    }

    /// Ends the connection with the replies that wait for the socket, if the server stops, they are the last
    /// ones, and nothing else has arrived.
    pub(super) fn end_with_replies(&mut self) -> io::Result<()> {
        let answers_all = self.window.is_empty() && self.needs_input && self.postponed.is_none();
        let is_in_transaction = self.multi.queued() >= 0;
        let may_end = self.read_until.is_some() && answers_all && !is_in_transaction && !self.output.is_empty();
        if !may_end || !self.wants_input() || !self.account.has_room(self.growth()) {
            return Ok(());
        }
        self.read()?;
        if self.needs_input && !self.is_eof && !self.is_mid_request() {
            self.stream.hold_back();
            (self.is_closing, self.lingers) = (true, true);
        }
        Ok(())
    }

    fn is_mid_request(&self) -> bool {
        self.decoder.is_mid_request() || !self.input.is_empty()
    }
}
