//! What ties machines together and brings a model to them.

pub mod hub;
pub mod local;
pub mod ssh;
