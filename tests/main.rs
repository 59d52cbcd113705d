//! All integration tests in one binary, a file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod catalogue;
mod models;
mod support;
mod text;
