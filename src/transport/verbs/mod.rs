//! RDMA verbs: the C library behind types that end what they begin, in the order it demands. The only unsafe RDMA code.
//!
//! Queue pairs, completion queues and memory regions hold what they were made from, so a device is closed last whatever
//! is dropped first; [`close`] ends them all where nothing is dropped. Memory is a [`Slab`] of slots, each of which belongs
//! either to the program or to the device.

mod abi;
mod device;
mod errors;
mod library;
mod open;
mod port;
mod queue;
mod slab;

pub use abi::{Gid, Layout, Wc, layout};
pub use device::{Batch, Completions, Device, Domain, Limits};
pub use errors::status_text;
pub use library::Library;
pub use open::close;
pub use port::Port;
pub use queue::{Depth, QueuePair, Remote, Service};
pub use slab::Slab;
