//! `tbshard probe`: what `doctor` and `setup` run on every host. Not for people.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::load::ModelArgs;
use super::rank::end_with_the_starter;
use super::{Outcome, env, ui};
use crate::cluster::devices::Devices;
use crate::cluster::facts::Facts;
use crate::cluster::run::Run;
use crate::cluster::thunderbolt::{self, Raw};
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::partition::Plan;

/// Values of a small message: 4 KiB.
const SMALL: usize = 1024;
/// Round trips that are timed, after a tenth as many that are not.
const TRIPS: usize = 200;
/// Values of a large message: 8 MiB.
const LARGE: usize = 2 << 20;
/// Large messages that are timed.
const LOADS: usize = 4;
/// A port that has a listener on most hosts; where it has none, that is an answer too.
const SSH: u16 = 22;
/// How long a neighbour may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of one rank's measurements at most.
const MAX_BYTES: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print what this machine is, and whether it has a model.
    Facts {
        #[command(flatten)]
        model: ModelArgs,
        /// Ask the RDMA devices too.
        #[arg(long)]
        rdma: bool,
    },
    /// Carry out an order of `setup`.
    Apply {
        /// As JSON.
        order: String,
    },
    /// Print whether these addresses are reached.
    Reach {
        /// The addresses.
        addresses: Vec<Ipv4Addr>,
    },
    /// As a rank: measure the links to all other ranks; rank 0 prints them.
    Links,
}

/// What `probe facts` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Probed {
    pub(super) facts: Facts,
    /// Of the model that was asked for, if one was.
    pub(super) model: Option<Found>,
    /// What a Mac says of its Thunderbolt ports.
    #[serde(default)]
    pub(super) mac: Option<Raw>,
    /// What its RDMA devices say, if that was asked.
    #[serde(default)]
    pub(super) rdma: Option<Devices>,
}

/// A model on a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Found {
    /// It is there.
    Present {
        /// What tells it from others.
        digest: String,
        /// Bytes of all its weights.
        bytes: u64,
    },
    /// It cannot be opened: the error, and its hint.
    Absent(String, String),
}

impl Found {
    /// What this machine has of a model.
    pub(super) fn of(model: &ModelArgs) -> Self {
        let look = || {
            let blueprint = model.open()?.blueprint;
            let bytes = blueprint.share(&Plan::solo(blueprint.geometry.layers), 0)?.bytes();
            Ok(Self::Present { digest: blueprint.digest, bytes })
        };
        look().unwrap_or_else(|error: Error| {
            Self::Absent(error.to_string(), error.hint_text().unwrap_or_default().to_owned())
        })
    }
}

/// A link as `probe links` measured it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LinkSpeed {
    /// The ranks at its ends.
    pub(super) ranks: (usize, usize),
    /// Half of a round trip of 4 KiB, the median, in seconds.
    pub(super) seconds: f64,
    /// Bytes a second in messages of 8 MiB, one way.
    pub(super) bytes_per_second: f64,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    match &args.what {
        What::Facts { model, rdma } => {
            let found = model.model.as_ref().map(|_| Found::of(model));
            let mac = Raw::here(env::home().as_deref())?;
            let rdma = rdma.then(Devices::here);
            let probed = Probed { facts: Facts::here(), model: found, mac, rdma };
            ui::print(&(json!(probed).to_string() + "\n"))?;
        }
        What::Apply { order } => {
            let order = serde_json::from_str(order).map_err(Error::from_std);
            let home = env::home().ok_or_else(|| Error::msg("HOME is not set").hint("log in as a user who has one"))?;
            let applied = thunderbolt::apply(&order?, &home, &mut thunderbolt::run)?;
            ui::print(&(json!(applied).to_string() + "\n"))?;
        }
        What::Reach { addresses } => {
            let connect = |address| TcpStream::connect_timeout(&SocketAddr::from((address, SSH)), PATIENCE).map(|_| ());
            let reach = |address: &Ipv4Addr| thunderbolt::reach(*address, &connect, &mut thunderbolt::run);
            let all: Vec<_> = addresses.iter().map(reach).collect();
            ui::print(&(json!(all).to_string() + "\n"))?;
        }
        What::Links => {
            let Some(run) = Run::inherited()? else {
                return Err(Error::usage("`tbshard probe links` is started by `tbshard doctor`").hint("run that"));
            };
            let joined = run.join(|| end_with_the_starter(&AtomicBool::new(true)))?;
            let links = links(&joined.world)?;
            joined.monitor.finish()?;
            if joined.world.rank() == 0 {
                ui::print(&(json!(links).to_string() + "\n"))?;
            }
        }
    }
    Ok(Outcome::Done)
}

/// Measures all pairs of ranks, one after the other; on rank 0 all of them come together.
fn links(world: &Communicator) -> Result<Vec<LinkSpeed>> {
    let (rank, size) = (world.rank(), world.world_size());
    let mut own = Vec::new();
    for a in 0..size {
        for b in a + 1..size {
            world.barrier()?;
            if rank == a {
                own.push(measure(world, a, b)?);
            } else if rank == b {
                answer(world, a)?;
            }
        }
    }
    world.barrier()?;
    let text = serde_json::to_vec(&own).map_err(Error::from_std)?;
    let all = world.gather_bytes(&text, MAX_BYTES)?;
    let read = |text: &Vec<u8>| serde_json::from_slice::<Vec<LinkSpeed>>(text).map_err(Error::from_std);
    Ok(all.iter().map(read).collect::<Result<Vec<_>>>()?.concat())
}

fn measure(world: &Communicator, a: usize, b: usize) -> Result<LinkSpeed> {
    let small = vec![1.0; SMALL];
    let mut times = Vec::new();
    for trip in 0..TRIPS + TRIPS / 10 {
        let start = Instant::now();
        world.send(b, &small)?;
        world.recv(b, SMALL)?;
        if trip >= TRIPS / 10 {
            times.push(start.elapsed().as_secs_f64() / 2.0);
        }
    }
    times.sort_by(f64::total_cmp);
    let large = vec![1.0; LARGE];
    let start = Instant::now();
    for _ in 0..LOADS {
        world.send(b, &large)?;
    }
    world.recv(b, 1)?;
    let bytes_per_second = (LOADS * LARGE * 4) as f64 / start.elapsed().as_secs_f64();
    Ok(LinkSpeed { ranks: (a, b), seconds: times[times.len() / 2], bytes_per_second })
}

fn answer(world: &Communicator, a: usize) -> Result<()> {
    for _ in 0..TRIPS + TRIPS / 10 {
        let values = world.recv(a, SMALL)?;
        world.send(a, &values)?;
    }
    for _ in 0..LOADS {
        world.recv(a, LARGE)?;
    }
    world.send(a, &[1.0])
}
