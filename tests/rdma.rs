//! RDMA over the fake verbs library: what cannot be set up, what goes wrong on the way, whole runs, and nothing left.

mod cycles;
mod exits;
mod faults;
mod runs;
mod setup;
mod slips;
