//! Where weights come from: safetensors on disk or random numbers, as byte ranges and matrices in storage format.

mod checkpoint;
mod compressed;
mod digest;
mod entries;
mod format;
mod header;
mod index;
mod listing;
mod matrix;
mod mlx;
mod numbers;
mod outline;
mod packed;
mod quantise;
mod random;
mod resident;
mod shard;
mod share;
mod stored;

pub use checkpoint::Checkpoint;
pub use compressed::Compressed;
pub use digest::hex;
pub use format::{Slice, slices};
pub use header::{Header, parse_header};
pub use listing::Listing;
pub use matrix::{FP8_BLOCK, Matrix, Values};
pub use mlx::{Formats, Mlx, mlx_name};
pub use numbers::{Numbers, e4m3};
pub use outline::Outline;
pub use packed::{Coding, Packed};
pub use quantise::{Codes, keep, narrow, quantise, round_to, widen, widened_type};
pub use random::{Invented, Random};
pub use resident::{HOLE, Mapped, joined, read as read_mapped};
pub use shard::{NewShard, NewTensor, remove_partial, shard_bytes, write_file};
pub use share::{Piece, Share};
pub use stored::{Dtype, Source, SourceKind, Stored, TensorInfo};
