//! How large a model is, and how many bytes of it a token of an answer has to read.

use serde_json::Value;

use super::measure::{Kind, Test};
use crate::backend::PAGE;
use crate::cli::load::{ModelArgs, Opened};
use crate::error::Result;
use crate::models::Blueprint;
use crate::partition::{Plan, Sizes};
use crate::weights::{Piece, Share};

/// What formats of weights are called in config.json; without them a model's weights are plain.
const FORMATS: [&str; 2] = ["quantization_config", "quantization"];

/// What the modules of routed experts are called: on the hub, and stacked by MLX.
const EXPERTS: [&str; 2] = [".experts.", ".switch_mlp."];

/// The sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    /// Bytes of all weights as they are stored, scales included.
    pub(super) bytes: u64,
    /// Weights, however they are stored.
    pub(super) parameters: u64,
    // bytes of weights that a pass reads that uses all of them: not the table of which a row is looked up
    read: u64,
    // of them, bytes of experts of which a token uses only some, and the share that it uses
    experts: u64,
    used: f64,
    // bytes that a position leaves behind and every later one reads; bytes of a sequence's recurrent state
    position: f64,
    state: f64,
}

impl Shape {
    pub(super) fn of(opened: &Opened, args: &ModelArgs) -> Result<Self> {
        let (blueprint, mut config) = (&opened.blueprint, opened.config()?);
        let plan = Plan::solo(blueprint.geometry.layers);
        let share = blueprint.share(&plan, 0)?;
        let state = |pages, slots| -> Result<u64> { Ok(blueprint.sizes(&plan, pages, slots)?.iter().map(total).sum()) };
        let without = state(0, 0)?;
        let used = chosen(&config);
        make_plain(&mut config);
        let plain = Blueprint::random(&config, args.layers, 0)?.share(&plan, 0)?;
        let experts = |name: &str| used.is_some() && EXPERTS.iter().any(|module| name.contains(module));
        Ok(Self {
            bytes: share.tensors().map(|(name, _)| stored(&share, name)).sum(),
            parameters: plain.tensors().map(|(name, pieces)| stored(&plain, name) / width(pieces)).sum(),
            read: share.bytes(),
            experts: share.tensors().filter(|(name, _)| experts(name)).map(|(name, _)| stored(&share, name)).sum(),
            used: used.unwrap_or(1.0),
            position: (state(1, 0)? - without) as f64 / PAGE as f64,
            state: (state(0, 1)? - without) as f64,
        })
    }

    /// Bytes that a token of an answer must read, a sequence's own and its part of what a batch reads once: the mean over the
    /// answer. Nothing where that is not known: prompts read weights once for many tokens, and which experts a batch
    /// shares is the router's secret.
    pub(super) fn bytes_per_token(&self, test: &Test) -> Option<f64> {
        if test.kind == Kind::Prompt || (self.experts > 0 && test.batch > 1) {
            return None;
        }
        let weights = (self.read - self.experts) as f64 + self.experts as f64 * self.used;
        let positions = test.depth as f64 + (test.tokens as f64 + 1.0) / 2.0;
        Some(weights / test.batch as f64 + self.position * positions + self.state)
    }
}

/// Takes the formats of weights out of a config.json.
fn make_plain(config: &mut Value) {
    let Some(object) = config.as_object_mut() else { return };
    for format in FORMATS {
        object.remove(format);
    }
    object.get_mut("text_config").into_iter().for_each(make_plain);
}

/// All that a rank holds.
fn total(sizes: &Sizes) -> u64 {
    sizes.layers.iter().sum::<u64>() + sizes.first + sizes.last
}

/// Bytes of one of a tensor's values.
fn width(pieces: &[Piece]) -> u64 {
    pieces.first().map_or(1, |piece| piece.dtype.width() as u64)
}

/// The bytes of a tensor that are in use.
fn stored(share: &Share, name: &str) -> u64 {
    share.byte_ranges(name).iter().map(|range| range.end - range.start).sum()
}

/// Which part of its routed experts a token uses, if there are any.
fn chosen(config: &Value) -> Option<f64> {
    let text = config.get("text_config").unwrap_or(config);
    let first = |keys: &[&str]| keys.iter().find_map(|key| text.get(key).and_then(Value::as_f64));
    let all = first(&["num_experts", "n_routed_experts"]).filter(|all| *all > 0.0);
    Some(first(&["num_experts_per_tok", "num_experts_per_token"])? / all?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::models::catalogue;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        model: ModelArgs,
    }

    fn shape(args: &[&str]) -> Shape {
        let all = [&["tbshard", "--weights", "random", "--model"], args].concat();
        let model = Flags::parse_from(all).model;
        Shape::of(&model.open().unwrap(), &model).unwrap()
    }

    fn answer(tokens: usize, depth: usize, batch: usize) -> Test {
        Test { kind: Kind::Answer, tokens, depth, batch }
    }

    #[test]
    fn parameters_are_those_that_publishers_count() {
        // text models whose checkpoints hold no tensor twice
        for name in ["smollm2-135m-instruct", "qwen3-4b", "qwen3-8b", "qwen3-30b-a3b"] {
            let entry = catalogue::find(name).unwrap();
            let shape = shape(&[name]);
            assert_eq!((shape.parameters, shape.bytes), (entry.parameters, 2 * entry.parameters), "{name}");
        }
        // a format changes the bytes, not the weights
        let (plain, fp8) = (shape(&["qwen3.6-27b"]), shape(&["qwen3.6-27b-fp8"]));
        assert_eq!(plain.parameters, fp8.parameters);
        assert!(fp8.bytes < plain.bytes * 7 / 10);
        // of 36 layers the first 9: embedding, head and last norm remain
        let (all, cut) = (shape(&["qwen3-8b"]), shape(&["qwen3-8b", "--layers", "9"]));
        assert_eq!(cut.parameters - (all.parameters - cut.parameters) / 3, 2 * 151_936 * 4096 + 4096);
    }

    #[test]
    fn a_token_reads_every_weight_but_the_embedding_and_what_its_sequence_left_behind() {
        let shape = shape(&["qwen3-8b"]);
        let weights = 2 * (8_190_735_360_u64 - 151_936 * 4096);
        // 36 layers, 8 kv heads of 128, keys and values in f32
        let position = 36 * 8 * 128 * 2 * 4;
        let bytes = |test| shape.bytes_per_token(&test).unwrap();
        assert_eq!(bytes(answer(1, 0, 1)), f64::from(position) + weights as f64);
        assert_eq!(bytes(answer(3, 1000, 1)) - bytes(answer(1, 0, 1)), 1001.0 * f64::from(position));
        assert_eq!(bytes(answer(1, 0, 4)), f64::from(position) + weights as f64 / 4.0);
        assert_eq!(shape.bytes_per_token(&Test { kind: Kind::Prompt, ..answer(1, 0, 1) }), None);
    }

    #[test]
    fn a_cache_in_bf16_is_half_as_large() {
        for name in ["qwen3-8b", "qwen3.6-27b"] {
            let (exact, fast) = (shape(&[name]), shape(&[name, "--arithmetic", "fast"]));
            assert_eq!((fast.position, fast.state), (exact.position / 2.0, exact.state), "{name}");
        }
    }

    #[test]
    fn a_mixture_of_experts_reads_those_that_are_chosen() {
        let shape = shape(&["qwen3-30b-a3b"]);
        // 48 layers of 128 experts, 8 of them chosen, 3 · 2048 · 768 weights each
        let unused = 48 * 120 * 3 * 2048 * 768_u64;
        let weights = 2 * (30_532_122_624 - 151_936 * 2048 - unused);
        let position = 48 * 4 * 128 * 2 * 4;
        assert_eq!(shape.bytes_per_token(&answer(1, 0, 1)), Some(weights as f64 + f64::from(position)));
        assert_eq!(shape.bytes_per_token(&answer(1, 0, 2)), None);
    }

    #[test]
    fn experts_that_mlx_stacks_are_found() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/mlx-qwen3_5_moe-mixed");
        let model = Flags::parse_from(["tbshard", "--model", dir]).model;
        let shape = Shape::of(&model.open().unwrap(), &model).unwrap();
        assert!(shape.experts > shape.read / 10, "{shape:?}");
        assert!(shape.used < 1.0);
    }

    #[test]
    fn a_recurrent_state_is_read_once_a_token_however_long_the_sequence() {
        let shape = shape(&["qwen3.6-27b", "--layers", "3"]);
        assert_eq!(shape.position, 0.0);
        // 3 gated delta nets: 48 v-heads of 128 × 128, and 3 past inputs of 10240 channels
        assert_eq!(shape.state, f64::from(3 * 4 * (48 * 128 * 128 + 3 * 10_240)));
    }
}
