//! etcd as its own clients see it: gRPC over HTTP/2, many requests in flight on one connection.
//!
//! Only what the load needs of the protocol: a unary call is one POST with one length-prefixed protobuf message each way, and
//! `grpc-status` among the trailers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use tokio::{net::TcpStream, runtime::Runtime, task::JoinSet, time::timeout};

use super::load::{Client, Operation};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// In front of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What a read must not miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Nothing that was acknowledged before: confirmed by a quorum.
    Linearizable,
    /// Whatever the asked member has applied.
    Serializable,
}

#[derive(Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

/// One connection.
pub(super) struct EtcdClient {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    authority: String,
    reads: Reads,
}

impl EtcdClient {
    pub(super) fn connect(addr: SocketAddr, reads: Reads) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let requests = runtime.block_on(async {
            let stream = TcpStream::connect(addr).await.with_context(|| format!("cannot connect to {addr}"))?;
            stream.set_nodelay(true)?;
            let (requests, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            anyhow::Ok(requests)
        })?;
        Ok(Self { runtime, requests, authority: addr.to_string(), reads })
    }

    fn request(&self, operation: Operation, key: u64, value: &Bytes) -> Result<(&'static str, Bytes)> {
        let key = Bytes::from(operation.key(key));
        Ok(match operation {
            Operation::Set => ("Put", framed(&PutRequest { key, value: value.clone() })),
            Operation::Get => {
                let serializable = self.reads == Reads::Serializable;
                ("Range", framed(&RangeRequest { key, serializable }))
            }
            Operation::Increment => bail!("etcd has no counters"),
        })
    }
}

impl Client for EtcdClient {
    fn batch(
        &mut self,
        operation: Operation,
        keys: &[u64],
        value: &[u8],
        on_answer: &mut dyn FnMut(Option<String>),
    ) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        let requests: Result<Vec<_>> = keys.iter().map(|key| self.request(operation, *key, &value)).collect();
        let (requests, sender, authority) = (requests?, &self.requests, &self.authority);
        self.runtime.block_on(async {
            let mut calls = JoinSet::new();
            for (method, body) in requests {
                calls.spawn(call(sender.clone(), authority.clone(), method, body));
            }
            while let Some(called) = timeout(ANSWER_WITHIN, calls.join_next()).await.context("etcd does not answer")? {
                on_answer(called??);
            }
            Ok(())
        })
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

/// One unary call; the message of the status when it is a refusal.
async fn call(
    requests: SendRequest<Bytes>,
    authority: String,
    method: &'static str,
    body: Bytes,
) -> Result<Option<String>> {
    let mut requests = requests.ready().await?;
    let request = http::Request::post(format!("http://{authority}/etcdserverpb.KV/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = requests.send_request(request, false)?;
    stream.send_data(body, true)?;
    let response = response.await?;
    ensure!(response.status() == http::StatusCode::OK, "etcd answers {}", response.status());
    // A refusal may come without a body, its status among the headers.
    let mut status = refusal(response.headers());
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    if let Some(trailers) = body.trailers().await? {
        status = status.or_else(|| refusal(&trailers));
    }
    Ok(status)
}

fn refusal(headers: &http::HeaderMap) -> Option<String> {
    let status = headers.get("grpc-status").filter(|status| *status != "0")?;
    Some(format!("{status:?} {:?}", headers.get("grpc-message")))
}
