//! The same bits on any number of ranks, however they are arranged and connected.

mod chat;
mod collectives;
mod deaths;
mod layouts;
mod processes;
mod steps;
mod threads;
