//! A model that is ready to run: its decoder, where its weights came from, and what identifies it.

use std::path::Path;

use serde_json::Value;

use super::common::bad_config;
use super::quantisation::Quantisation;
use super::{Architecture, Geometry, demo, read_config};
use crate::error::{Context, Error, Result};
use crate::nn::{Decoder, Loader};
use crate::partition::Plan;
use crate::weights::{Checkpoint, Random, Source};

/// A model before it is loaded: what it is, and where its weights are.
pub struct Blueprint {
    /// Its sizes.
    pub geometry: Geometry,
    /// SHA-256 of config, file names, sizes and headers: equal on ranks that read the same model.
    pub digest: String,
    architecture: Box<dyn Architecture>,
    source: Box<dyn Source>,
    // the directory, where there is one
    place: String,
}

/// A model, or the part of it that a rank runs.
pub struct Model {
    /// The layers.
    pub decoder: Decoder,
    /// The sizes of the whole.
    pub geometry: Geometry,
    /// SHA-256 of config, file names, sizes and headers: equal on ranks that read the same model.
    pub digest: String,
    /// Bytes of weights that this rank owns; the rows of an embedding that are looked up come on top.
    pub bytes: usize,
    source: Box<dyn Source>,
    taken: Vec<String>,
}

/// Told how many layers of how many are loaded.
pub type LoadProgress<'a> = &'a (dyn Fn(usize, usize) + Sync);

impl Blueprint {
    /// The model in `dir`: config.json and safetensors, which stay mapped.
    ///
    /// # Errors
    /// Naming the file or key that is wrong.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|error| {
            let error = Error::from_std(error).context(format!("`{}`", path.display()));
            error.hint("a model directory holds config.json, tokenizer.json and *.safetensors")
        })?;
        let config = parse_json(&path, &text)?;
        let checkpoint = Checkpoint::open(dir)?;
        let digest = checkpoint.digest(&text);
        let place = format!("`{}`", dir.display());
        Self::of(&config, Box::new(checkpoint), digest, place.clone()).context(place)
    }

    /// The model that the binary carries.
    ///
    /// # Errors
    /// If the binary is damaged.
    pub fn demo() -> Result<Self> {
        let place = "the embedded demo model".to_owned();
        let config = parse_json(demo::NAME.as_ref(), demo::CONFIG.as_bytes())?;
        let checkpoint = Checkpoint::embedded(demo::NAME, demo::WEIGHTS)?;
        let digest = checkpoint.digest(demo::CONFIG.as_bytes());
        Self::of(&config, Box::new(checkpoint), digest, place)
    }

    /// A model of the shape `config`, cut to `layers` layers, with invented weights.
    ///
    /// # Errors
    /// If the config cannot be run, or has fewer layers.
    pub fn random(config: &Value, layers: Option<usize>, seed: u64) -> Result<Self> {
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
        Self::of(&config, Box::new(random), digest, "random weights".to_owned())
    }

    fn of(config: &Value, source: Box<dyn Source>, digest: String, place: String) -> Result<Self> {
        let architecture = read_config(config)?;
        Ok(Self { geometry: architecture.geometry(), digest, architecture, source, place })
    }

    /// Loads what rank `rank` of `plan` owns.
    ///
    /// # Errors
    /// Naming the file and tensor that is wrong.
    pub fn load(self, plan: &Plan, rank: usize, progress: LoadProgress<'_>) -> Result<Model> {
        let loader = Loader::new(self.source.as_ref(), (plan, rank), progress);
        let decoder = self.architecture.load(&loader).and_then(|decoder| {
            loader.finish(&self.architecture.skipped())?;
            Ok(decoder)
        });
        let (decoder, taken, bytes) = (decoder.context(&self.place)?, loader.taken(), loader.bytes());
        Ok(Model { decoder, geometry: self.geometry, digest: self.digest, bytes, source: self.source, taken })
    }

    /// Loads all of it.
    ///
    /// # Errors
    /// As [`Blueprint::load`].
    pub fn load_whole(self, progress: LoadProgress<'_>) -> Result<Model> {
        let plan = Plan::solo(self.geometry.layers);
        self.load(&plan, 0, progress)
    }
}

impl Model {
    /// Loads the model in `dir`, all of it.
    ///
    /// # Errors
    /// Naming the file, key or tensor that is wrong.
    pub fn open(dir: &Path, progress: LoadProgress<'_>) -> Result<Self> {
        Blueprint::open(dir)?.load_whole(progress)
    }

    /// Invents the weights of a model of the shape `config`, cut to `layers` layers.
    ///
    /// # Errors
    /// If the config cannot be run, or has fewer layers.
    pub fn random(config: &Value, layers: Option<usize>, seed: u64, progress: LoadProgress<'_>) -> Result<Self> {
        Blueprint::random(config, layers, seed)?.load_whole(progress)
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
