//! The command line: one file a command, and the only room that prints, reads the environment or exits.
mod agent;
mod answer;
mod batch;
mod bench;
mod capture;
mod caught;
mod chat;
mod console;
mod device;
mod doctor;
mod env;
mod fault;
mod generate;
mod hosts;
mod interrupt;
mod launch;
mod leave;
mod load;
mod loading;
mod macs;
mod many;
mod models;
mod numbers;
mod others;
mod probe;
mod prompt;
mod quantize;
mod rank;
mod ranks;
mod rdma;
mod relay;
mod room;
mod sampling;
mod schema;
mod score;
mod selftest;
mod serve;
mod setup;
mod table;
mod task;
mod terminal;
mod ui;
mod wrap;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Kind, Result};

/// The exit code of a command that the user ended.
const INTERRUPTED: u8 = 130;

/// The exit code when a rank was lost, refused or silent.
const LOST: u8 = 3;

/// Run large language models from safetensors.
#[derive(Debug, Parser)]
#[command(name = "tbshard", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 a rank failed, 130 interrupted. The answer goes to stdout, all else to stderr."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt.
    Generate(generate::Args),
    /// Talk with a model.
    Chat(chat::Args),
    /// Answer over HTTP as OpenAI's API does, with a page to chat on.
    Serve(serve::Args),
    /// Measure how well a model predicts a text.
    Score(score::Args),
    /// Answer every line of a file, and go on where a run ended.
    Batch(batch::Args),
    /// Measure speed.
    Bench(bench::Args),
    /// Write a model in fewer bits, as mlx_lm does.
    Quantize(quantize::Args),
    /// List the models that have a short name.
    Models(models::Args),
    /// Run any program on every host of a cluster, as the ranks of one run.
    Launch(launch::Args),
    /// Say what would keep a run from working, and what mends it.
    Doctor(doctor::Args),
    /// Write a cluster file from what the hosts say of themselves.
    Setup(setup::Args),
    /// Say what this machine is, or measure links as a rank.
    #[command(hide = true)]
    Probe(probe::Args),
    /// Start a rank for a launcher on another machine.
    #[command(hide = true)]
    Agent,
    /// Compare every operation of this machine's GPU (or processor) with plain arithmetic, and measure it.
    Selftest(selftest::Args),
    /// Print the JSON Schema of cluster files, for editors.
    Schema,
    /// Be one of the ranks that another command started.
    #[command(hide = true)]
    Rank,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
    /// A rank failed, and rank 0 says so.
    Lost,
    /// As what was run for it ended.
    Code(u8),
}

/// Parses the command line, runs the command, and returns the exit code.
pub fn run() -> ExitCode {
    let foreign = std::env::args_os().position(|arg| arg.to_str().is_none());
    if let Some(at) = foreign {
        let error = Error::usage(format!("argument {at} of the command line is not UTF-8"));
        return report(&error.hint("give such text with --prompt-file, converted with `iconv -t UTF-8`"));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // the terminal may be gone; there is nobody else to tell
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let draining = matches!(cli.command, Command::Serve(_));
    let code = match leave::listen(draining).and_then(|()| dispatch(cli.command)) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Lost) => ExitCode::from(LOST),
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) => report(&error),
    };
    // a thread may outlive its command: an engine that is loading while a server ends
    leave::close();
    code
}

impl Command {
    /// How a command that runs a model spreads it.
    fn ranks(&self) -> Option<ranks::RankArgs> {
        match self {
            Self::Generate(args) => Some(args.ranks.clone()),
            Self::Chat(args) => Some(args.ranks.clone()),
            Self::Serve(args) => Some(args.ranks.clone()),
            Self::Score(args) => Some(args.ranks.clone()),
            Self::Batch(args) => Some(args.ranks.clone()),
            Self::Bench(args) => args.ranks(),
            _ => None,
        }
    }
}

fn dispatch(command: Command) -> Result<Outcome> {
    if let Some(ranks) = command.ranks() {
        // the same command runs on every host under `launch`, and only rank 0 talks with the user
        if env::rank().is_some_and(|rank| rank > 0) {
            return rank::run();
        }
        if let Some(machines) = ranks.elsewhere()? {
            return relay::run(&command, &machines, &ranks);
        }
    }
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Batch(args) => batch::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Launch(args) => launch::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Agent => agent::run(),
        Command::Selftest(args) => selftest::run(&args),
        Command::Schema => schema::run(),
        Command::Rank => rank::run(),
    }
}

fn report(error: &Error) -> ExitCode {
    if error.kind() != Kind::Interrupted && !error.is_shown() {
        ui::say(format_args!("{} {error}", ui::paint_err("error:", "1;31")));
        if let Some(hint) = error.hint_text() {
            ui::say(format_args!("{} {hint}", ui::paint_err("hint:", "36")));
        }
    }
    match error.kind() {
        Kind::Interrupted => ExitCode::from(INTERRUPTED),
        Kind::Failed | Kind::Panicked => ExitCode::FAILURE,
        Kind::Usage => ExitCode::from(2),
        Kind::Cluster => ExitCode::from(LOST),
    }
}
