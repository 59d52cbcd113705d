//! The library through its C symbols, as programs load it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_docs,
    reason = "tests"
)]

mod data;
mod faults;
mod foreign;
mod happy;
mod layout;
mod setup;
mod support;
