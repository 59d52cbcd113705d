#![doc = include_str!("README.md")]

pub mod api;
pub mod backend;
pub mod cli;
pub mod cluster;
pub mod comm;
pub mod engine;
pub mod error;
pub mod gpu;
pub mod models;
pub mod nn;
pub mod partition;
pub mod selftest;
pub mod serve;
pub mod text;
pub mod transport;
pub mod weights;
