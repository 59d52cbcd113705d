//! What is computed: every operation, and any model's shares of it on any layout.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases have the types they have")]
#![allow(unreachable_pub, missing_docs, clippy::print_stdout, reason = "tests are nobody's library")]

#[cfg(target_os = "macos")]
mod apple;
mod kernels;
mod shares;

mod support {
    pub mod files;
    pub mod ranks;
    pub mod tiny;
}
