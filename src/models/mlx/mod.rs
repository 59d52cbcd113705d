//! A model as mlx_lm would convert it: its tensors, their names and order, what is quantised and how; in memory or on disk.
//!
//! What differs between architectures is a [`Conventions`] that each of them gives. The rest holds for all: every matrix
//! whose columns are whole groups is quantised, norms around one have the one added (in the type they are stored in),
//! a convolution is turned, the experts of a layer are stacked, a head that is the embedding is left out, and everything
//! is first rounded to the type that config.json names. mlx_lm does not read block-FP8; here it becomes bf16 first.

mod config;
mod entry;
mod jobs;
mod names;
mod plan;
mod source;
mod state;
mod write;

pub(super) use config::Files;
pub use config::copied_files;
pub use plan::Conversion;
pub use source::Quantised;
pub use write::{Progress, SHARD_BYTES, Target};

use crate::nn::Centre;

/// How mlx_lm's version of an architecture differs from the hub's.
#[derive(Debug, Clone, Copy)]
pub struct Conventions {
    /// How names begin: on the hub, in MLX.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// What the weights of norms (but for the one in a delta net) are relative to on the hub.
    pub centre: Centre,
    /// The head is the embedding.
    pub tied: bool,
    /// Routers and gates of shared experts have 8 bits in groups of 64, however the rest is quantised.
    pub fine_routers: bool,
    /// `A_log` keeps the type it is stored in.
    pub keeps_a_log: bool,
    /// A layer's norms come after its feed-forward layer, in the order of tensors.
    pub norms_last: bool,
    /// The `model_type` under which mlx_lm knows the architecture, as the `text_config` of one that is called this.
    pub wrapper: Option<&'static str>,
}

impl Conventions {
    /// Those of a decoder that both sides call the same.
    pub const PLAIN: Self = Self {
        prefixes: &[],
        centre: Centre::Zero,
        tied: false,
        fine_routers: false,
        keeps_a_log: false,
        norms_last: false,
        wrapper: None,
    };
}
