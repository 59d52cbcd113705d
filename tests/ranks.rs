//! The same bits on any number of ranks, however they are arranged and connected.

mod chat;
mod collectives;
mod deaths;
pub mod layouts;
mod processes;
pub use processes::signal;
mod steps;
mod threads;
