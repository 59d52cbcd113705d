//! A model that is ready to run: its decoder, where its weights came from, and what identifies it.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::common::bad_config;
use super::mlx::{Conversion, Files, Progress, Quantised, Target};
use super::quantisation::Quantisation;
use super::{Architecture, Geometry, demo, read_config};
use crate::backend::KvType;
use crate::error::{Context, Error, Result};
use crate::nn::{Decoder, Loader, refuse_unused};
use crate::partition::{Group, Layout, Plan, Sizes};
use crate::weights::{
    Checkpoint, Coding, Compressed, Formats, Invented, Listing, Matrix, Mlx, Outline, Random, Share, Source, Stored,
    TensorInfo, hex,
};

/// A model before it is loaded: what it is, and where its weights are.
pub struct Blueprint {
    /// Its sizes.
    pub geometry: Geometry,
    /// SHA-256 of config, file names, sizes and headers: equal on ranks that read the same model.
    pub digest: String,
    architecture: Box<dyn Architecture>,
    config: Value,
    source: Box<dyn Source>,
    // the directory, where there is one
    place: String,
    kv: KvType,
}

/// A model, or the part of it that a rank runs.
pub struct Model {
    /// The layers.
    pub decoder: Decoder,
    /// The sizes of the whole.
    pub geometry: Geometry,
    /// SHA-256 of config, file names, sizes and headers: equal on ranks that read the same model.
    pub digest: String,
    /// What this rank owns of the weights; the rows of an embedding that are looked up come on top of its bytes.
    pub share: Share,
    /// Bytes of all weights, those that several ranks own counted once.
    pub whole: u64,
    /// Whether a sequence leaves more behind than pages of the KV cache, on whatever rank.
    pub recurrent: bool,
    pub(super) source: Box<dyn Source>,
    // that no backend was given yet
    pub(super) weights: Vec<Matrix>,
    // bytes that a backend has copied
    pub(super) copied: u64,
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
        let source: Box<dyn Source> = match Quantisation::read(&config).context(&place)? {
            Quantisation::Mlx(formats) => Box::new(Mlx::new(checkpoint, formats)),
            Quantisation::PackedInt4 => Box::new(Compressed::new(checkpoint)),
            _ if checkpoint.is_mlx() => Box::new(Mlx::new(checkpoint, Formats::default())),
            _ => Box::new(checkpoint),
        };
        Self::of(&config, source, digest, place.clone()).context(place)
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
        let kind = match Quantisation::read(&config)? {
            Quantisation::None => Invented::Bf16,
            Quantisation::BlockFp8 => Invented::BlockFp8,
            Quantisation::PackedInt4 => Invented::Int4Experts,
            Quantisation::Mlx(_) => {
                let error = Error::msg("weights of MLX's packed formats cannot be invented");
                return Err(error.hint("name the model that is not quantised, and --quantize"));
            }
        };
        let random = Random::new(seed, kind);
        let digest = random.digest(config.to_string().as_bytes());
        Self::of(&config, Box::new(random), digest, "random weights".to_owned())
    }

    fn of(config: &Value, source: Box<dyn Source>, digest: String, place: String) -> Result<Self> {
        let architecture = read_config(config)?;
        let (geometry, config) = (architecture.geometry(), config.clone());
        Ok(Self { geometry, digest, architecture, config, source, place, kv: KvType::default() })
    }

    /// The same model on ranks that keep keys and values as `kv`, which plans reckon with: f32 if nothing is said.
    #[must_use]
    pub fn keeping(self, kv: KvType) -> Self {
        Self { kv, ..self }
    }

    /// What it becomes when all matrices that can be are quantised by `coding`. Nothing is read but headers.
    ///
    /// # Errors
    /// If it is quantised already, or as [`Blueprint::load`].
    pub fn conversion(&self, coding: Coding) -> Result<Conversion> {
        let architecture = self.architecture.as_ref();
        Conversion::new(architecture, &self.config, self.source.as_ref(), coding).context(&self.place)
    }

    /// The same model, quantised by `coding` while it is loaded: its logits have the bits of the directory that
    /// [`Blueprint::convert`] would write. `threads` work on it.
    ///
    /// # Errors
    /// As [`Blueprint::conversion`].
    pub fn quantised(self, coding: Coding, threads: usize) -> Result<Self> {
        let conversion = self.conversion(coding)?;
        let mut hash = Sha256::new();
        hash.update(&self.digest);
        hash.update(conversion.describe());
        let source = Box::new(Quantised::new(self.source, conversion, threads));
        Ok(Self { source, digest: hex(hash), ..self })
    }

    /// Writes the model to a directory as `conversion` has it; `dir` is where it is, and `copied` are its files that need
    /// no conversion. Returns the number of files with weights, and of those that an earlier attempt had finished.
    ///
    /// # Errors
    /// Naming the file or tensor that is wrong, or saying that the disk is full or that it was interrupted.
    pub fn convert(
        &self,
        conversion: &Conversion,
        dir: Option<&Path>,
        copied: Vec<(String, Vec<u8>)>,
        target: Target<'_>,
        progress: &dyn Progress,
    ) -> Result<(usize, usize)> {
        let files = Files { config: self.config.clone(), copied };
        conversion.write(self.source.as_ref(), (dir, &self.digest), &files, target, progress)
    }

    /// Plans its ranks so that none holds more than `layout` allows, with room for the state of `pages` pages of the KV
    /// cache and `slots` sequences.
    ///
    /// # Errors
    /// As [`Plan::new`] and [`Plan::within`]: nothing that the layout leaves open fits.
    pub fn plan(&self, layout: &Layout, pages: usize, slots: usize) -> Result<Plan> {
        let Geometry { layers, heads, .. } = self.geometry;
        if layout.memory.is_empty() {
            return Plan::new(layers, heads, layout);
        }
        let mut refused = None;
        for candidate in layout.candidates(layers, heads)? {
            let plan = Plan::new(layers, heads, &candidate)?;
            let sizes = self.sizes(&plan, pages, slots)?;
            match plan.within(&candidate, &sizes) {
                Ok(plan) => return Ok(plan),
                Err(error) => refused.get_or_insert(error),
            };
        }
        Err(refused.unwrap_or_else(|| Error::msg("there is no layout to try")))
    }

    /// What rank `rank` of `plan` would own. Nothing is read but headers.
    ///
    /// # Errors
    /// Naming the file and tensor that is wrong.
    pub fn share(&self, plan: &Plan, rank: usize) -> Result<Share> {
        self.outline(plan, rank).map(|(_, share)| share)
    }

    /// What every rank of `plan` would hold of every layer, weights and the state of `pages` pages and `slots` sequences.
    ///
    /// # Errors
    /// As [`Blueprint::share`].
    pub fn sizes(&self, plan: &Plan, pages: usize, slots: usize) -> Result<Vec<Sizes>> {
        // stages of equal weights are alike
        let mut known: Vec<(Group, Sizes)> = Vec::new();
        let mut all = Vec::new();
        for rank in 0..plan.world_size() {
            let group = plan.seat(rank).group;
            let sizes = match known.iter().find(|(other, _)| *other == group) {
                Some((_, sizes)) => sizes.clone(),
                None => {
                    let (decoder, share) = self.outline(&plan.alone(plan.stage_of(rank)), group.rank())?;
                    let sizes = self.sizes_of(&decoder, &share, pages, slots);
                    known.push((group, sizes.clone()));
                    sizes
                }
            };
            all.push(sizes);
        }
        Ok(all)
    }

    fn sizes_of(&self, decoder: &Decoder, share: &Share, pages: usize, slots: usize) -> Sizes {
        let state = decoder.blocks.iter().map(|block| block.mixer.state_bytes(pages, slots, self.kv));
        let mut sizes = Sizes { layers: state.collect(), first: 0, last: 0 };
        for piece in share.pieces() {
            match piece.layer {
                Some(layer) => sizes.layers[layer] += piece.bytes(),
                None if !piece.looked_up => sizes.last += piece.bytes(),
                // of a mapped table only the pages that are looked up come into memory
                None if self.source.kind().is_in_memory() => sizes.first += piece.bytes(),
                None => {}
            }
        }
        sizes
    }

    fn outline(&self, plan: &Plan, rank: usize) -> Result<(Decoder, Share)> {
        let outline = Outline::new(self.source.as_ref());
        let loader = Loader::new(&outline, (plan, rank), &|_, _| ());
        let decoder = self.architecture.load(&loader).context(&self.place)?;
        Ok((decoder, loader.taken().0))
    }

    /// Every tensor that it is made of, as it is stored. Nothing is read but headers.
    ///
    /// # Errors
    /// Naming the file and tensor that is wrong.
    pub fn tensors(&self) -> Result<Vec<TensorInfo>> {
        let listing = Listing::new(self.source.as_ref());
        let plan = Plan::solo(self.geometry.layers);
        self.architecture.load(&Loader::new(&listing, (&plan, 0), &|_, _| ())).context(&self.place)?;
        Ok(listing.noted().stored.into_values().collect())
    }

    /// Whether its weights are made in memory rather than mapped.
    pub fn is_in_memory(&self) -> bool {
        self.source.kind().is_in_memory()
    }

    /// The model's config.json, cut to the layers that it has.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The stored tensor `info`.
    ///
    /// # Errors
    /// If it is missing.
    pub fn tensor(&self, info: &TensorInfo) -> Result<Stored> {
        self.source.get(&info.name, &info.shape)
    }

    /// Loads what rank `rank` of `plan` owns.
    ///
    /// # Errors
    /// Naming the file and tensor that is wrong.
    pub fn load(self, plan: &Plan, rank: usize, progress: LoadProgress<'_>) -> Result<Model> {
        let loader = Loader::new(self.source.as_ref(), (plan, rank), progress);
        let decoder = self.architecture.load(&loader).context(&self.place)?;
        let (share, weights) = loader.taken();
        // a stage of a pipeline does not meet the tensors of the others
        let others = plan.world_size() > 1;
        let whole = others.then(|| self.outline(&Plan::solo(self.geometry.layers), 0)).transpose()?;
        let recurrent = whole.as_ref().map_or(&decoder, |(decoder, _)| decoder).is_recurrent();
        let whole = whole.map(|(_, share)| share);
        let skips = |name: &str| self.architecture.skips(name);
        refuse_unused(self.source.as_ref(), whole.as_ref().unwrap_or(&share), &skips).context(&self.place)?;
        let whole = whole.as_ref().unwrap_or(&share).bytes();
        let (geometry, digest, source) = (self.geometry, self.digest, self.source);
        Ok(Model { decoder, geometry, digest, share, whole, recurrent, source, weights, copied: 0 })
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
        let taken: Vec<String> = self.share.tensors().map(|(name, _)| name.to_owned()).collect();
        match self.source.find_nan(&taken) {
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
