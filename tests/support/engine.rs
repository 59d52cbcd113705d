//! Engines on checkpoints.

use std::path::Path;

use tbshard::backend::{Backend, Cpu};
use tbshard::engine::Engine;
use tbshard::models::Model;

/// Loads the checkpoint in `dir`.
pub fn model(dir: &Path) -> Model {
    Model::open(dir, &|_, _| ()).unwrap_or_else(|error| panic!("{}: {error:?}", dir.display()))
}

/// An engine with `slots` sequences of 512 positions on one thread.
pub fn engine(dir: &Path, slots: usize) -> Engine {
    Engine::new(model(dir), Box::new(Cpu::new(1).unwrap()) as Box<dyn Backend>, 512, slots).unwrap()
}
