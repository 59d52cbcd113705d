//! Who owns what of any model on any layout, and that it makes no difference to a single bit.

mod bits;
mod cover;
mod heads;
mod invented;
mod memory;
mod outline;
mod packed;
mod shapes;
