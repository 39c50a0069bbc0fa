//! The deadlines under which a client must act: its first byte, the rest of a request, and the pace at which it
//! reads its replies.
//!
//! Pure: the caller passes the time.

use tokio::time::Instant;

use super::ServerConfig;

/// What the client owes, and since when.
#[derive(Debug)]
pub(super) struct Deadlines {
    opened: Instant,
    has_first_byte: bool,
    /// Since when a request has been incomplete.
    partial_since: Option<Instant>,
    /// Since when replies have waited for the client, and how many bytes were taken since.
    unread: Option<(Instant, usize)>,
}

/// What the client did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    FirstByte,
    Request,
    Replies,
}

impl Deadlines {
    pub(super) fn new(now: Instant) -> Self {
        Self { opened: now, has_first_byte: false, partial_since: None, unread: None }
    }

    /// The client sent something.
    pub(super) fn received(&mut self) {
        self.has_first_byte = true;
    }

    /// Whether a request is incomplete now. `progressed`: it is another one than before.
    pub(super) fn request(&mut self, is_partial: bool, progressed: bool, now: Instant) {
        self.partial_since = match self.partial_since {
            _ if !is_partial => None,
            Some(since) if !progressed => Some(since),
            _ => Some(now),
        };
    }

    /// The client took `bytes` of its replies; `rest` says whether more of them wait for it.
    pub(super) fn replies(&mut self, bytes: usize, rest: bool, now: Instant) {
        self.unread = rest.then(|| match self.unread {
            Some((since, taken)) => (since, taken + bytes),
            None => (now, 0),
        });
    }

    /// Whether the connection waits for its client while it holds something for it.
    pub(super) fn waits_for_client(&self) -> bool {
        self.partial_since.is_some() || self.unread.is_some()
    }

    /// The next deadline.
    pub(super) fn next(&self, config: &ServerConfig) -> Option<(Instant, Overdue)> {
        let first_byte = (!self.has_first_byte).then(|| (self.opened + config.first_byte_timeout, Overdue::FirstByte));
        let request = self.partial_since.map(|since| (since + config.arrival_timeout, Overdue::Request));
        let replies = self.unread.map(|(since, taken)| (config.reply_pace.deadline(since, taken), Overdue::Replies));
        [first_byte, request, replies].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_duty_of_the_client_has_a_deadline_until_it_is_done() {
        let (config, start) = (ServerConfig::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut deadlines = Deadlines::new(start);
        assert_eq!(deadlines.next(&config), Some((start + config.first_byte_timeout, Overdue::FirstByte)));
        deadlines.received();
        assert_eq!((deadlines.next(&config), deadlines.waits_for_client()), (None, false));

        deadlines.request(true, true, start + second);
        deadlines.request(true, false, start + 2 * second);
        let due = start + second + config.arrival_timeout;
        assert_eq!((deadlines.next(&config), deadlines.waits_for_client()), (Some((due, Overdue::Request)), true));
        deadlines.request(true, true, start + 2 * second);
        assert_eq!(deadlines.next(&config), Some((due + second, Overdue::Request)), "the next request");
        deadlines.request(false, true, start + 3 * second);
        assert_eq!(deadlines.next(&config), None);

        let pace = config.reply_pace;
        deadlines.replies(0, true, start);
        deadlines.replies(pace.bytes_per_second_min as usize, true, start + second);
        assert_eq!(deadlines.next(&config), Some((start + pace.grace + second, Overdue::Replies)));
        deadlines.replies(1, false, start + second);
        assert_eq!((deadlines.next(&config), deadlines.waits_for_client()), (None, false));
    }
}
