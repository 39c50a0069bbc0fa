//! Reads request bodies, bounded in bytes, in time and in pace, and counted on the node's budget as they
//! arrive.

use std::sync::Arc;

use axum::{
    body::BodyDataStream,
    extract::Request,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use flotilla_api::ProblemType;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::{
    App,
    client::{ClientConnection, Phase},
    guard::RequestSlot,
    problem::Refusal,
};
use crate::{Charge, Pace};

/// Longest JSON body except a batch.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1024;
/// Longest body of a batch. Its decoded bytes may be half of that, which leaves room for base64 and field
/// names.
pub(super) const BATCH_BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A body in memory, counted until it is dropped.
pub(super) struct BufferedBody {
    pub(super) bytes: Bytes,
    pub(super) charge: Charge,
}

/// Reads a body of at most `bytes_max`, or refuses it as `too_large`. What a refusal leaves unread is up to
/// [`exchange`](super::exchange::exchange).
pub(super) async fn read(
    app: &App,
    request: Request,
    bytes_max: usize,
    too_large: ProblemType,
    deadline: Instant,
) -> Result<BufferedBody, Refusal> {
    let client = ClientConnection::of(&request)?;
    let slot = request.extensions().get::<Arc<RequestSlot>>().cloned();
    let length = announced(request.headers());
    if length.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(ReadError::TooLong.refusal(too_large, bytes_max));
    }
    let length = length.and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(slot) = &slot {
        slot.leave();
    }
    client.set_phase(Phase::Body);
    let mut arriving = Arriving {
        client: &client,
        bytes_max,
        length: length.unwrap_or(bytes_max),
        pace: app.config.body_pace,
        deadline,
        whole: Vec::new(),
        charge: client.account.charge(0),
    };
    let mut stream = request.into_body().into_data_stream();
    let ended = tokio::select! {
        ended = arriving.collect(&mut stream) => ended,
        () = client.account.closing() => Err(ReadError::Busy),
    };
    client.set_phase(Phase::Working);
    ended.map_err(|error| error.refusal(too_large, bytes_max))?;
    if let Some(slot) = &slot {
        slot.return_to()?;
    }
    Ok(BufferedBody { bytes: arriving.whole.into(), charge: arriving.charge })
}

/// Reads a JSON body of at most [`JSON_BYTES_MAX`].
pub(super) async fn read_json<T: DeserializeOwned>(
    app: &App,
    request: Request,
    deadline: Instant,
) -> Result<T, Refusal> {
    let body = read(app, request, JSON_BYTES_MAX, ProblemType::BodyTooLarge, deadline).await?;
    parse_json(&body.bytes)
}

/// Parses JSON; the refusal says where it is wrong.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(ProblemType::MalformedRequest, format!("JSON: {error}")))
}

/// The length of a body, if the client says it.
pub(super) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why a body was not read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    TooLong,
    Broken,
    Late,
    Slow,
    Busy,
}

impl ReadError {
    /// The answer to a request whose body may have so many bytes.
    pub(super) fn refusal(self, too_large: ProblemType, bytes_max: usize) -> Refusal {
        match self {
            Self::TooLong => Refusal::new(too_large, format!("the body may have at most {bytes_max} bytes")),
            Self::Broken => Refusal::new(ProblemType::MalformedRequest, "the body ended early or is malformed"),
            Self::Late => Refusal::new(ProblemType::RequestTimeout, "the body did not arrive before the deadline"),
            Self::Slow => Refusal::new(ProblemType::RequestTimeout, "the body arrives too slowly"),
            Self::Busy => Refusal::busy("the clients of this node hold too many bytes"),
        }
    }
}

/// A body as far as it has arrived.
struct Arriving<'a> {
    client: &'a ClientConnection,
    bytes_max: usize,
    /// Bytes that are expected, at most.
    length: usize,
    pace: Pace,
    deadline: Instant,
    whole: Vec<u8>,
    /// The capacity of `whole`.
    charge: Charge,
}

impl Arriving<'_> {
    async fn collect(&mut self, stream: &mut BodyDataStream) -> Result<(), ReadError> {
        let mut started = Instant::now();
        self.client.account.waits_for_client();
        loop {
            let due = self.pace.deadline(started, self.whole.len());
            let chunk = match timeout_at(due.min(self.deadline), stream.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(chunk)) => chunk.map_err(|_| ReadError::Broken)?,
                Err(_) if due < self.deadline => return Err(ReadError::Slow),
                Err(_) => return Err(ReadError::Late),
            };
            let needed = self.whole.len() + chunk.len();
            if needed > self.bytes_max {
                return Err(ReadError::TooLong);
            }
            if needed > self.whole.capacity() {
                let waits_since = Instant::now();
                self.grow(needed).await?;
                started += waits_since.elapsed();
            }
            self.whole.extend_from_slice(&chunk);
        }
    }

    /// Makes room in the budget, then in memory. Doubles, so that a large body is not copied often, but does
    /// not go beyond what the client announced.
    async fn grow(&mut self, needed: usize) -> Result<(), ReadError> {
        let capacity = (2 * self.whole.capacity()).min(self.length).max(needed);
        let more = capacity - self.whole.capacity();
        timeout_at(self.deadline, self.client.account.room(more)).await.map_err(|_| ReadError::Busy)?;
        self.charge.set(capacity);
        self.whole.reserve_exact(capacity - self.whole.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use axum::body::Body;
    use futures_util::stream;
    use tokio::time::sleep;

    use super::{
        super::{HttpConfig, slots::Slots},
        *,
    };
    use crate::{CLIENT_BYTES_MIN, ClientBudget};

    const LENIENT: Pace = Pace { grace: Duration::from_secs(30), bytes_per_second_min: 1 };
    const STRICT: Pace = Pace { grace: Duration::from_millis(50), bytes_per_second_min: 1 << 30 };

    fn client(budget: &ClientBudget) -> Arc<ClientConnection> {
        let slots = Slots::new(&HttpConfig::default());
        slots.admit(budget, Ipv4Addr::LOCALHOST.into()).expect("a slot")
    }

    fn arriving(client: &ClientConnection, bytes_max: usize) -> Arriving<'_> {
        Arriving {
            client,
            bytes_max,
            length: bytes_max,
            pace: LENIENT,
            deadline: Instant::now() + Duration::from_secs(30),
            whole: Vec::new(),
            charge: client.account.charge(0),
        }
    }

    /// A body of so many parts, one every 10 ms.
    fn slow(parts: usize) -> BodyDataStream {
        let parts = stream::iter(0..parts).then(|_| async {
            sleep(Duration::from_millis(10)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(&[1; 5]))
        });
        Body::from_stream(parts).into_data_stream()
    }

    #[tokio::test]
    async fn a_body_is_refused_above_its_limit_and_not_at_it() {
        let budget = ClientBudget::new(CLIENT_BYTES_MIN);
        let client = client(&budget);
        let stream = |bytes: usize| Body::from(vec![1; bytes]).into_data_stream();
        let mut body = arriving(&client, 10);
        assert_eq!(body.collect(&mut stream(10)).await, Ok(()));
        assert_eq!((body.whole.len(), budget.held()), (10, 10));
        assert_eq!(arriving(&client, 10).collect(&mut stream(11)).await, Err(ReadError::TooLong));
        drop(body);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_body_must_keep_its_pace_and_its_deadline() {
        let budget = ClientBudget::new(CLIENT_BYTES_MIN);
        let client = client(&budget);
        let endless = usize::MAX;
        assert_eq!(arriving(&client, 1 << 20).collect(&mut slow(20)).await, Ok(()));
        let mut strict = Arriving { pace: STRICT, ..arriving(&client, 1 << 20) };
        assert_eq!(strict.collect(&mut slow(endless)).await, Err(ReadError::Slow));
        let deadline = Instant::now() + Duration::from_millis(50);
        let mut late = Arriving { deadline, ..arriving(&client, 1 << 20) };
        assert_eq!(late.collect(&mut slow(endless)).await, Err(ReadError::Late));
    }

    #[tokio::test]
    async fn a_body_waits_for_room_in_the_budget() {
        let budget = ClientBudget::new(CLIENT_BYTES_MIN);
        let (client, other) = (client(&budget), budget.open());
        let held = other.charge(CLIENT_BYTES_MIN);
        other.works();
        let mut body = arriving(&client, 1 << 20);
        let mut stream = Body::from(vec![1; 1 << 20]).into_data_stream();
        let collected = body.collect(&mut stream);
        tokio::pin!(collected);
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(timeout_at(soon, &mut collected).await.is_err(), "there is no room");
        drop(held);
        assert_eq!(collected.await, Ok(()));
    }
}
