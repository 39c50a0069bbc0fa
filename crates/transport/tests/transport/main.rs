//! Transports in one process over loopback. The system assigns the ports; nothing sleeps, every wait is for
//! an event and has a generous timeout.

mod calls;
mod frames;
mod harness;
mod hostile;
mod join;
mod peers;
