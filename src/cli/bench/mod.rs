//! `tbshard bench`: how fast a model runs here, and whether what it says so fast is right.

mod all_reduce;
mod answers;
mod bandwidth;
mod cache;
mod compare;
mod first;
mod load;
mod measure;
mod output;
mod row;
mod shape;
mod spread;
mod statistics;
mod tokens;

pub(super) use all_reduce::time_all_reduce;

use clap::Subcommand;

use super::Outcome;
use super::ranks::RankArgs;
use crate::error::Result;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Tokens a second of prompts and of answers.
    TokensPerSec(Box<tokens::Args>),
    /// How long ranks of this machine take to sum a vector.
    AllReduce(all_reduce::Args),
    /// How long it takes from the start of the program to the first token.
    Load(load::Args),
    /// Compare two results of `tokens-per-sec`.
    Compare(compare::Args),
    /// Be the program whose start `bench load` times.
    #[command(hide = true)]
    FirstToken(first::Args),
}

impl Args {
    /// How the model is spread, where it may be spread over machines.
    pub(super) fn ranks(&self) -> Option<RankArgs> {
        match &self.what {
            What::TokensPerSec(args) => Some(args.on_hosts()),
            _ => None,
        }
    }

    /// Refuses what cannot be done when the command runs on the host `first` instead of this machine.
    pub(super) fn check_relayed(&self, first: &str) -> Result<()> {
        match &self.what {
            What::TokensPerSec(args) => args.check_relayed(first),
            _ => Ok(()),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::TokensPerSec(args) => tokens::run(args),
        What::AllReduce(args) => all_reduce::run(args),
        What::Load(args) => load::run(args),
        What::Compare(args) => compare::run(args),
        What::FirstToken(args) => first::run(args),
    }
}
