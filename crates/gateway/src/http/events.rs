//! `GET /v1/cluster/events`: cluster events as a resumable stream of server-sent events.
//!
//! A stream starts with the events that the node remembers and continues with new ones. `Last-Event-ID` skips
//! those that the reader has seen. When events in between are lost, the stream sends `gap` and ends: no
//! reader misses events silently.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
    response::{
        IntoResponse, Response,
        sse::{Event as Frame, KeepAlive, Sse},
    },
};
use flotilla_api::{Event, EventList};
use futures_util::{Stream, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, watch},
    time::sleep,
};

use super::{
    App, guard,
    problem::Refusal,
    raw::{Query, invalid},
    unix_ms,
};
use crate::{Access, Grant};

/// How often the key of a reader is checked.
const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// An idle stream sends a comment this often, so that both ends notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A log of events that can be listed and followed.
pub(super) struct Source {
    /// Subscribed before `recent` was read: an event in between is in both, and is sent once.
    pub(super) live: broadcast::Receiver<Event>,
    pub(super) recent: Vec<Event>,
}

pub(super) async fn events(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let source = Source { live: app.admin.subscribe(), recent: app.admin.recent() };
    serve(&app, request, source)
}

/// Lists the remembered events, or follows them.
pub(super) fn serve(app: &App, request: Request, source: Source) -> Result<Response, Refusal> {
    let grant = guard::grant_of(&request)?;
    let follow = Query::parse(request.uri().query(), &["follow"])?.flag("follow")?.unwrap_or(true);
    if !follow {
        return Ok(Json(EventList { events: source.recent }).into_response());
    }
    let last = match request.headers().get("last-event-id") {
        None => None,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.parse().ok());
            Some(id.ok_or_else(|| invalid("`Last-Event-ID` is not an id of this stream"))?)
        }
    };
    let permit =
        app.streams.clone().try_acquire_owned().map_err(|_| Refusal::busy("too many event streams are open"))?;
    let (backlog, gap) = match backlog(source.recent, last) {
        Ok(events) => (events.into(), None),
        Err(gap) => (VecDeque::new(), Some(gap)),
    };
    let watched = Watched { access: app.access.clone(), grant };
    let live = source.live;
    let tail = Tail {
        backlog,
        live,
        last,
        gap,
        ended: false,
        stopping: app.stopping.clone(),
        watched: Some(watched),
        _permit: permit,
    };
    Ok(Sse::new(tail.into_stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Events were lost. Resuming after `resume_after` returns everything that is still remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    resume_after: Option<u64>,
}

/// The remembered events that a reader that has seen everything up to `last` has missed.
fn backlog(recent: Vec<Event>, last: Option<u64>) -> Result<Vec<Event>, Gap> {
    let Some(last) = last else { return Ok(recent) };
    let (Some(oldest), Some(newest)) = (recent.first().map(|event| event.id), recent.last().map(|event| event.id))
    else {
        return Err(Gap { resume_after: None });
    };
    if last.saturating_add(1) < oldest || last > newest {
        return Err(Gap { resume_after: Some(oldest.saturating_sub(1)) });
    }
    Ok(recent.into_iter().filter(|event| event.id > last).collect())
}

/// The key of a reader: the stream ends when it is revoked or expires.
struct Watched {
    access: Arc<Access>,
    grant: Grant,
}

impl Watched {
    async fn ended(&self) {
        while self.access.is_current(&self.grant, unix_ms()) {
            sleep(KEY_CHECK_INTERVAL).await;
        }
    }
}

/// One reader's position in the stream.
struct Tail {
    backlog: VecDeque<Event>,
    live: broadcast::Receiver<Event>,
    last: Option<u64>,
    gap: Option<Gap>,
    ended: bool,
    stopping: watch::Receiver<bool>,
    watched: Option<Watched>,
    _permit: OwnedSemaphorePermit,
}

impl Tail {
    fn into_stream(self) -> impl Stream<Item = Result<Frame, Infallible>> {
        stream::unfold(self, |mut tail| async move { tail.next().await.map(|frame| (Ok(frame), tail)) })
    }

    async fn next(&mut self) -> Option<Frame> {
        if self.ended {
            return None;
        }
        if let Some(gap) = self.gap.take() {
            self.ended = true;
            return Some(gap_frame(gap));
        }
        if let Some(event) = self.backlog.pop_front() {
            return Some(self.frame(&event));
        }
        loop {
            let stopped = async {
                // A dropped sender means that the server has stopped, too.
                let _ = self.stopping.wait_for(|stopping| *stopping).await;
            };
            let revoked = async {
                match &self.watched {
                    Some(watched) => watched.ended().await,
                    None => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                () = stopped => return None,
                () = revoked => return None,
                received = self.live.recv() => received,
            };
            match received {
                Ok(event) if self.last.is_some_and(|last| event.id <= last) => {}
                Ok(event) => return Some(self.frame(&event)),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.ended = true;
                    return Some(gap_frame(Gap { resume_after: self.last }));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn frame(&mut self, event: &Event) -> Frame {
        self.last = Some(event.id);
        // An event is plain strings and numbers, so serialization cannot fail.
        let data = serde_json::to_string(event).unwrap_or_default();
        Frame::default().id(event.id.to_string()).event("event").data(data)
    }
}

fn gap_frame(gap: Gap) -> Frame {
    let frame = Frame::default().event("gap").data(r#"{"detail":"events were missed; read the status, then resume"}"#);
    match gap.resume_after {
        Some(id) => frame.id(id.to_string()),
        None => frame,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(ids: std::ops::Range<u64>) -> Vec<Event> {
        ids.map(|id| Event { id, time_ms: 0, kind: "test".to_owned(), detail: Default::default() }).collect()
    }

    #[test]
    fn a_resuming_reader_gets_what_it_missed_or_a_gap() {
        let ids =
            |last| backlog(events(10..13), last).map(|events| events.iter().map(|event| event.id).collect::<Vec<_>>());
        assert_eq!(ids(None), Ok(vec![10, 11, 12]));
        assert_eq!(ids(Some(9)), Ok(vec![10, 11, 12]));
        assert_eq!(ids(Some(12)), Ok(vec![]));
        let gap = Err(Gap { resume_after: Some(9) });
        assert_eq!(ids(Some(8)), gap, "event 9 is forgotten");
        assert_eq!(ids(Some(13)), gap, "an id from another node");
        assert_eq!(backlog(Vec::new(), Some(1)), Err(Gap { resume_after: None }));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_a_gap_and_the_stream_ends() {
        let (sender, live) = broadcast::channel(2);
        let (_stop, stopping) = watch::channel(false);
        let permit = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.expect("a permit");
        let mut tail = Tail {
            backlog: events(1..2).into(),
            live,
            last: None,
            gap: None,
            ended: false,
            stopping,
            watched: None,
            _permit: permit,
        };
        for event in events(1..6) {
            sender.send(event).expect("a reader");
        }
        assert!(tail.next().await.is_some(), "the backlog");
        assert!(format!("{:?}", tail.next().await).contains("gap"));
        assert!(tail.next().await.is_none());
    }

    #[tokio::test]
    async fn streams_end_when_the_server_stops() {
        let (_sender, live) = broadcast::channel(2);
        let (stop, stopping) = watch::channel(false);
        let permit = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.expect("a permit");
        let mut tail = Tail {
            backlog: VecDeque::new(),
            live,
            last: None,
            gap: None,
            ended: false,
            stopping,
            watched: None,
            _permit: permit,
        };
        stop.send_replace(true);
        assert!(tail.next().await.is_none());
    }
}
