//! A value that is stored while its body arrives: a body of any length within the limit takes the same memory.
//!
//! Its pace bounds how long it may take; the deadline of the request begins when it has arrived. What is kept of it
//! in memory counts on the node's budget, and is stored when the client has sent nothing for a while.

use std::{future::Future, sync::Arc};

use axum::{body::BodyDataStream, extract::Request};
use bytes::{Bytes, BytesMut};
use flotilla_api::{LARGE_VALUE_BYTES_MAX, ProblemType};
use flotilla_kv::Content;
use futures_util::StreamExt as _;
use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::{
    App,
    body::{ReadError, announced},
    client::{ClientConnection, Phase},
    guard::RequestSlot,
    problem::Refusal,
};
use crate::{
    Charge, Pace,
    store::{Hold, ValueRules, ValueWriter},
};

/// After so long without a byte, what has arrived is stored.
const QUIET: Duration = Duration::from_millis(500);
/// How long a value waits for its room in the node's budget.
const ROOM_WITHIN: Duration = Duration::from_secs(10);

/// A value that has arrived, and what holds its objects.
pub(super) struct Arrived {
    pub(super) content: Content,
    pub(super) hold: Option<Hold>,
    pub(super) charge: Charge,
}

/// Receives a value. What a refusal leaves unread is up to [`exchange`](super::exchange::exchange).
pub(super) async fn receive(app: &App, rules: ValueRules, request: Request) -> Result<Arrived, Refusal> {
    let client = ClientConnection::of(&request)?;
    let slot = request.extensions().get::<Arc<RequestSlot>>().cloned();
    let refusal = |error: ReadError| error.refusal(ProblemType::ValueTooLarge, LARGE_VALUE_BYTES_MAX);
    if announced(request.headers()).is_some_and(|bytes| bytes > LARGE_VALUE_BYTES_MAX as u64) {
        return Err(refusal(ReadError::TooLong));
    }
    if let Some(slot) = &slot {
        slot.leave();
    }
    client.set_phase(Phase::Body);
    let mut body = Body {
        client: &client,
        stream: request.into_body().into_data_stream(),
        pace: app.config.body_pace,
        started: Instant::now(),
        bytes: 0,
    };
    let received = tokio::select! {
        received = body.receive(app, rules) => received,
        () = client.account.closing() => Err(refusal(ReadError::Busy)),
    };
    client.set_phase(Phase::Working);
    let received = received?;
    if let Some(slot) = &slot {
        slot.return_to()?;
    }
    Ok(received)
}

/// A body as far as it has arrived.
struct Body<'a> {
    client: &'a ClientConnection,
    stream: BodyDataStream,
    pace: Pace,
    started: Instant,
    bytes: usize,
}

/// What came.
enum Event {
    Bytes(Bytes),
    /// Nothing, for a while.
    Quiet,
    End,
}

impl Body<'_> {
    async fn receive(&mut self, app: &App, rules: ValueRules) -> Result<Arrived, Refusal> {
        let refusal = |error: ReadError| error.refusal(ProblemType::ValueTooLarge, LARGE_VALUE_BYTES_MAX);
        let mut start = BytesMut::new();
        let mut charge = self.client.account.charge(0);
        self.client.account.waits_for_client();
        // A short value stays as it is.
        while start.len() as u64 <= rules.objects_from {
            match self.next().await.map_err(refusal)? {
                Event::Bytes(bytes) => {
                    let room = self.client.account.room(bytes.len());
                    self.work(timeout(ROOM_WITHIN, room)).await.map_err(|_| refusal(ReadError::Busy))?;
                    charge.set(start.len() + bytes.len());
                    start.extend_from_slice(&bytes);
                }
                Event::Quiet => {}
                Event::End => return Ok(Arrived { content: Content::Inline(start.freeze()), hold: None, charge }),
            }
        }
        let held = ValueWriter::bytes_held_max(rules.chunking);
        // The start is given up once it is pushed.
        let room = self.client.account.room(held);
        self.work(timeout(ROOM_WITHIN, room)).await.map_err(|_| refusal(ReadError::Busy))?;
        charge.set(held + start.len());
        let mut writer = app.store.value_writer(rules, LARGE_VALUE_BYTES_MAX as u64)?;
        self.work(writer.push(start.freeze())).await?;
        charge.set(held);
        loop {
            match self.next().await.map_err(refusal)? {
                Event::Bytes(bytes) => self.work(writer.push(bytes)).await?,
                Event::Quiet => self.work(writer.settle()).await?,
                Event::End => break,
            }
        }
        self.client.account.works();
        let (value, hold) = writer.finish().await?;
        hold.sync().await?;
        charge.set(0);
        Ok(Arrived { content: Content::Large(value), hold: Some(hold), charge })
    }

    async fn next(&mut self) -> Result<Event, ReadError> {
        let due = self.pace.deadline(self.started, self.bytes);
        let quiet = Instant::now() + QUIET;
        match timeout_at(due.min(quiet), self.stream.next()).await {
            Ok(None) => Ok(Event::End),
            Ok(Some(bytes)) => {
                let bytes = bytes.map_err(|_| ReadError::Broken)?;
                self.bytes += bytes.len();
                if self.bytes > LARGE_VALUE_BYTES_MAX { Err(ReadError::TooLong) } else { Ok(Event::Bytes(bytes)) }
            }
            Err(_) if quiet < due => Ok(Event::Quiet),
            Err(_) => Err(ReadError::Slow),
        }
    }

    /// Does work of the node, whose time the client does not have to make up for.
    async fn work<T>(&mut self, work: impl Future<Output = T>) -> T {
        let since = Instant::now();
        self.client.account.works();
        let done = work.await;
        self.client.account.waits_for_client();
        self.started += since.elapsed();
        done
    }
}
