//! The control channel: heartbeats, reports of trouble, and one decision that every rank ends with.
//!
//! Each rank has a thread of its own for it, with one stream to rank 0 (rank 0: one to each other rank). The rules are a
//! state machine, [`Control`], that a driver feeds and drains; time is a [`std::time::Duration`] since any epoch.
//!
//! - A rank is *dead* if its stream is lost or nothing came from it for `silent`. Heartbeats come from the control
//!   thread, so a main thread that computes for minutes is slow and not dead.
//! - A rank is *stuck* if its main thread made no progress for `progress` although it has work.
//! - Whoever sees trouble reports it to rank 0, which takes the first cause (a more specific one replaces it during a short
//!   grace), tells everybody, and ends. A rank that cannot hear rank 0 ends by itself and says that it is its own view.
//!
//! **Invariant:** no socket, clock, thread or randomness in here: a simulator drives the very same code.

mod activity;
mod cause;
mod monitor;
mod peer;
mod protocol;
mod rules;
mod stuck;
mod wire;

pub use activity::{Activity, MAX_TEXT, Operation};
pub use cause::{Cause, CauseKind, Failure, Loss};
pub use monitor::Monitor;
pub use protocol::{Action, Control, Deadlines};
pub use wire::{Frame, MAX_FRAME};
