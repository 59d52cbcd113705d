//! From `--model` to an engine: a directory, a short name, a hub id, or invented weights.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{env, ui};
use crate::backend::Cpu;
use crate::engine::{Defaults, Engine, Sampling};
use crate::error::{Context, Error, Result};
use crate::models::{Model, catalogue, parse_json};
use crate::text::{Template, Tokenizer};

/// Positions a context has when `--ctx` does not say: as many as the model was made for, but not more than this.
const DEFAULT_CONTEXT: usize = 32 * 1024;

/// More threads than this are a slip of the finger, and the standard library aborts where the system refuses one.
const MAX_THREADS: usize = 1024;

/// Which model, and how it is run.
#[derive(Debug, Clone, Args)]
pub(super) struct ModelArgs {
    /// A directory of safetensors, a short name (see `tbshard models`), or a hub id (owner/name)
    #[arg(long, short, value_name = "M", help_heading = "Model")]
    pub(super) model: Option<String>,
    /// The hub's branch, tag or commit
    #[arg(long, value_name = "REV", help_heading = "Model")]
    pub(super) revision: Option<String>,
    /// Where the weights come from: the checkpoint, or invented ones of the model's true shapes
    #[arg(long, value_enum, default_value_t = Weights::Checkpoint, help_heading = "Model")]
    pub(super) weights: Weights,
    /// Run only the first K layers (with --weights random)
    #[arg(long, value_name = "K", help_heading = "Model")]
    pub(super) layers: Option<usize>,
    /// Positions of the context: prompt and answer together [default: the model's, at most 32768]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub(super) ctx: Option<usize>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub(super) threads: Option<usize>,
    /// Show no progress and no statistics
    #[arg(long, short, help_heading = "Output")]
    pub(super) quiet: bool,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Weights {
    /// The model's own.
    Checkpoint,
    /// Invented, of the model's shapes.
    Random,
}

/// A model with all that came with it.
pub(super) struct Loaded {
    pub(super) engine: Engine,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: Option<Template>,
    pub(super) defaults: Defaults,
    directory: Option<PathBuf>,
}

/// What `--model` stands for.
enum Found {
    Directory(PathBuf),
    Entry(Box<catalogue::Entry>),
}

impl ModelArgs {
    /// How many threads run the model.
    pub(super) fn threads(&self) -> Result<usize> {
        match self.threads {
            Some(0) => {
                Err(Error::usage("--threads 0 leaves nobody to work").hint("without --threads every core is used"))
            }
            Some(threads) if threads > MAX_THREADS => {
                let error = Error::usage(format!("--threads {threads} is more than {MAX_THREADS}"));
                Err(error.hint("without --threads every core is used"))
            }
            Some(threads) => Ok(threads),
            None => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)),
        }
    }

    /// The model and what is not usual about its weights, for a table.
    pub(super) fn label(&self) -> String {
        let name = self.model.clone().unwrap_or_default();
        match (self.weights, self.layers) {
            (Weights::Checkpoint, _) => name,
            (Weights::Random, None) => format!("{name} (random)"),
            (Weights::Random, Some(layers)) => format!("{name} (random, {layers} layers)"),
        }
    }

    fn find(&self) -> Result<Found> {
        let Some(name) = &self.model else {
            let error = Error::usage("this build carries no embedded model yet, so --model is needed");
            return Err(error.hint("give --model a directory of safetensors, a hub id such as Qwen/Qwen3-0.6B, or a short name (`tbshard models` lists them)"));
        };
        let path = Path::new(name);
        if path.is_dir() && self.revision.is_some() {
            return Err(Error::usage(format!("--revision says nothing about the directory `{name}`"))
                .hint("it is for models of the hub"));
        }
        if path.is_dir() {
            return Ok(Found::Directory(path.to_owned()));
        }
        if path.is_file() {
            let error = Error::usage(format!("`{name}` is a file"));
            return Err(error.hint("give --model the directory that holds config.json and the safetensors files"));
        }
        if name.starts_with(['.', '/', '~']) || name.split('/').count() > 2 {
            return Err(Error::usage(format!("there is no directory `{name}`")).hint("check the path"));
        }
        match catalogue::find(name) {
            Ok(entry) => Ok(Found::Entry(Box::new(entry))),
            Err(_) if catalogue::is_hub_id(name) && self.weights == Weights::Checkpoint => self.download(name),
            Err(error) => Err(error),
        }
    }

    fn download(&self, repo: &str) -> Result<Found> {
        let progress = ui::Download::new(repo, self.quiet);
        Ok(Found::Directory(env::hub()?.snapshot(repo, self.revision.as_deref(), &progress)?))
    }

    /// Loads the model with room for one sequence.
    pub(super) fn load(&self) -> Result<Loaded> {
        let threads = self.threads()?;
        if self.layers.is_some() && self.weights == Weights::Checkpoint {
            return Err(Error::usage("--layers needs --weights random").hint("a checkpoint is run whole"));
        }
        if self.ctx == Some(0) {
            return Err(
                Error::usage("--ctx 0 leaves no room for a token").hint("without --ctx the model's own is used")
            );
        }
        let mut found = self.find()?;
        if let (Found::Entry(entry), Weights::Checkpoint) = (&found, self.weights) {
            found = self.download(&entry.hub.clone())?;
        }
        let bar = ui::bar(0, "loading {bar:20} {pos}/{len} layers", self.quiet);
        let progress = |done: usize, layers: usize| {
            bar.set_length(layers as u64);
            bar.set_position(done as u64);
        };
        let (model, directory, defaults) = match (&found, self.weights) {
            (Found::Directory(dir), Weights::Checkpoint) => {
                (Model::open(dir, &progress)?, Some(dir), Defaults::open(dir)?)
            }
            (Found::Directory(dir), Weights::Random) => {
                let path = dir.join("config.json");
                let text = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
                let config = parse_json(&path, &text)?;
                (Model::random(&config, self.layers, 0, &progress)?, Some(dir), Defaults::open(dir)?)
            }
            (Found::Entry(entry), _) => {
                let model = Model::random(&entry.config, self.layers, 0, &progress).context(&entry.name)?;
                (model, None, defaults_of(entry)?)
            }
        };
        bar.finish_and_clear();
        let context = self.ctx.unwrap_or(model.geometry.context.min(DEFAULT_CONTEXT));
        if context > model.geometry.context && !self.quiet {
            ui::whisper(format_args!(
                "the model was made for {} positions, --ctx asks for more",
                model.geometry.context
            ));
        }
        let engine = Engine::new(model, Box::new(Cpu::new(threads)?), context, 1)?;
        let template = directory.map(|dir| Template::open(dir)).transpose()?.flatten();
        // a model without a tokenizer can still be given token ids
        let tokenizer = directory.filter(|dir| Tokenizer::is_in(dir)).map(|dir| Tokenizer::open(dir)).transpose()?;
        Ok(Loaded { engine, tokenizer, template, defaults, directory: directory.cloned() })
    }
}

fn defaults_of(entry: &catalogue::Entry) -> Result<Defaults> {
    let mut defaults = Defaults::from_values(&Value::Null, &entry.config)?;
    let said = entry.sampling;
    let greedy = Sampling::default();
    defaults.sampling = Sampling {
        temperature: said.temperature.unwrap_or(greedy.temperature),
        top_p: said.top_p.unwrap_or(greedy.top_p),
        top_k: said.top_k.unwrap_or(greedy.top_k),
        min_p: said.min_p.unwrap_or(greedy.min_p),
        presence_penalty: said.presence_penalty.unwrap_or(greedy.presence_penalty),
        ..greedy
    };
    Ok(defaults)
}

impl Loaded {
    /// The tokenizer, for what cannot be done without.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        let absent = || match &self.directory {
            Some(dir) => Tokenizer::open(dir).err(),
            None => None,
        };
        self.tokenizer.as_ref().ok_or_else(|| {
            absent().unwrap_or_else(|| {
                let error = Error::usage("a model of the catalogue with random weights has no tokenizer");
                error.hint("give token ids with --prompt-tokens")
            })
        })
    }
}
