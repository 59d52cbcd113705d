//! A device of tbshard's GPU layer on a CPU: the project's Metal kernels, compiled as C++, a fiber a thread.
//!
//! It is strict where a GPU is silent: see `README.md` for what it finds and what it cannot show.

mod device;
mod kernels;
mod memory;
mod queue;

pub use device::{Emulator, Options, Order};
