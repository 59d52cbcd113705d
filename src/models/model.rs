//! A model that is ready to run: its decoder, where its weights came from, and what identifies it.

use std::path::Path;

use serde_json::Value;

use super::common::bad_config;
use super::quantisation::Quantisation;
use super::{Geometry, read_config};
use crate::error::{Context, Error, Result};
use crate::nn::{Decoder, Loader};
use crate::weights::{Checkpoint, Random, Source};

/// A loaded model.
pub struct Model {
    /// The layers.
    pub decoder: Decoder,
    /// Their sizes.
    pub geometry: Geometry,
    /// SHA-256 of config, file names, sizes and headers: equal on ranks that read the same model.
    pub digest: String,
    source: Box<dyn Source>,
    taken: Vec<String>,
}

/// Told how many layers of how many are loaded.
pub type LoadProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

impl Model {
    /// Loads the model in `dir`: config.json and safetensors, which stay mapped.
    ///
    /// # Errors
    /// Naming the file, key or tensor that is wrong.
    pub fn open(dir: &Path, progress: LoadProgress<'_>) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|error| {
            let error = Error::from_std(error).context(format!("`{}`", path.display()));
            error.hint("a model directory holds config.json, tokenizer.json and *.safetensors")
        })?;
        let config = parse_json(&path, &text)?;
        let checkpoint = Checkpoint::open(dir)?;
        let digest = checkpoint.digest(&text);
        Self::load(&config, Box::new(checkpoint), digest, progress).with_context(|| format!("`{}`", dir.display()))
    }

    /// Invents the weights of a model of the shape `config`, cut to `layers` layers.
    ///
    /// # Errors
    /// If the config cannot be run, or has fewer layers.
    pub fn random(config: &Value, layers: Option<usize>, seed: u64, progress: LoadProgress<'_>) -> Result<Self> {
        let mut config = config.clone();
        if let Some(layers) = layers {
            let nested = config.get("text_config").is_some();
            let text = if nested { &mut config["text_config"] } else { &mut config };
            let Some(all) = text.get("num_hidden_layers").and_then(Value::as_u64) else {
                return Err(bad_config("there is no num_hidden_layers that --layers could cut".to_owned()));
            };
            if layers == 0 || layers as u64 > all {
                let error = Error::usage(format!("--layers {layers} is not one of 1..={all}"));
                return Err(error.hint("without --layers all of them are taken"));
            }
            text["num_hidden_layers"] = layers.into();
        }
        // an unknown architecture is the better thing to say than its unknown format
        read_config(&config)?;
        let random = Random::new(seed, Quantisation::read(&config)? == Quantisation::BlockFp8);
        let digest = random.digest(config.to_string().as_bytes());
        Self::load(&config, Box::new(random), digest, progress)
    }

    fn load(config: &Value, source: Box<dyn Source>, digest: String, progress: LoadProgress<'_>) -> Result<Self> {
        let architecture = read_config(config)?;
        let loader = Loader::new(source.as_ref(), progress);
        let decoder = architecture.load(&loader)?;
        loader.finish(&architecture.skipped())?;
        let taken = loader.taken();
        Ok(Self { decoder, geometry: architecture.geometry(), digest, source, taken })
    }

    /// Says why the logits are not numbers: the tensor that holds a NaN, or that none does.
    pub fn explain_nan(&self) -> Error {
        match self.source.find_nan(&self.taken) {
            Some(tensor) => Error::msg(format!("{tensor} holds values that are not numbers"))
                .hint("the file is damaged, fetch it again"),
            None => Error::msg("the logits are not numbers although all weights are")
                .hint("this is a bug, please report it with the model's name"),
        }
    }
}

/// Parses a JSON file that came with a model.
///
/// # Errors
/// Naming the file and the place in it.
pub fn parse_json(path: &Path, text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text)
        .map_err(|error| Error::msg(format!("`{}` is not JSON: {error}", path.display())).hint("fetch that file again"))
}
