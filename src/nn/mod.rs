//! The parallel layers: what a transformer is made of, each knowing how it is cut over ranks.
//!
//! Checkpoints store weights as `[out, in]`. *Column-parallel* layers cut `out`, *row-parallel* layers cut `in` and end
//! in an all_reduce.

mod attention;
mod decoder;
mod delta_net;
mod embedding;
mod exchange;
mod kda;
mod latent;
mod linear;
mod loader;
mod mlp;
mod moe;
mod norm;
mod rope;

pub use attention::{Attention, AttentionConfig};
pub use decoder::{Asked, Block, Context, Decoder, FeedForward, Mixer, Observer, Pending};
pub use delta_net::{DeltaConfig, DeltaLayout, GatedDeltaNet};
pub use embedding::{Embedding, Head, Outputs};
pub use kda::{KdaConfig, KimiDeltaAttention};
pub use latent::{LatentAttention, LatentConfig};
pub use linear::{ColumnLinear, RowLinear};
pub use loader::{Loader, refuse_unused};
pub use mlp::Mlp;
pub use moe::{Moe, MoeConfig, Routing, SharedConfig};
pub use norm::{Centre, RmsNorm};
pub use rope::{Rotary, Yarn};
