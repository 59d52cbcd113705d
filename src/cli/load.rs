//! From `--model` to an engine: a directory, a short name, a hub id, or invented weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::device::{Computing, Fencing};
use super::loading::{self, Means, Told};
use super::numbers::{Rounding, Weights, coding, coding_name};
use super::others::Others;
use super::{env, ui};
use crate::comm::Ranks;
use crate::engine::{Defaults, Engine, Room, Sampling, pages};
use crate::error::{Context, Error, Result};
use crate::models::mlx::copied_files;
use crate::models::{Blueprint, catalogue, demo, parse_json};
use crate::partition::Plan;
use crate::text::{Template, Tokenizer};
use crate::weights::Coding;

/// Positions a context has when `--ctx` does not say: as many as the model was made for, but not more than this.
const DEFAULT_CONTEXT: usize = 32 * 1024;

/// More threads than this are a slip of the finger, and the standard library aborts where the system refuses one.
const MAX_THREADS: usize = 1024;

/// Which model, and how it is run.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub(super) struct ModelArgs {
    /// A directory of safetensors, a short name (see `tbshard models`), or a hub id (owner/name) [default: the demo]
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
    /// Quantise the weights while loading: BITS, BITS:GROUP, mxfp4, mxfp8 or nvfp4, as `tbshard quantize` would
    #[arg(long, value_name = "BITS", value_parser = coding, help_heading = "Model")]
    pub(super) quantize: Option<Coding>,
    /// Positions of the context: prompt and answer together [default: the model's, at most 32768]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub(super) ctx: Option<usize>,
    /// How numbers are rounded: exact (f32 activations) or fast (operands of products in bf16 or 8 bits, the KV cache in bf16)
    #[arg(long, value_enum, default_value_t = Rounding::Exact, help_heading = "Model")]
    pub(super) arithmetic: Rounding,
    /// What computes: cpu, metal (a Mac's GPU), or auto: the GPU on a Mac, else the processor
    #[arg(long, value_enum, default_value_t = Computing::Auto, help_heading = "Model")]
    pub(super) device: Computing,
    /// How a GPU meets other ranks: event, spin (a kernel waits, within bounds), or drain (it does everything first) [default: event]
    #[arg(long, value_enum, help_heading = "Model")]
    pub(super) fence: Option<Fencing>,
    /// Sequences that run at once
    #[arg(skip = 1usize)]
    pub(super) sequences: usize,
    /// Positions that all of them have room for together, if not for as many as the context each
    #[arg(skip)]
    pub(super) cache_tokens: Option<usize>,
    /// Recurrent states that are kept for sequences to come
    #[arg(skip)]
    pub(super) kept_states: usize,
    /// Show no progress and no statistics
    #[arg(long, short, help_heading = "Output")]
    pub(super) quiet: bool,
}

/// A model with all that came with it.
pub(super) struct Loaded {
    pub(super) engine: Engine,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) template: Option<Template>,
    pub(super) defaults: Defaults,
    directory: Option<PathBuf>,
    /// Threads of this rank.
    pub(super) threads: usize,
    /// The other ranks, if there are any.
    pub(super) others: Option<Others>,
}

/// What turns text into tokens, as far as there is something.
pub(super) struct Texts {
    tokenizer: Option<Tokenizer>,
    template: Option<Template>,
    directory: Option<PathBuf>,
}

/// A model that was found and not loaded yet.
pub(super) struct Opened {
    pub(super) blueprint: Blueprint,
    defaults: Defaults,
    found: Found,
}

/// What `--model` stands for.
enum Found {
    Demo,
    Directory(PathBuf),
    Entry(Box<catalogue::Entry>),
}

/// `--threads`, if it can be.
pub(super) fn threads(asked: Option<usize>) -> Result<Option<usize>> {
    let hint = "without --threads every core is used";
    match asked {
        Some(0) => Err(Error::usage("--threads 0 leaves nobody to work").hint(hint)),
        Some(threads) if threads > MAX_THREADS => {
            Err(Error::usage(format!("--threads {threads} is more than {MAX_THREADS}")).hint(hint))
        }
        asked => Ok(asked),
    }
}

/// The threads of a process that has all cores to itself.
pub(super) fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

impl ModelArgs {
    /// A checkpoint as it is.
    pub(super) fn of(model: Option<String>, revision: Option<String>, quiet: bool) -> Self {
        Self {
            model,
            revision,
            weights: Weights::Checkpoint,
            layers: None,
            quantize: None,
            ctx: None,
            arithmetic: Rounding::Exact,
            device: Computing::Auto,
            fence: None,
            sequences: 1,
            cache_tokens: None,
            kept_states: 0,
            quiet,
        }
    }

    /// Whether nothing needs to be downloaded.
    pub(super) fn is_here(&self) -> bool {
        self.is_demo() || self.model.as_ref().is_some_and(|name| Path::new(name).exists())
    }

    /// What clients of a server may call it.
    pub(super) fn short_name(&self) -> String {
        let name = self.model.as_deref().unwrap_or(demo::NAME);
        let last = Path::new(name).file_name().and_then(std::ffi::OsStr::to_str);
        if Path::new(name).is_dir() { last.unwrap_or(name).to_owned() } else { name.to_owned() }
    }

    /// The model and what is not usual about its weights, for a table.
    pub(super) fn label(&self) -> String {
        let name = self.short_name();
        let layers = self.layers.map(|layers| format!("{layers} layers"));
        let random = (self.weights == Weights::Random).then(|| "random".to_owned());
        let notes: Vec<String> = [random, layers, self.quantize.map(coding_name)].into_iter().flatten().collect();
        if notes.is_empty() { name } else { format!("{name} ({})", notes.join(", ")) }
    }

    /// Whether this is the model that the binary carries.
    pub(super) fn is_demo(&self) -> bool {
        self.model.as_deref().is_none_or(|name| name == demo::NAME)
    }

    /// The same for a process that runs in another directory.
    pub(super) fn for_elsewhere(&self) -> Self {
        let directory = self.model.as_ref().map(Path::new).filter(|path| path.is_dir() && !self.is_demo());
        let absolute = directory.and_then(|path| std::path::absolute(path).ok()?.to_str().map(str::to_owned));
        Self { model: absolute.or_else(|| self.model.clone()), ..self.clone() }
    }

    /// Takes the model from where this machine has it, if `places` says so.
    pub(super) fn place(&mut self, places: &BTreeMap<String, String>) {
        if let Some(place) = self.model.as_ref().and_then(|name| places.get(name)) {
            self.model = Some(env::expand(place));
        }
    }

    fn find(&self) -> Result<Found> {
        let name = self.model.as_deref().unwrap_or(demo::NAME);
        let path = Path::new(name);
        let local = if self.is_demo() {
            Some((Found::Demo, "the embedded demo model".to_owned()))
        } else if path.is_dir() {
            Some((Found::Directory(path.to_owned()), format!("the directory `{name}`")))
        } else {
            None
        };
        if let Some((found, what)) = local {
            return match self.revision {
                None => Ok(found),
                Some(_) => {
                    Err(Error::usage(format!("--revision says nothing about {what}"))
                        .hint("it is for models of the hub"))
                }
            };
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

    /// Finds the model and reads what it is.
    pub(super) fn open(&self) -> Result<Opened> {
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
        let random = |config: &Value| Blueprint::random(config, self.layers, 0);
        let (blueprint, defaults) = match (&found, self.weights) {
            (Found::Demo, weights) => {
                let config = parse_json(demo::NAME.as_ref(), demo::CONFIG.as_bytes())?;
                let generation = parse_json(demo::NAME.as_ref(), demo::GENERATION.as_bytes())?;
                let blueprint = if weights == Weights::Random { random(&config)? } else { Blueprint::demo()? };
                (blueprint, Defaults::from_values(&generation, &config)?)
            }
            (Found::Directory(dir), Weights::Checkpoint) => (Blueprint::open(dir)?, Defaults::open(dir)?),
            (Found::Directory(dir), Weights::Random) => (random(&config_of(dir)?)?, Defaults::open(dir)?),
            (Found::Entry(entry), _) => (random(&entry.config).context(&entry.name)?, defaults_of(entry)?),
        };
        let blueprint = match self.quantize {
            Some(coding) => blueprint.quantised(coding, all_cores())?,
            None => blueprint,
        };
        Ok(Opened { blueprint: blueprint.keeping(self.kv_type()), defaults, found })
    }

    /// Finds the model once and for all: what lies in a directory, the hub's cache too, is called by it from now on.
    pub(super) fn settle(&mut self) -> Result<()> {
        if let Some(dir) = self.open()?.directory().and_then(Path::to_str) {
            (self.model, self.revision) = (Some(dir.to_owned()), None);
        }
        Ok(())
    }

    /// Loads the model on this rank alone, with `threads` threads or all cores.
    pub(super) fn load(&self, threads: Option<usize>) -> Result<Loaded> {
        let opened = self.open()?;
        let plan = Plan::solo(opened.blueprint.geometry.layers);
        let texts = opened.texts()?;
        opened.load(texts, self, &plan, Ranks::solo(), Means::whole(threads), &|_| ())
    }
}

impl Opened {
    /// What goes with the weights wherever they go: names and contents.
    pub(super) fn copied_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        match &self.found {
            Found::Directory(dir) => copied_files(dir),
            Found::Demo => Ok([
                ("chat_template.jinja", demo::TEMPLATE.as_bytes()),
                ("generation_config.json", demo::GENERATION.as_bytes()),
                ("tokenizer.json", demo::TOKENIZER),
            ]
            .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
            .into()),
            Found::Entry(_) => Ok(Vec::new()),
        }
    }

    /// Positions of the context.
    pub(super) fn context(&self, args: &ModelArgs) -> usize {
        args.ctx.unwrap_or(self.blueprint.geometry.context.min(DEFAULT_CONTEXT))
    }

    /// What there is to be room for.
    pub(super) fn room(&self, args: &ModelArgs) -> Result<Room> {
        let room = Room::of(self.context(args), args.sequences)?;
        let Some(tokens) = args.cache_tokens else { return Ok(Room { kept_states: args.kept_states, ..room }) };
        let cache = pages(tokens, 1)?;
        if cache < pages(room.context, 1)? {
            let error = format!("{tokens} tokens of KV cache have no room for one context of {}", room.context);
            return Err(Error::usage(error).hint("raise --cache-tokens, or lower --ctx"));
        }
        Ok(Room { kept_states: args.kept_states, pages: cache.min(room.pages), ..room })
    }

    /// Its config.json.
    pub(super) fn config(&self) -> Result<Value> {
        match &self.found {
            Found::Demo => parse_json(demo::NAME.as_ref(), demo::CONFIG.as_bytes()),
            Found::Directory(dir) => config_of(dir),
            Found::Entry(entry) => Ok(entry.config.clone()),
        }
    }

    /// The directory that it lies in, if it is in files.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.found {
            Found::Directory(dir) => Some(dir),
            Found::Demo | Found::Entry(_) => None,
        }
    }

    /// Reads the tokenizer and the chat template.
    pub(super) fn texts(&self) -> Result<Texts> {
        Ok(match &self.found {
            Found::Demo => {
                let template = Template::from_source(demo::TEMPLATE, &[])?;
                let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER)?;
                Texts { tokenizer: Some(tokenizer), template: Some(template), directory: None }
            }
            // a model without a tokenizer can still be given token ids
            Found::Directory(dir) => {
                let tokenizer = Tokenizer::is_in(dir).then(|| Tokenizer::open(dir)).transpose()?;
                Texts { tokenizer, template: Template::open(dir)?, directory: Some(dir.clone()) }
            }
            Found::Entry(_) => Texts { tokenizer: None, template: None, directory: None },
        })
    }

    /// Loads what this rank of `ranks` owns; `told` hears how far it is.
    pub(super) fn load(
        self,
        texts: Texts,
        args: &ModelArgs,
        plan: &Plan,
        ranks: Ranks,
        means: Means,
        told: Told<'_>,
    ) -> Result<Loaded> {
        let (context, room) = (self.context(args), self.room(args)?);
        let Self { blueprint, defaults, .. } = self;
        let backend = args.device.open(args.arithmetic, means.threads)?.backend(args.fencing(means.ranks)?)?;
        let model = loading::load(blueprint, (plan, &ranks), (backend.as_ref(), means), args.quiet, told)?;
        let made_for = model.geometry.context;
        if context > made_for && !args.quiet {
            ui::whisper(format_args!("the model was made for {made_for} positions, --ctx asks for more"));
        }
        let engine = Engine::with_ranks(model, backend, room, ranks)?;
        let Texts { tokenizer, template, directory } = texts;
        let defaults = defaults.ending_at(&tokenizer.as_ref().map(Tokenizer::end_tokens).unwrap_or_default());
        Ok(Loaded { engine, tokenizer, template, defaults, directory, threads: means.threads, others: None })
    }
}

fn config_of(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    let text = std::fs::read(&path).map_err(|error| Error::io(&path, error))?;
    parse_json(&path, &text)
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
