//! A checkpoint of a catalogue model's true names, types and shapes, without its weights: holes, or random numbers.
//!
//!     scripts/fake-checkpoint kimi-k2.6 DIR                 64 files of 594 GB that take up 50 MB of the disk
//!     scripts/fake-checkpoint kimi-k2.6 DIR --layers 2 --random
//!
//! Random weights are those of `--weights random`. There is no tokenizer: prompts are given with `--prompt-tokens`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is its work")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::{Value, json};
use tbshard::error::{Error, Result};
use tbshard::models::{Blueprint, catalogue};
use tbshard::weights::{Dtype, NewShard, NewTensor, TensorInfo, write_file};

/// Writes a checkpoint of a catalogue model's names, types and shapes.
#[derive(Parser)]
struct Args {
    /// A short name (see `tbshard models`), or a config.json
    model: String,
    /// A directory, which must be empty or new
    dir: PathBuf,
    /// Only the first K layers
    #[arg(long, value_name = "K")]
    layers: Option<usize>,
    /// Random weights in place of holes
    #[arg(long)]
    random: bool,
    /// Bytes of a file
    #[arg(long, value_name = "BYTES", default_value_t = 9_400_000_000)]
    shard_bytes: u64,
}

fn main() -> ExitCode {
    match write(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.hint_text().into_iter().for_each(|hint| eprintln!("hint: {hint}"));
            ExitCode::FAILURE
        }
    }
}

fn write(args: &Args) -> Result<()> {
    let (dir, config) = (&args.dir, config(&args.model)?);
    let blueprint = Blueprint::random(&config, args.layers, 0)?;
    std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    if std::fs::read_dir(dir).map_err(|error| Error::io(dir, error))?.next().is_some() {
        return Err(Error::msg(format!("`{}` is not empty", dir.display())).hint("name a new directory"));
    }
    let files = files(blueprint.tensors()?, args.shard_bytes);
    let (mut map, mut total) = (BTreeMap::new(), 0);
    for (i, tensors) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len());
        write_shard(&blueprint, &dir.join(&name), tensors, args.random)?;
        for tensor in all(tensors) {
            total += tensor.bytes();
            map.insert(tensor.name, name.clone());
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_file(&dir.join("model.safetensors.index.json"), index.to_string().as_bytes())?;
    write_file(&dir.join("config.json"), blueprint.config().to_string().as_bytes())?;
    println!("{} tensors, {total} bytes in {} files", map.len(), files.len());
    Ok(())
}

fn config(model: &str) -> Result<Value> {
    let path = Path::new(model);
    if !path.exists() {
        return Ok(catalogue::find(model)?.config);
    }
    let text = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    tbshard::models::parse_json(path, &text)
}

/// Tensors in the order of layers, as many to a file as it holds.
fn files(mut tensors: Vec<TensorInfo>, bytes: u64) -> Vec<Vec<TensorInfo>> {
    let layer = |name: &str| {
        let after = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse::<usize>().ok());
        after.map_or(if name.contains("embed") { 0 } else { usize::MAX }, |layer| layer + 1)
    };
    tensors.sort_by_cached_key(|tensor| layer(&tensor.name));
    let mut files: Vec<Vec<TensorInfo>> = vec![Vec::new()];
    let mut room = bytes;
    for tensor in tensors {
        let size = of(&tensor).bytes();
        if size > room && files.last().is_some_and(|file| !file.is_empty()) {
            files.push(Vec::new());
            room = bytes;
        }
        room = room.saturating_sub(size);
        files.last_mut().into_iter().for_each(|file| file.push(tensor.clone()));
    }
    files
}

fn of(info: &TensorInfo) -> NewTensor {
    NewTensor { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone() }
}

/// The tensors of a file, and the shape that compressed-tensors stores beside every packed matrix.
fn all(tensors: &[TensorInfo]) -> impl Iterator<Item = NewTensor> {
    tensors.iter().flat_map(|info| {
        let shape = packed_shape(info).map(|_| NewTensor {
            name: info.name.replace("_packed", "_shape"),
            dtype: Dtype::U32,
            shape: vec![2],
        });
        [Some(of(info)), shape].into_iter().flatten()
    })
}

/// Rows and columns of a packed matrix.
fn packed_shape(info: &TensorInfo) -> Option<[u32; 2]> {
    let values_a_word = 32 / info.coding.filter(|_| info.name.ends_with("_packed"))?.bits();
    let [rows, words] = *info.shape.as_slice() else { return None };
    Some([u32::try_from(rows).ok()?, u32::try_from(words * values_a_word).ok()?])
}

fn write_shard(blueprint: &Blueprint, path: &Path, tensors: &[TensorInfo], random: bool) -> Result<()> {
    let shard = NewShard::create(path, &all(tensors).collect::<Vec<_>>(), "pt")?;
    shard.fill_with_holes()?;
    for info in tensors {
        if let Some(shape) = packed_shape(info) {
            let bytes: Vec<u8> = shape.into_iter().flat_map(u32::to_le_bytes).collect();
            shard.write(&info.name.replace("_packed", "_shape"), 0, &bytes)?;
        }
        if random {
            shard.write(&info.name, 0, &blueprint.tensor(info)?.bytes)?;
        }
    }
    shard.finish()
}
