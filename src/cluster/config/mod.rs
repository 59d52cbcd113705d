//! The cluster file: which machines run one model together, and how.

mod check;
mod kind;
mod mlx;
mod quantity;
mod rdma;
mod read;
mod write;
mod written;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::partition::{Layout, Strategy};
use crate::transport::rdma::Place;
use read::Source;

/// Machines that run one model together, a rank each.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The hosts by rank.
    pub hosts: Vec<Host>,
    /// What carries activations.
    pub transport: Transport,
    /// How hosts are connected.
    pub topology: Topology,
    /// How a model is cut.
    pub parallel: Parallel,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// What carries activations between hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// RDMA where every host names its devices, otherwise TCP.
    #[default]
    Auto,
    /// RDMA.
    Rdma,
    /// Encrypted TCP.
    Tcp,
}

/// How hosts are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Topology {
    /// Every host to every other.
    #[default]
    Mesh,
    /// Every host to the one before and the one after it, the last to the first.
    Ring,
}

/// How a model is cut; the file has been checked to fit the number of hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parallel {
    /// Ranks that share every layer.
    pub tp: Option<usize>,
    /// Stages of layers.
    pub pp: Option<usize>,
    /// What decides where neither is given.
    pub strategy: Strategy,
    /// Layers of every stage.
    pub split: Option<Vec<usize>>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until ssh has logged in on a host.
    pub connect: Duration,
    /// Until the ranks have found each other.
    pub start: Duration,
    /// After so much silence a rank is dead.
    pub heartbeat: Duration,
    /// After so long without progress a rank is stuck.
    pub progress: Duration,
}

impl Timeouts {
    /// After so much silence a rank is dead over RDMA, where its end makes no sign: with the decision that is two seconds.
    pub const RDMA_HEARTBEAT: Duration = Duration::from_millis(1500);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            start: Duration::from_secs(60),
            heartbeat: Duration::from_secs(5),
            progress: Duration::from_secs(600),
        }
    }
}

/// A host: how it is reached, and what is there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Host {
    /// What it is called in output; no other host is called so.
    pub name: String,
    /// What ssh is given; never an option, and nothing that a shell reads as more than a name.
    pub ssh: String,
    /// Who to log in as, if ssh is not to decide.
    pub user: Option<String>,
    /// The port of its ssh, if ssh is not to decide.
    pub port: Option<u16>,
    /// Where the other hosts reach it; empty if that is yet to be looked up.
    pub addresses: Vec<IpAddr>,
    /// Devices by the rank of the peer, none for itself and for peers without a cable; empty if the file names none.
    pub rdma: Vec<Vec<Place>>,
    /// Bytes of memory for weights and context.
    pub memory: Option<u64>,
    /// Share of the work, relative to the other hosts.
    pub weight: Option<f64>,
    /// Threads that compute.
    pub threads: Option<usize>,
    /// The tbshard there: a path from `/` or `~/` on, or a name in the PATH there.
    pub binary: Option<String>,
    /// Directories there by what `--model` is given; each from `/` or `~/` on.
    pub models: BTreeMap<String, String>,
    /// Environment variables of its rank.
    pub env: BTreeMap<String, String>,
}

impl Cluster {
    /// Returns what `--hosts` was given: a file, or host names with commas between them.
    ///
    /// It is a file if there is one, and if it ends like one (`.yaml`, `.yml`, `.json`) or has a `/`.
    ///
    /// # Errors
    /// As [`Cluster::read`] and [`Cluster::of_names`].
    pub fn of_hosts(value: &str) -> Result<Self> {
        let ends = [".yaml", ".yml", ".json"].iter().any(|end| value.to_ascii_lowercase().ends_with(end));
        let path = Path::new(value);
        if ends || value.contains('/') || path.is_file() { Self::read(path) } else { Self::of_names(value) }
    }

    /// Reads a cluster.yaml, or a hostfile of MLX.
    ///
    /// # Errors
    /// Names the file, the line and the key that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read::text(path)?, &path.display().to_string())
    }

    /// Reads the text of a cluster.yaml or of a hostfile of MLX; `file` is what errors call it.
    ///
    /// # Errors
    /// As [`Cluster::read`].
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let source = Source { name: file, is_flag: false };
        let shape: serde_json::Value = read::parse(text, source, "a cluster file")?;
        let file = match mlx::mark(&shape) {
            Some(mark) => mlx::read(text, source, &mark)?,
            None => read::parse(text, source, "a cluster file")?,
        };
        check::cluster(file, source)
    }

    /// Returns the cluster of the hosts that `names` lists with commas between them, with nothing else said about them.
    ///
    /// # Errors
    /// Names the host that cannot be one, or is there twice.
    pub fn of_names(names: &str) -> Result<Self> {
        let source = Source { name: "--hosts", is_flag: true };
        let entry = |name: &str| {
            written::Entry::named(0, name.trim()).map_err(|problem| {
                let (message, hint) = problem.split_once('\n').unwrap_or((&problem, ""));
                source.refuse(0, format!("one of the names {message}"), hint)
            })
        };
        let hosts = names.split(',').map(entry).collect::<Result<_>>()?;
        check::cluster(written::File::of(hosts), source)
    }

    /// What every rank's share is proportional to: `weight`, else `memory`, else all alike.
    pub fn weights(&self) -> Vec<u64> {
        let weights = self.hosts.iter().map(|host| host.weight.map(|weight| ((weight * 1000.0).round() as u64).max(1)));
        let memory = || self.memory().map(|memory| memory.iter().map(|bytes| (bytes >> 20).max(1)).collect());
        weights.collect::<Option<_>>().or_else(memory).unwrap_or_else(|| vec![1; self.hosts.len()])
    }

    /// Bytes of memory of every host, if the file says so.
    pub fn memory(&self) -> Option<Vec<u64>> {
        self.hosts.iter().map(|host| host.memory).collect()
    }

    /// What a plan for these hosts is made from.
    pub fn layout(&self) -> Layout {
        let Parallel { tp, pp, strategy, split } = self.parallel.clone();
        Layout {
            world_size: self.hosts.len(),
            tp,
            pp,
            strategy,
            split,
            weights: self.weights(),
            memory: self.memory().unwrap_or_default(),
        }
    }

    /// Makes the host `at` the first one; the order of the others stays. Layers by hand, one number a host, go with it.
    pub fn lead(&mut self, at: usize) {
        let moved = self.hosts.remove(at);
        self.hosts.insert(0, moved);
        if let Some(split) = self.parallel.split.as_mut().filter(|split| split.len() == self.hosts.len()) {
            split[..=at].rotate_right(1);
        }
        for host in self.hosts.iter_mut().filter(|host| at < host.rdma.len()) {
            let devices = host.rdma.remove(at);
            host.rdma.insert(0, devices);
        }
    }

    /// Whether every host names RDMA devices.
    pub fn has_rdma(&self) -> bool {
        self.hosts.iter().all(|host| !host.rdma.is_empty())
    }

    /// Whether activations go over RDMA.
    pub fn uses_rdma(&self) -> bool {
        let wanted = match self.transport {
            Transport::Auto | Transport::Rdma => true,
            Transport::Tcp => false,
        };
        wanted && self.hosts.len() > 1 && self.has_rdma()
    }

    /// The ranks that every rank has RDMA cables to, if they are not all.
    pub fn neighbours(&self) -> Option<Vec<Vec<usize>>> {
        let size = self.hosts.len();
        let cabled = |host: &Host| (0..host.rdma.len()).filter(|peer| !host.rdma[*peer].is_empty()).collect();
        let all: Vec<Vec<usize>> = self.hosts.iter().map(cabled).collect();
        all.iter().any(|others| others.len() + 1 < size).then_some(all)
    }

    /// Returns a commented cluster.yaml that reads back as this cluster (timeouts to the millisecond).
    pub fn to_yaml(&self) -> String {
        write::yaml(self)
    }
}

/// Returns the JSON Schema of a cluster.yaml, for editors.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(written::File).to_value()
}
