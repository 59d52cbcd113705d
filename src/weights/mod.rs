//! Where weights come from: safetensors on disk or random numbers, as byte ranges and matrices in storage format.

mod checkpoint;
mod digest;
mod fp8;
mod header;
mod matrix;
mod outline;
mod random;
mod share;
mod stored;

pub use checkpoint::Checkpoint;
pub use digest::hex;
pub use fp8::{scales_name, scales_shape};
pub use header::{Header, parse_header};
pub use matrix::{FP8_BLOCK, Matrix, Values};
pub use outline::Outline;
pub use random::Random;
pub use share::{Piece, Share};
pub use stored::{Dtype, Source, Stored, TensorInfo};
