//! The scrub thread.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use flotilla_storage::StateEngine;
use parking_lot::Mutex;

use super::Inbox;
use crate::{
    Input, ScrubConfig, clock,
    work::{ScrubStatus, Scrubber},
};

/// Its status for other threads.
pub(super) type Published = Arc<Mutex<ScrubStatus>>;

enum Order {
    Start,
    Stop,
}

/// Gives orders to the scrub thread.
#[derive(Clone)]
pub(super) struct Orders(mpsc::SyncSender<Order>);

/// Orders that wait for the thread. One to start is enough: further ones would ask for the same pass.
const ORDERS_MAX: usize = 1;

pub(super) fn orders() -> (Orders, Receiver) {
    let (orders, receiver) = mpsc::sync_channel(ORDERS_MAX);
    (Orders(orders), Receiver(receiver))
}

pub(super) struct Receiver(mpsc::Receiver<Order>);

impl Orders {
    /// Begins a pass.
    pub(super) fn start(&self) {
        let _ = self.0.try_send(Order::Start);
    }

    /// Ends the thread after its step.
    pub(super) fn stop(&self) {
        let _ = self.0.send(Order::Stop);
    }
}

pub(super) struct Scrub {
    scrubber: Scrubber,
    published: Published,
    orders: Receiver,
    engine: Arc<dyn StateEngine>,
    inbox: Inbox,
    fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Scrub {
    pub(super) fn new(
        config: ScrubConfig,
        seed: u64,
        orders: Receiver,
        engine: &Arc<dyn StateEngine>,
        inbox: &Inbox,
        fatal: &Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let scrubber = Scrubber::new(config, clock::monotonic_ms(), clock::wall_ms(), seed);
        let published = Arc::new(Mutex::new(scrubber.status().clone()));
        let (engine, inbox, fatal) = (engine.clone(), inbox.clone(), fatal.clone());
        Self { scrubber, published, orders, engine, inbox, fatal }
    }

    pub(super) fn published(&self) -> Published {
        self.published.clone()
    }

    pub(super) fn run(mut self) {
        loop {
            let wait = Duration::from_millis(self.scrubber.due_ms().saturating_sub(clock::monotonic_ms()));
            match self.orders.0.recv_timeout(wait) {
                Ok(Order::Start) => self.scrubber.start(clock::monotonic_ms()),
                Ok(Order::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            let step = self.scrubber.step(clock::monotonic_ms(), clock::wall_ms(), &*self.engine);
            self.publish();
            if let Some(damaged) = step.damaged {
                self.inbox.send(Input::Damaged(damaged));
            }
            if let Some(error) = step.fatal {
                (self.fatal)(&error.to_string());
                return;
            }
        }
    }

    fn publish(&self) {
        let status = self.scrubber.status();
        metrics::counter!("flotilla_scrub_bytes_total").absolute(status.bytes_read_total);
        metrics::counter!("flotilla_scrub_objects_total").absolute(status.objects_total);
        metrics::counter!("flotilla_scrub_objects_damaged_total").absolute(status.damaged_total);
        metrics::counter!("flotilla_scrub_objects_unreadable_total").absolute(status.unreadable_total);
        metrics::gauge!("flotilla_scrub_pass_bytes").set(status.bytes as f64);
        metrics::gauge!("flotilla_scrub_pass_bytes_expected").set(status.bytes_total as f64);
        if let Some(ended_ms) = status.ended_ms {
            metrics::gauge!("flotilla_scrub_last_pass_timestamp_seconds").set(ended_ms as f64 / 1e3);
        }
        self.published.lock().clone_from(status);
    }
}
