//! `events` and `audit`: the recent events of one node or of its audit log, and with `--follow` new ones.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use flotilla_api::Event;
use flotilla_client::Client;

use super::{failure::Failure, output::Output};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print new events until the node stops or Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only events after this id
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
}

/// Which log to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    Events,
    Audit,
}

pub(super) async fn run(log: Log, arguments: &Arguments, client: &Client, output: Output) -> Result<(), Failure> {
    if !arguments.follow {
        let events = match log {
            Log::Events => client.recent_events().await?,
            Log::Audit => client.recent_audit().await?,
        };
        let newer = events.iter().filter(|event| arguments.after.is_none_or(|after| event.id > after));
        return newer.into_iter().try_for_each(|event| print(event, output));
    }
    let mut events = match log {
        Log::Events => client.follow_events(arguments.after).await?,
        Log::Audit => client.follow_audit(arguments.after).await?,
    };
    while let Some(event) = events.next().await? {
        print(&event, output)?;
    }
    Err(Failure::unavailable("the stream ended: the node is stopping, or events were missed")
        .hint("Run `flotilla status`, then follow again."))
}

fn print(event: &Event, output: Output) -> Result<(), Failure> {
    if output.is_json() { output.json_line(event) } else { output.line(&line(event)) }
}

fn line(event: &Event) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(event.time_ms)).unwrap_or(UNIX_EPOCH);
    let mut text = format!("{}  {}  {}", humantime::format_rfc3339_millis(time), event.id, event.kind);
    for (name, value) in &event.detail {
        text.push_str(&format!("  {name}={}", value.escape_debug()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_time() {
        let detail = [("node".to_owned(), "n2\n".to_owned())].into();
        let event = Event { id: 3, time_ms: 1_000, kind: "node_down".to_owned(), detail };
        assert_eq!(line(&event), "1970-01-01T00:00:01.000Z  3  node_down  node=n2\\n");
    }
}
