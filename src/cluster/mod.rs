//! What ties machines together and brings a model to them.

pub mod agent;
mod config;
pub mod devices;
pub mod facts;
pub mod finding;
pub mod fleet;
pub mod hub;
pub mod local;
pub mod run;
pub mod ssh;
pub mod thunderbolt;
pub mod ticket;

pub use config::{Cluster, Host, Parallel, Timeouts, Topology, Transport, json_schema};
