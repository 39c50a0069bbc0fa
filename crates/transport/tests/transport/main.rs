//! Transports in one process over loopback. Ports come from the system; nothing sleeps, everything waits for an event
//! within a generous bound.

mod calls;
mod frames;
mod harness;
mod hostile;
mod join;
mod peers;
