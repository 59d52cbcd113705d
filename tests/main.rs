//! All integration tests in one binary, a file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases have the types they have")]
#![allow(unreachable_pub, missing_docs, clippy::print_stdout, reason = "tests are nobody's library")]

mod api;
#[cfg(target_os = "macos")]
mod apple;
mod batch;
mod bench;
mod bits;
mod catalogue;
mod cli;
mod cluster;
mod cluster_file;
mod control;
mod damage;
mod demo;
mod errors;
mod fake_checkpoint;
mod fake_hub;
mod fuzz;
mod hub;
mod kernels;
mod lab;
mod layers;
mod models;
mod quantise;
mod ranks;
mod rdma;
mod rdma_lab;
mod scheduler;
mod serve;
mod shares;
mod slow;
mod ssh;
mod support;
mod text;
mod thunderbolt;
mod tidy;
mod transport;
mod verbs;
