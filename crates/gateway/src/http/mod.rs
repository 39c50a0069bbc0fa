//! The HTTP interface: routes over a [`Store`] and an [`Admin`], and the server that runs them.
//!
//! Every refusal is a problem document, except where the bytes are not an HTTP request at all: then the
//! connection gets a bare status and is closed. Connections, requests, headers, bodies, answers and event
//! streams are all bounded (see [`HttpConfig`]), and their bytes count on the node's
//! [`ClientBudget`](crate::ClientBudget). Deliberately absent: HTTP/2, and any knowledge of shards beyond what
//! errors carry.

mod audit;
mod batch;
mod body;
mod client;
mod cluster;
mod conditional;
mod config;
mod events;
mod exchange;
mod guard;
mod health;
mod host;
#[cfg(test)]
mod hostile;
mod incoming;
mod objects;
mod page;
mod problem;
mod raw;
mod records;
mod routes;
mod rpc;
mod scan;
mod server;
mod slots;
mod stream;
mod values;

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use axum::http::HeaderMap;
use flotilla_api::{ProblemType, TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX, header};
use tokio::{
    sync::{Semaphore, watch},
    time::{Duration, Instant},
};

use crate::{Access, Admin, Store};
pub use config::{HttpConfig, HttpConfigError};
use host::HostNames;
use problem::Refusal;
pub use server::serve;

/// Requests of the administration in progress at the same time.
const ADMIN_REQUESTS_MAX: usize = 64;

/// State shared by all handlers.
#[derive(Clone)]
struct App {
    store: Store,
    admin: Arc<dyn Admin>,
    config: Arc<HttpConfig>,
    access: Arc<Access>,
    rights: Arc<HashMap<&'static str, routes::Rights>>,
    hosts: Arc<HostNames>,
    /// One permit for each request for records in progress.
    requests: Arc<Semaphore>,
    /// The same for the administration, which must work on a node that is busy with records.
    admin_requests: Arc<Semaphore>,
    /// One permit for each open event stream.
    streams: Arc<Semaphore>,
    /// Becomes true when the server stops, which ends event streams.
    stopping: watch::Receiver<bool>,
}

impl App {
    fn new(
        store: Store,
        admin: Arc<dyn Admin>,
        access: Arc<Access>,
        config: Arc<HttpConfig>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            store,
            admin,
            access,
            rights: Arc::new(routes::rights()),
            hosts: Arc::new(HostNames::new(&config.host_names)),
            requests: Arc::new(Semaphore::new(config.requests_max)),
            admin_requests: Arc::new(Semaphore::new(ADMIN_REQUESTS_MAX)),
            streams: Arc::new(Semaphore::new(config.streams_max)),
            stopping,
            config,
        }
    }
}

/// When the answer is due, from the request's header or the default.
fn deadline(headers: &HeaderMap) -> Result<Instant, Refusal> {
    let timeout_ms = match headers.get(header::TIMEOUT_MS) {
        None => TIMEOUT_MS_DEFAULT,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|timeout_ms| (1..=TIMEOUT_MS_MAX).contains(timeout_ms))
            .ok_or_else(|| {
                let detail = format!("{} must be 1 to {TIMEOUT_MS_MAX} milliseconds", header::TIMEOUT_MS);
                Refusal::new(ProblemType::InvalidArgument, detail)
            })?,
    };
    Ok(Instant::now() + Duration::from_millis(timeout_ms))
}

/// Unix milliseconds; 0 on a clock before 1970.
fn unix_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_outside_its_bounds_is_refused() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::TIMEOUT_MS, value.parse().expect("a header value"));
            deadline(&headers)
        };
        assert!(deadline(&HeaderMap::new()).is_ok());
        assert!(with("1").is_ok() && with("60000").is_ok());
        for bad in ["0", "60001", "-1", "soon", ""] {
            assert!(with(bad).is_err_and(|refusal| refusal.kind() == ProblemType::InvalidArgument), "{bad}");
        }
    }
}
