//! The cluster file: what may stand in one, what may not and how that is said, MLX's hostfiles, and the way back.

mod bad;
mod good;
mod mlx;
mod round_trip;
mod schema;

use tbshard::cluster::Cluster;

/// The cluster that `text` describes.
#[track_caller]
fn read(text: &str) -> Cluster {
    Cluster::parse(text, "cluster.yaml").unwrap_or_else(|error| panic!("{error:?}\n{text}"))
}
