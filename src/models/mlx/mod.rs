//! A model as mlx_lm would convert it: its tensors, their names and order, what is quantised and how; in memory or on disk.
//!
//! What differs between architectures is a [`Conventions`] that each of them gives. The rest holds for all: every matrix
//! whose columns are whole groups is quantised, norms around one have the one added (in the type they are stored in),
//! a convolution is turned, the experts of a layer are stacked, latent attention's keys and values are parted, a head that
//! is the embedding is left out, and everything is first rounded to the type that config.json names. Block-FP8 becomes bf16
//! first, also where mlx_lm does not read it; experts that are published in four bits stay as they are.

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
pub(super) use names::NORMS_LAST;
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
    /// The head is the embedding, and left out.
    pub tied: bool,
    /// The head's name where the embedding serves as one and mlx_lm's version needs one of its own.
    pub copied_head: Option<&'static str>,
    /// Values of a key and of a value of latent attention that `kv_b_proj` makes, which mlx_lm has apart.
    pub latent: Option<(usize, usize)>,
    /// Routers and gates of shared experts have 8 bits in groups of 64, however the rest is quantised; or stay as they are.
    pub fine_routers: bool,
    /// How names end of tensors that keep the type they are stored in.
    pub uncast: &'static [&'static str],
    /// The parts of a layer, in the order that mlx_lm has them.
    pub parts: &'static [&'static str],
    /// The modules (and what is in none) of a part, likewise.
    pub modules: &'static [&'static str],
    /// The `model_type` under which mlx_lm knows the architecture, as the `text_config` of one that is called this.
    pub wrapper: Option<&'static str>,
}

impl Conventions {
    /// Those of a decoder that both sides call the same.
    pub const PLAIN: Self = Self {
        prefixes: &[],
        centre: Centre::Zero,
        tied: false,
        copied_head: None,
        latent: None,
        fine_routers: false,
        uncast: &[],
        parts: names::PARTS,
        modules: names::MODULES,
        wrapper: None,
    };
}
