//! What a model becomes: its tensors in mlx_lm's order, and how each is quantised.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Conventions;
use super::entry::{Entry, Origin, Run, type_of};
use crate::error::{Error, Result};
use crate::models::Architecture;
use crate::nn::{Loader, refuse_unused};
use crate::partition::Plan;
use crate::weights::{Coding, Dtype, Listing, NewTensor, Source};

/// How routers are quantised where their architecture is particular about them.
const ROUTER: Coding = Coding::Affine { bits: 8, group: 64 };

/// A model as mlx_lm would have it.
pub struct Conversion {
    pub(super) entries: Vec<Entry>,
    pub(super) coding: Coding,
    pub(super) conventions: Conventions,
}

impl Conversion {
    /// Plans the conversion of the model in `source` with the config `config`. Nothing is read but headers.
    ///
    /// # Errors
    /// Naming a tensor that is missing, misshapen, unknown, or quantised already.
    pub fn new(architecture: &dyn Architecture, config: &Value, source: &dyn Source, coding: Coding) -> Result<Self> {
        let Some(conventions) = architecture.mlx() else {
            let error = Error::msg("models of this architecture cannot be quantised yet");
            return Err(error.hint("take a checkpoint that is quantised already"));
        };
        let listing = Listing::new(source);
        let plan = Plan::solo(architecture.geometry().layers);
        let loader = Loader::new(&listing, (&plan, 0), &|_, _| ());
        architecture.load(&loader)?;
        refuse_unused(source, &loader.share(), &|name| architecture.skips(name))?;
        let said = said_type(config);
        let mut draft = Draft { conventions, coding, said, source, entries: BTreeMap::new(), experts: BTreeMap::new() };
        for (name, shape) in listing.noted().asked {
            draft.add(&name, shape)?;
        }
        for (name, experts) in std::mem::take(&mut draft.experts) {
            let runs: Vec<Run> = experts.into_values().collect();
            let Some(&[rows, columns]) = runs.first().map(|run| &run.shape[..]) else { continue };
            draft.rows(&name, &[runs.len(), rows, columns], runs)?;
        }
        let mut entries: Vec<Entry> = draft.entries.into_values().collect();
        entries.sort_by_cached_key(|entry| conventions.place(&entry.name));
        Ok(Self { entries, coding, conventions })
    }

    /// All tensors of the checkpoint, in mlx_lm's order.
    pub fn tensors(&self) -> impl Iterator<Item = NewTensor> {
        self.entries.iter().flat_map(Entry::tensors)
    }

    /// Weights of the model, as mlx_lm counts them: without the few that are in no module (`A_log`, `dt_bias`).
    pub fn parameters(&self) -> u64 {
        let counted =
            self.entries.iter().filter(|entry| [".weight", ".bias"].iter().any(|end| entry.name.ends_with(end)));
        counted.map(|entry| entry.rows() as u64 * entry.columns() as u64).sum()
    }

    /// Bytes of what is read.
    pub fn source_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.source_bytes(entry.rows())).sum()
    }

    /// Bytes of all tensors of the checkpoint.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.bytes()).sum()
    }

    /// How many modules are quantised, and how many matrices are not because their columns are no whole groups.
    pub fn modules(&self) -> (usize, usize) {
        let quantised = self.entries.iter().filter(|entry| entry.coding.is_some()).count();
        let left = |entry: &&Entry| entry.coding.is_none() && matches!(entry.origin, Origin::Rows(_));
        (quantised, self.entries.iter().filter(left).count())
    }
}

/// Entries by MLX's name while they are collected.
struct Draft<'a> {
    conventions: Conventions,
    coding: Coding,
    said: Option<Dtype>,
    source: &'a dyn Source,
    entries: BTreeMap<String, Entry>,
    // experts that are modules for themselves, by the name they have together
    experts: BTreeMap<String, BTreeMap<usize, Run>>,
}

impl Draft<'_> {
    /// Adds the tensor that the hub calls `name`.
    fn add(&mut self, name: &str, shape: Vec<usize>) -> Result<()> {
        if self.conventions.tied && name == "lm_head.weight" {
            return Ok(());
        }
        let rows = shape.iter().rev().skip(1).product();
        let run = |rows| Run { name: name.to_owned(), shape: shape.clone(), rows };
        if let Some(prefix) = name.strip_suffix(".experts.gate_up_proj") {
            let [experts, both, columns] = shape[..] else { return Err(self.misshapen(name, &shape)) };
            for (kind, half) in [("gate_proj", 0), ("up_proj", both / 2)] {
                let runs = (0..experts).map(|expert| expert * both + half..expert * both + half + both / 2).map(run);
                self.rows(
                    &format!("{prefix}.switch_mlp.{kind}.weight"),
                    &[experts, both / 2, columns],
                    runs.collect(),
                )?;
            }
            return Ok(());
        }
        if let Some(prefix) = name.strip_suffix(".experts.down_proj") {
            return self.rows(&format!("{prefix}.switch_mlp.down_proj.weight"), &shape, vec![run(0..rows)]);
        }
        if let Some((prefix, expert, kind)) = one_expert(name) {
            let run = run(0..rows);
            self.experts.entry(format!("{prefix}.switch_mlp.{kind}")).or_default().insert(expert, run);
            return Ok(());
        }
        if shape.len() > 1 && !name.ends_with("conv1d.weight") {
            return self.rows(name, &shape, vec![run(0..rows)]);
        }
        self.whole(name, shape)
    }

    /// Adds a tensor of one matrix or several.
    fn rows(&mut self, name: &str, shape: &[usize], runs: Vec<Run>) -> Result<()> {
        let name = self.conventions.mlx_name(name);
        let Some(first) = runs.first() else { return Err(self.misshapen(&name, shape)) };
        let info = self.source.info(&first.name, &first.shape)?;
        if info.coding.is_some() {
            let error = format!("{}: tensor `{}` is quantised already", info.origin, info.name);
            return Err(Error::msg(error).hint("quantise the model as its maker publishes it"));
        }
        let columns = shape.last().copied().unwrap_or(1);
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let own = if self.conventions.is_fine(module) { ROUTER } else { self.coding };
        // as mlx_lm asks; where it would then fail, the router stays as it is
        let coding = Some(own).filter(|own| columns.is_multiple_of(self.coding.group()) && own.divides(columns));
        let dtype = type_of(&info, self.said);
        let (stored, origin) = (info.dtype, Origin::Rows(runs));
        let entry = Entry { name: name.clone(), shape: shape.to_vec(), dtype, coding, stored, origin };
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Adds a norm, a bias, a convolution, or what else is no matrix.
    fn whole(&mut self, name: &str, shape: Vec<usize>) -> Result<()> {
        let info = self.source.info(name, &shape)?;
        let renamed = self.conventions.mlx_name(name);
        let kept = self.conventions.keeps_a_log && renamed.ends_with("A_log");
        let add_one = self.conventions.adds_one(&renamed) && !self.source.kind().norms_hold_one();
        let turned = match shape[..] {
            [channels, 1, taps] => vec![channels, taps, 1],
            _ => shape.clone(),
        };
        let dtype = type_of(&info, self.said.filter(|_| !kept));
        let origin = Origin::Whole { name: name.to_owned(), shape, add_one };
        let entry = Entry { name: renamed.clone(), shape: turned, dtype, coding: None, stored: info.dtype, origin };
        self.entries.insert(renamed, entry);
        Ok(())
    }

    fn misshapen(&self, name: &str, shape: &[usize]) -> Error {
        Error::msg(format!("tensor `{name}` of shape {shape:?} holds no experts"))
            .hint("config.json and the weights do not belong together")
    }
}

/// `<prefix>.experts.<number>.<kind>` taken apart.
fn one_expert(name: &str) -> Option<(&str, usize, &str)> {
    let (prefix, rest) = name.split_once(".experts.")?;
    let (expert, kind) = rest.split_once('.')?;
    Some((prefix, expert.parse().ok()?, kind))
}

/// The type that config.json has the weights in, where mlx_lm looks for it and knows it.
fn said_type(config: &Value) -> Option<Dtype> {
    let nested = || config.get("text_config").and_then(|text| text.get("dtype"));
    let said = config.get("torch_dtype").filter(|said| !said.is_null()).or_else(nested);
    match said.and_then(Value::as_str) {
        Some("bfloat16") => Some(Dtype::Bf16),
        Some("float16") => Some(Dtype::F16),
        Some("float32") => Some(Dtype::F32),
        _ => None,
    }
}
