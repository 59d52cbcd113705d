//! `tbshard serve` as its clients meet it: the program itself, on a port of its own, with the demo model.

mod clients;
mod endpoints;
mod gate;
mod hosts;
mod leaving;
mod limits;
mod load;
mod ranks;
mod rooms;

pub use clients::{Server, soon};
