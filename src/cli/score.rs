//! `tbshard score`: perplexity of a text, and the logits behind it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::caught::caught;
use super::load::{Loaded, ModelArgs};
use super::prompt::{parse_tokens, plain, read_text};
use super::ranks::RankArgs;
use super::{Outcome, interrupt, ui};
use crate::backend::Tensor;
use crate::engine::score;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; `-` reads standard input
    #[arg(long, value_name = "F", required_unless_present = "prompt_tokens", help_heading = "Text")]
    file: Option<PathBuf>,
    /// The text as token ids: 51,441,…
    #[arg(long, value_name = "IDS", conflicts_with = "file", help_heading = "Text")]
    prompt_tokens: Option<String>,
    /// Write all logits, f32 [tokens, vocab], as the tensor `logits` of this file
    #[arg(long, value_name = "OUT.safetensors", help_heading = "Output")]
    logits: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    pub(super) ranks: RankArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let text = args.file.as_ref().map(|path| read_text(path)).transpose()?;
    interrupt::listen()?;
    let mut loaded = args.ranks.load(&args.model)?;
    let result = caught(|| run_on(args, &mut loaded, text));
    loaded.end(&args.ranks, result)
}

impl Args {
    /// The file with the text.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether logits are written to a file.
    pub(super) fn writes_logits(&self) -> bool {
        self.logits.is_some()
    }
}

fn run_on(args: &Args, loaded: &mut Loaded, text: Option<String>) -> Result<Outcome> {
    let tokens = match (&text, &args.prompt_tokens) {
        (Some(text), _) => plain(loaded, text)?.tokens,
        (None, ids) => parse_tokens(ids.as_deref().unwrap_or_default(), loaded)?,
    };
    let vocab = loaded.engine.model().geometry.vocab;
    let mut file = args.logits.as_ref().map(|path| LogitsFile::create(path, tokens.len(), vocab)).transpose()?;
    let bar = ui::bar(tokens.len() as u64, "scoring {bar:20} {pos}/{len} tokens eta {eta}", args.model.quiet);
    let answering = interrupt::Answering::begin();
    let score = score(&mut loaded.engine, &tokens, &mut |logits| {
        bar.inc(logits.rows() as u64);
        answering.check()?;
        file.as_mut().map_or(Ok(()), |file| file.append(logits))
    })?;
    bar.finish_and_clear();
    if let Some(file) = file {
        file.finish()?;
    }
    let line = if args.json {
        let mut object = json!(score);
        object["model_digest"] = loaded.engine.model().digest.clone().into();
        object.to_string()
    } else {
        let error = score.standard_error.map(|error| format!(" ± {error:.4}")).unwrap_or_default();
        format!("perplexity {:.4}{error} ({} of {} tokens predicted)", score.perplexity, score.predicted, score.tokens)
    };
    ui::print(&format!("{line}\n"))?;
    Ok(Outcome::Done)
}

/// A safetensors file that is written row by row, beside its place until it is whole.
struct LogitsFile {
    path: PathBuf,
    // a pipe or a device is written where it is: renaming onto it would replace it
    partial: Option<PathBuf>,
    out: BufWriter<File>,
}

impl LogitsFile {
    fn create(path: &Path, tokens: usize, vocab: usize) -> Result<Self> {
        let Some(mut name) = path.file_name().map(std::ffi::OsStr::to_owned) else {
            return Err(Error::usage(format!("--logits: `{}` does not name a file", path.display()))
                .hint("give the path of a file"));
        };
        name.push(".partial");
        let special = path.metadata().is_ok_and(|found| !found.is_file());
        let partial = (!special).then(|| path.with_file_name(name));
        let at = partial.as_deref().unwrap_or(path);
        let file = File::create(at).map_err(|error| Error::io(at, error))?;
        let entry = json!({"dtype": "F32", "shape": [tokens, vocab], "data_offsets": [0, tokens * vocab * 4]});
        let mut header = json!({ "logits": entry }).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let mut this = Self { path: path.to_owned(), partial, out: BufWriter::with_capacity(1 << 20, file) };
        this.write(&(header.len() as u64).to_le_bytes())?;
        this.write(header.as_bytes())?;
        Ok(this)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| Error::io(&self.path, error))
    }

    fn append(&mut self, logits: &Tensor) -> Result<()> {
        for row in logits.rows_iter() {
            let bytes: Vec<u8> = row.iter().flat_map(|logit| logit.to_le_bytes()).collect();
            self.write(&bytes)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(|error| Error::io(&self.path, error))?;
        match &self.partial {
            Some(partial) => std::fs::rename(partial, &self.path).map_err(|error| Error::io(&self.path, error)),
            None => Ok(()),
        }
    }
}

impl Drop for LogitsFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // after `finish` there is nothing left to remove
            let _ = std::fs::remove_file(partial);
        }
    }
}
