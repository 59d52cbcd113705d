//! The program as its users run it: commands, servers, batches, several machines.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases have the types they have")]
#![allow(unreachable_pub, missing_docs, clippy::print_stdout, reason = "tests are nobody's library")]

mod api;
mod batch;
mod bench;
mod cli;
mod cluster;
mod demo;
mod fake_checkpoint;
mod lab;
mod quantise;
mod serve;
mod slow;
mod ssh;
mod thunderbolt;

mod support {
    pub mod files;
    pub mod program;
    pub mod ranks;
    pub mod specimen;
}
