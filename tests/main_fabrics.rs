//! Ranks and what connects them: fabrics, the control channel, RDMA, and the same answers on all of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases have the types they have")]
#![allow(unreachable_pub, missing_docs, clippy::print_stdout, reason = "tests are nobody's library")]

mod control;
mod ranks;
mod rdma;
mod rdma_lab;
mod scheduler;
mod transport;
mod verbs;

mod support {
    pub mod engine;
    pub mod files;
    pub mod program;
    pub mod ranks;
    pub mod sending;
    pub mod specimen;
    pub mod tiny;
}
