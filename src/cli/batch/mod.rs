//! `tbshard batch`: answer every line of a file, and go on where a run ended, however it ended.

mod answers;
mod away;
mod desk;
mod feed;
mod index;
mod input;
mod journal;
mod line;
mod progress;
mod row;
mod rows;

use std::path::{Path, PathBuf};

use serde_json::Value;

use answers::Answers;
use desk::Desk;
use feed::Clerk;
use line::{Form, canonical, digest, hex};
use progress::Summary;
use row::Maker;

use super::caught::caught;
use super::hosts::Machines;
use super::launch::{Work, on_all};
use super::load::{Loaded, ModelArgs, Opened};
use super::many::{self, ManyArgs};
use super::ranks::RankArgs;
use super::sampling::SamplingArgs;
use super::{Outcome, env, interrupt, ui};
use crate::engine::Sampling;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A line is OpenAI's batch line (custom_id, method, url, body), the body alone ({\"prompt\": …}), or a \
    prompt as it is. Run again, the command goes on: rows that are there stay, a line's custom_id (line-N where it has none) \
    and a digest of what it asks for say which. A line that fails has a row that says why, and the exit code is 0."
)]
pub(super) struct Args {
    /// The lines; `-` reads standard input
    #[arg(value_name = "FILE", help_heading = "Input")]
    input: PathBuf,
    /// What lines are [default: JSON if the first begins with {, else text]
    #[arg(long, value_enum, help_heading = "Input")]
    format: Option<Form>,
    /// A system message before every prompt that comes alone
    #[arg(long, value_name = "TEXT", help_heading = "Input", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue prompts that come alone as plain text, without the chat template
    #[arg(long, help_heading = "Input")]
    raw: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// What lines call the model [default: its short name, hub id or directory]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    name: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    many: ManyArgs,
    #[command(flatten)]
    pub(super) ranks: RankArgs,
    /// Tokens of an answer at most, where its line does not say
    #[arg(long, short = 'n', value_name = "N", help_heading = "Output")]
    max_tokens: Option<usize>,
    /// The file that rows are added to; without it they go to stdout, and nothing can go on later
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// A file of their own for the rows of lines that failed
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    errors: Option<PathBuf>,
    /// Write rows in the order of their lines. Those that wait for one before them are not on the disk yet: after a crash
    /// they are made again. Rows that are there stay where they are
    #[arg(long, help_heading = "Output")]
    ordered: bool,
    /// Names and times follow from what is asked for: equal runs write equal rows
    #[arg(long, help_heading = "Output")]
    deterministic: bool,
    /// Run lines again whose rows say that they failed
    #[arg(long, help_heading = "Output", conflicts_with = "overwrite")]
    retry_errors: bool,
    /// Start anew: what the output (and --errors) hold is lost
    #[arg(long, help_heading = "Output")]
    overwrite: bool,
    /// Print the summary as JSON, to stderr or to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", help_heading = "Output")]
    json: Option<String>,
    /// Serve another machine's `tbshard batch`: lines come on stdin, rows go to stdout
    #[arg(long, hide = true)]
    relayed: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    args.check()?;
    interrupt::listen()?;
    let model = args.many.over(&args.model)?;
    let model = ModelArgs { quiet: model.quiet || args.relayed, ..model };
    let mut desk = Desk::open(args)?;
    let prepared = args.ranks.prepare(&model)?;
    let run = args.settings(&prepared.opened, &model)?;
    desk.check_run(&run)?;
    // whom a launcher has started meets the others, whatever there is to do
    if desk.nothing_is_left() && env::rank().is_none() {
        return desk.finish();
    }
    let mut loaded = args.ranks.start(prepared)?;
    let result = caught(|| args.answer(&mut loaded, desk, run, &model));
    loaded.end(&args.ranks, result)
}

/// Runs it on machines that this is none of; `work` is what runs on them, but for its input and output.
pub(super) fn relay(args: &Args, machines: &Machines, mut work: Work) -> Result<Outcome> {
    work.args.push("--relayed".to_owned());
    let deploy = args.ranks.hosts.deploy;
    args.check()?;
    away::run(args, |lines, rows| on_all(machines, deploy, Work { input: Some(lines), output: Some(rows), ..work }))
}

impl Args {
    /// Checks flags before anything is opened or loaded.
    fn check(&self) -> Result<()> {
        if self.max_tokens == Some(0) {
            return Err(Error::usage("--max-tokens 0 leaves no room for an answer").hint("1 is the least"));
        }
        self.sampling.over(&Sampling::default()).map(drop)
    }

    /// The files that rows are in: those of answers, and those of errors.
    fn files(&self) -> (Option<&Path>, Option<&Path>) {
        if self.relayed {
            return (None, None);
        }
        (self.output.as_deref().filter(|path| *path != Path::new("-")), self.errors.as_deref())
    }

    fn is_quiet(&self) -> bool {
        self.model.quiet || self.relayed
    }

    fn summary(&self) -> Summary {
        match self.json.as_deref() {
            _ if self.relayed => Summary::Table,
            None => Summary::Table,
            Some("-") => Summary::Json,
            Some(path) => Summary::File(path.to_owned()),
        }
    }

    /// A digest of all that makes an answer, apart from its line.
    fn settings(&self, opened: &Opened, model: &ModelArgs) -> Result<String> {
        let mut texts = Vec::new();
        for (name, bytes) in opened.copied_files()? {
            texts.extend(digest(&[name.as_bytes(), &bytes]));
        }
        // flags that are not given are left out: later versions have more of them
        let mut flags = serde_json::json!({"max_tokens": self.max_tokens, "system": self.system, "raw": self.raw, "name": self.name});
        flags["context"] = opened.context(model).into();
        flags["sampling"] = serde_json::to_value(&self.sampling).map_err(Error::from_std)?;
        let mut given = Vec::new();
        canonical(&without_nulls(flags), &mut given);
        let (model, arithmetic) = (opened.blueprint.digest.as_bytes(), model.arithmetic_id().as_bytes());
        Ok(hex(&digest(&[model, arithmetic, &texts, &given])))
    }

    fn answer(&self, loaded: &mut Loaded, mut desk: Desk, run: String, model: &ModelArgs) -> Result<Outcome> {
        let mut texts = many::texts(loaded, self.name.clone().unwrap_or_else(|| model.label()))?;
        texts.defaults.sampling = self.sampling.over(&texts.defaults.sampling)?;
        texts.fingerprint = Some(format!("fp_{}", &run[..12]));
        let maker = Maker { deterministic: self.deterministic, run };
        let clerk = Clerk {
            texts,
            maker: maker.clone(),
            system: self.system.clone(),
            raw: self.raw,
            max_tokens: self.max_tokens,
            name: desk.unnamed_form(),
        };
        let concurrency = self.many.max_concurrency;
        let items = clerk.start(desk.intake()?, 2 * concurrency)?;
        let mut watch = desk.watch();
        let end = Answers::new(&mut loaded.engine, self.many.limits(), maker, &mut desk.rows, &mut watch, concurrency)
            .run(&items);
        desk.end(&watch, end)
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let given = object.into_iter().filter(|(_, value)| !value.is_null());
            given.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        other => other,
    }
}

fn say_form(name: &str, form: Form) {
    ui::whisper(match form {
        Form::Jsonl => format!("{name}: JSON lines"),
        Form::Text => format!("{name}: text, a prompt a line"),
    });
}
