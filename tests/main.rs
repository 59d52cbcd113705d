//! What is read: models, texts, cluster files, the hub, and the house rules. One of four test binaries, a file a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::type_complexity, reason = "tables of cases have the types they have")]
#![allow(unreachable_pub, missing_docs, clippy::print_stdout, reason = "tests are nobody's library")]

mod bits;
mod catalogue;
mod cluster_file;
mod damage;
mod errors;
mod fake_hub;
mod fuzz;
mod hub;
mod layers;
mod models;
mod text;
mod tidy;

mod support {
    pub mod engine;
    pub mod files;
    pub mod specimen;
    pub mod tiny;
}
