//! What a model becomes: its tensors in mlx_lm's order, and how each is quantised.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Conventions;
use super::entry::{Entry, Origin, Run, type_of};
use crate::error::{Error, Result};
use crate::models::Architecture;
use crate::nn::{Loader, refuse_unused};
use crate::partition::Plan;
use crate::weights::{Coding, Dtype, Listing, NewTensor, Source, SourceKind};

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
        let conventions = architecture.mlx();
        let listing = Listing::new(source);
        let plan = Plan::solo(architecture.geometry().layers);
        let loader = Loader::new(&listing, (&plan, 0), &|_, _| ());
        architecture.load(&loader)?;
        refuse_unused(source, &loader.taken().0, &|name| architecture.skips(name))?;
        let said = said_type(config);
        let mut draft = Draft { conventions, coding, said, source, entries: BTreeMap::new(), experts: BTreeMap::new() };
        let asked = listing.noted().asked;
        if let Some(head) = conventions.copied_head.filter(|head| !asked.contains_key(*head)) {
            let table = asked.iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
            table.map_or(Ok(()), |(name, shape)| draft.rows(head, shape, vec![Run::whole(name, shape)]))?;
        }
        for (name, shape) in asked {
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

    /// Weights of the model, as mlx_lm counts them: without the few that are in no module of one layer (`A_log`, `dt_bias`).
    pub fn parameters(&self) -> u64 {
        const COUNTED: [&str; 3] = [".weight", ".bias", ".gate.e_score_correction_bias"];
        let counted = self.entries.iter().filter(|entry| COUNTED.iter().any(|end| entry.name.ends_with(end)));
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

    /// How many modules are quantised, how many were already, and how many are not because their columns are no whole
    /// groups.
    pub fn modules(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in &self.entries {
            match (&entry.origin, entry.coding) {
                (Origin::Packed(_), _) => counts[1] += 1,
                (Origin::Rows(_), Some(_)) => counts[0] += 1,
                (Origin::Rows(_), None) if self.conventions.coding(entry.module(), self.coding).is_some() => {
                    counts[2] += 1
                }
                _ => {}
            }
        }
        counts
    }

    /// The coding of what is packed already, if anything is.
    pub(super) fn kept(&self) -> Option<Coding> {
        self.entries.iter().find(|entry| matches!(entry.origin, Origin::Packed(_)))?.coding
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
        let whole = Run::whole(name, &shape);
        let run = |rows| Run { rows, ..whole.clone() };
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
            return self.rows(&format!("{prefix}.switch_mlp.down_proj.weight"), &shape, vec![whole]);
        }
        if let Some((prefix, expert, kind)) = one_expert(name) {
            self.experts.entry(format!("{prefix}.switch_mlp.{kind}")).or_default().insert(expert, whole);
            return Ok(());
        }
        if let (Some(prefix), Some((plain, value))) = (name.strip_suffix(".kv_b_proj.weight"), self.conventions.latent)
        {
            // head by head: keys from the latent vector, which MLX has the other way round, and its values
            let [rows, rank] = shape[..] else { return Err(self.misshapen(name, &shape)) };
            let heads = rows / (plain + value);
            let starts = (0..heads).map(|head| head * (plain + value));
            let keys = starts.clone().map(|at| Run { turned: true, ..run(at..at + plain) }).collect();
            self.rows(&format!("{prefix}.embed_q.weight"), &[heads, rank, plain], keys)?;
            let values = starts.map(|at| run(at + plain..at + plain + value)).collect();
            return self.rows(&format!("{prefix}.unembed_out.weight"), &[heads, value, rank], values);
        }
        if shape.len() > 1 && name.ends_with(".weight") && !name.ends_with("conv1d.weight") {
            return self.rows(name, &shape, vec![whole]);
        }
        self.whole(name, shape)
    }

    /// Adds a tensor of one matrix or several.
    fn rows(&mut self, name: &str, shape: &[usize], runs: Vec<Run>) -> Result<()> {
        let name = self.conventions.mlx_name(name);
        let Some(first) = runs.first() else { return Err(self.misshapen(&name, shape)) };
        let info = self.source.info(&first.name, &first.shape)?;
        let (kept, dtype) = match info.coding {
            Some(_) if self.source.kind() == SourceKind::Mlx => {
                let error = format!("{}: tensor `{}` is quantised already", info.origin, info.name);
                return Err(Error::msg(error).hint("quantise the model as its maker publishes it"));
            }
            Some(_) => {
                let parts = first.stored(self.source)?;
                (info.coding, type_of(parts.last().map_or(&info, |scales| &scales.info), self.said))
            }
            None => (None, type_of(&info, self.said)),
        };
        let columns = shape.last().copied().unwrap_or(1);
        let own = self.conventions.coding(name.strip_suffix(".weight").unwrap_or(&name), self.coding);
        // as mlx_lm asks; where it would then fail, the router stays as it is
        let own = own.filter(|own| columns.is_multiple_of(self.coding.group()) && own.divides(columns));
        let origin = if kept.is_some() { Origin::Packed(runs) } else { Origin::Rows(runs) };
        let (coding, stored) = (kept.or(own), info.dtype);
        let entry = Entry { name: name.clone(), shape: shape.to_vec(), dtype, coding, stored, origin };
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Adds a norm, a bias, a convolution, or what else is no matrix.
    fn whole(&mut self, name: &str, shape: Vec<usize>) -> Result<()> {
        let info = self.source.info(name, &shape)?;
        let renamed = self.conventions.mlx_name(name);
        let kept = self.conventions.uncast.iter().any(|end| renamed.ends_with(end));
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
