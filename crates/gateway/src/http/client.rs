//! What handlers, the stream and the server know of one client connection.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
};

use axum::extract::Request;
use flotilla_api::ProblemType;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::{
    problem::Refusal,
    slots::{GeneralSlot, Slots},
};
use crate::{Account, Charge};

/// Expected size of a connection's first answer with values.
const ANSWER_BYTES_INITIAL: usize = 64 << 10;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// It waits for a request's head, or sends the answer to the last one.
    Head,
    /// It reads a request's body.
    Body,
    /// It works on a request that has arrived.
    Working,
}

/// One connection.
pub(super) struct ClientConnection {
    pub(super) account: Account,
    phase: AtomicU8,
    /// Bytes of a head that has not arrived completely.
    head: Mutex<Charge>,
    /// The client may still be sending when the connection ends.
    lingers: AtomicBool,
    /// Approximately the largest of the recent answers with values.
    answer_bytes: AtomicUsize,
    address: IpAddr,
    slot: Mutex<Option<GeneralSlot>>,
    slots: Arc<Slots>,
}

impl ClientConnection {
    pub(super) fn new(account: Account, address: IpAddr, slot: Option<GeneralSlot>, slots: Arc<Slots>) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Head as u8),
            head: Mutex::new(account.charge(0)),
            lingers: AtomicBool::new(false),
            answer_bytes: AtomicUsize::new(ANSWER_BYTES_INITIAL),
            account,
            address,
            slot: Mutex::new(slot),
            slots,
        }
    }

    /// The connection of a request.
    ///
    /// # Errors
    /// The request came by none, which is a bug of the server.
    pub(super) fn of(request: &Request) -> Result<Arc<Self>, Refusal> {
        let connection = request.extensions().get::<Arc<Self>>().cloned();
        connection.ok_or_else(|| Refusal::new(ProblemType::Unavailable, "the request belongs to no connection"))
    }

    pub(super) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        if phase == Phase::Working {
            self.account.works();
        }
    }

    /// Counts bytes of a head that has not arrived completely.
    pub(super) fn head_grows(&self, bytes: usize) {
        let mut head = self.head.lock();
        let whole = head.bytes() + bytes;
        head.set(whole);
    }

    /// The head has arrived.
    pub(super) fn head_ends(&self) {
        self.head.lock().set(0);
    }

    /// Whether a head has arrived in part.
    pub(super) fn is_mid_head(&self) -> bool {
        self.is(Phase::Head) && self.head.lock().bytes() > 0
    }

    /// Whether no request has arrived.
    pub(super) fn is_silent(&self) -> bool {
        self.is(Phase::Head)
    }

    /// The client may still be sending when the connection ends: what it sends is then discarded for a while.
    pub(super) fn linger(&self) {
        self.lingers.store(true, Ordering::Relaxed);
    }

    /// Whether the end of the connection must wait for the client to stop sending.
    pub(super) fn lingers(&self) -> bool {
        self.lingers.load(Ordering::Relaxed) || self.is_mid_head()
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the connection is beyond the limits of general ones.
    pub(super) fn is_reserved(&self) -> bool {
        self.slot.lock().is_none()
    }

    /// Makes the connection a general one if it is not and a slot is free; whether it is one now.
    pub(super) fn takes_general_slot(&self) -> bool {
        let mut slot = self.slot.lock();
        if slot.is_none() {
            *slot = self.slots.general(self.address);
        }
        slot.is_some()
    }

    /// Waits for room for an answer with values, of the size of recent ones.
    ///
    /// # Errors
    /// There is no room before the deadline.
    pub(super) async fn expect_answer(&self, deadline: Instant) -> Result<Charge, Refusal> {
        let room = timeout_at(deadline, self.account.reserve(self.answer_bytes.load(Ordering::Relaxed))).await;
        self.account.works();
        room.map_err(|_| Refusal::busy("the clients of this node hold too many bytes"))
    }

    /// An answer with values has this size.
    pub(super) fn answered(&self, bytes: usize) {
        let before = self.answer_bytes.load(Ordering::Relaxed);
        self.answer_bytes.store(bytes.max(before / 8 * 7), Ordering::Relaxed);
    }
}
