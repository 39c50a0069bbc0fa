//! One request and its answer on a connection: what happens to a body that no handler read, and how the bytes
//! of the answer are counted until the client has read them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    http::{HeaderValue, Request, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Duration, timeout};
use tower::ServiceExt as _;

use super::client::{ClientConnection, Phase};
use crate::Charge;

/// Bytes of an unread body that are read and discarded, so that the connection can go on.
const DISCARD_BYTES_MAX: usize = 64 << 10;
/// How long that may take.
const DISCARD_TIME: Duration = Duration::from_secs(1);
/// Smaller parts of answers are not counted: a connection buffers few of them.
const COUNTED_BYTES_MIN: usize = 1 << 10;

/// Answers one request. If the handler left a body unread that is too large to discard, the answer says
/// `connection: close`.
pub(super) async fn exchange(router: Router, request: Request<Incoming>, client: Arc<ClientConnection>) -> Response {
    client.head_ends();
    client.set_phase(Phase::Working);
    let expects_continue = expects_continue(&request);
    let unread = Unread::default();
    let mut request = request.map(|body| if body.is_end_stream() { Body::empty() } else { unread.lend(body) });
    request.extensions_mut().insert(client.clone());
    let mut response = match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if let Some(body) = unread.take()
        && (expects_continue || !discard(body).await)
    {
        client.linger();
        close(&mut response);
    }
    if client.is_reserved() {
        close(&mut response);
    }
    client.set_phase(Phase::Head);
    response.map(|body| Body::new(Answer { body, client }))
}

fn close(response: &mut Response) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Whether the client sends its body only when it is asked to.
fn expects_continue(request: &Request<Incoming>) -> bool {
    request.headers().get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Reads the rest of a body; false if it is too long or too slow.
async fn discard(body: Incoming) -> bool {
    if body.size_hint().lower() > DISCARD_BYTES_MAX as u64 {
        return false;
    }
    let whole = async {
        let mut stream = Body::new(body).into_data_stream();
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return false };
            bytes += chunk.len();
            if bytes > DISCARD_BYTES_MAX {
                return false;
            }
        }
        true
    };
    timeout(DISCARD_TIME, whole).await.unwrap_or(false)
}

/// Where a body comes back to when its handler drops it before its end.
#[derive(Clone, Default)]
struct Unread(Arc<Mutex<Option<Incoming>>>);

impl Unread {
    fn lend(&self, body: Incoming) -> Body {
        Body::new(Lent { body: Some(body), unread: self.clone() })
    }

    fn take(&self) -> Option<Incoming> {
        self.0.lock().take()
    }
}

/// A request's body in the hands of its handler. Empty once it was read to its end.
struct Lent {
    body: Option<Incoming>,
    unread: Unread,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.unread.0.lock() = Some(body);
        }
    }
}

/// An answer whose bytes count on the connection's account until they were sent.
struct Answer {
    body: Body,
    client: Arc<ClientConnection>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let counted = |bytes: Bytes| {
            if bytes.len() < COUNTED_BYTES_MIN {
                return bytes;
            }
            let charge = self.client.account.charge(bytes.len());
            Bytes::from_owner(Counted { bytes, _charge: charge })
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes with their charge.
struct Counted {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
