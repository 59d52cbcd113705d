//! The flags that say on what a benchmark runs, and every combination of them.

use clap::Args;

use crate::cli::hosts::HostsArgs;
use crate::cli::load::{ModelArgs, all_cores};
use crate::cli::rank;
use crate::cli::ranks::{FabricArg, Prepared, RankArgs, StrategyArg};
use crate::cli::rdma::RdmaArgs;
use crate::error::{Error, Result};

/// On what it runs. Comma lists are run in every combination.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct Spread {
    /// Run so many ranks as processes on this machine; one rank comes first
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "hosts")]
    local: Vec<usize>,
    #[command(flatten)]
    pub(super) hosts: HostsArgs,
    /// Ranks that share every layer; with fewer than all, the others are further stages: of 4 ranks, 2 is two stages of two and
    /// 1 is four stages (`generate` has --pp for that, which is a prompt here) [default: what --strategy says]
    #[arg(long, value_name = "T,…", value_delimiter = ',')]
    tp: Vec<usize>,
    /// What decides where --tp does not
    #[arg(long, value_enum)]
    strategy: Option<StrategyArg>,
    /// Layers of every stage: 32,20,12
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    split: Option<Vec<usize>>,
    /// What carries activations between ranks of this machine [default: shm]
    #[arg(long, value_enum, requires = "local")]
    transport: Option<FabricArg>,
    #[command(flatten)]
    rdma: RdmaArgs,
    /// Threads of every rank [default: all cores, shared out]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    threads: Vec<usize>,
    /// With --local: do not run on one rank as well, to say how well it scales
    #[arg(long, requires = "local")]
    no_baseline: bool,
}

/// One of the combinations, ready to begin.
pub(super) struct Setting {
    pub(super) ranks: RankArgs,
    pub(super) prepared: Prepared,
    /// What carries activations, if something does.
    pub(super) transport: Option<&'static str>,
    /// Whether its rows are shown; else it is only what others are measured against.
    pub(super) shown: bool,
    // threads of a rank; not known for ranks elsewhere
    threads: Option<usize>,
}

impl Setting {
    /// Whether it has one rank.
    pub(super) fn is_alone(&self) -> bool {
        self.prepared.plan.world_size() == 1
    }
}

impl Spread {
    /// How a run over machines is asked for.
    pub(super) fn on_hosts(&self) -> RankArgs {
        RankArgs { hosts: self.hosts.clone(), rdma: self.rdma.clone(), ..RankArgs::default() }
    }

    /// Every combination, planned for `model`: by ranks (one rank first), their arrangement, and threads.
    ///
    /// # Errors
    /// If one of them cannot be.
    pub(super) fn settings(&self, model: &ModelArgs) -> Result<Vec<Setting>> {
        let or_none = |list: &[usize]| -> Vec<Option<usize>> {
            if list.is_empty() { vec![None] } else { list.iter().copied().map(Some).collect() }
        };
        let mut locals = or_none(&self.local);
        locals.sort_by_key(|local| *local != Some(1));
        let mut settings = Vec::new();
        for local in locals {
            // one rank among others in a list is simply not arranged
            let plain = local == Some(1) && self.local.iter().any(|other| *other != 1);
            for tp in if plain { vec![None] } else { or_none(&self.tp) } {
                for threads in or_none(&self.threads) {
                    let (hosts, rdma) = (self.hosts.clone(), self.rdma.clone());
                    let ranks = RankArgs { local, threads, hosts, rdma, ..RankArgs::default() };
                    let arranged = RankArgs { tp, strategy: self.strategy, split: self.split.clone(), ..ranks.clone() };
                    let ranks = if plain { ranks } else { arranged };
                    settings.push(self.setting(RankArgs { transport: self.transport, ..ranks }, model, true)?);
                }
            }
        }
        if self.local.is_empty() || self.no_baseline {
            return Ok(settings);
        }
        self.with_baselines(settings, model)
    }

    /// Adds one rank, not shown, for every number of threads that others have and no single rank has.
    fn with_baselines(&self, settings: Vec<Setting>, model: &ModelArgs) -> Result<Vec<Setting>> {
        let mut all: Vec<Setting> = Vec::new();
        for setting in settings {
            let there = all.iter().any(|other| other.is_alone() && other.threads == setting.threads);
            if !setting.is_alone() && !there {
                let ranks = RankArgs { local: Some(1), threads: setting.threads, ..RankArgs::default() };
                all.push(self.setting(ranks, model, false)?);
            }
            all.push(setting);
        }
        Ok(all)
    }

    fn setting(&self, ranks: RankArgs, model: &ModelArgs, shown: bool) -> Result<Setting> {
        let prepared = ranks.prepare(model)?;
        let world = prepared.plan.world_size();
        let transport = match (world, self.local.is_empty(), self.transport) {
            (1, ..) => None,
            (_, true, _) if prepared.uses_rdma() => Some("rdma"),
            (_, false, Some(FabricArg::Rdma)) => Some("rdma"),
            (_, true, _) | (_, _, Some(FabricArg::Tcp | FabricArg::Plain)) => Some("tcp"),
            (_, false, None | Some(FabricArg::Shm)) => Some("shm"),
        };
        let share = || rank::share(0, world, rank::cpus().len()).len().max(1);
        let default = || if world == 1 { all_cores() } else { share() };
        let threads = (!self.local.is_empty() || world == 1).then(|| ranks.threads.unwrap_or_else(default));
        Ok(Setting { ranks, prepared, transport, shown, threads })
    }

    /// Refuses several values where ranks are started once, for which `because` is the reason.
    pub(super) fn check_once(&self, because: &str) -> Result<()> {
        let lists = [("--threads", &self.threads), ("--tp", &self.tp), ("--local", &self.local)];
        let Some((flag, _)) = lists.into_iter().find(|(_, values)| values.len() > 1) else { return Ok(()) };
        let error = Error::usage(format!("{flag} has several values, and {because}"));
        Err(error.hint(format!("run it once for every value of {flag}")))
    }
}
