//! MLX's hostfiles, as they are: a list of hosts, or a table with `hosts`, `backend` and `envs`.

use std::collections::BTreeMap;

use schemars::{Schema, json_schema};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::kind::{Address, Assignment, Device, Kind, Ssh, bare};
use super::read::{self, At, Many, Source};
use super::written::{Entry, File, Host, Rdma};
use super::{Topology, Transport};
use crate::error::Result;

/// Keys that only a hostfile of MLX has.
const OWN_KEYS: [&str; 2] = ["backend", "envs"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hostfile {
    backend: Option<At<Backend>>,
    #[serde(default)]
    envs: Vec<At<Assignment>>,
    hosts: Vec<Spanned<MlxHost>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MlxHost {
    ssh: At<Ssh>,
    #[serde(default)]
    ips: Vec<At<Address>>,
    #[serde(default)]
    rdma: Option<Row>,
}

/// The devices to every peer, null for none.
type Row = Spanned<Vec<Option<Many<Device>>>>;

/// What MLX calls the ways of its ranks to talk.
struct Backend;
impl Kind for Backend {
    type Value = (Transport, Topology);
    const IS: &'static str = "`jaccl`, `jaccl-ring`, `ring`, `mpi` or `nccl`";
    const HINT: &'static str = "jaccl is RDMA in a mesh, jaccl-ring RDMA in a ring, ring TCP in a ring";
    fn parse(text: &str) -> Option<Self::Value> {
        match text {
            "jaccl" => Some((Transport::Rdma, Topology::Mesh)),
            "jaccl-ring" => Some((Transport::Rdma, Topology::Ring)),
            "ring" => Some((Transport::Tcp, Topology::Ring)),
            // what these need of a network, TCP between all hosts gives
            "mpi" | "nccl" => Some((Transport::Tcp, Topology::Mesh)),
            "" => Some((Transport::Auto, Topology::Mesh)),
            _ => None,
        }
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// What tells that a file is a hostfile of MLX, if it is.
pub(super) fn mark(file: &Value) -> Option<String> {
    let hosts = match file {
        Value::Array(_) => return Some("it is a list".to_owned()),
        Value::Object(table) => {
            if let Some(key) = OWN_KEYS.iter().find(|key| table.contains_key(**key)) {
                return Some(format!("it has `{key}`"));
            }
            table.get("hosts")?.as_array()?
        }
        _ => return None,
    };
    hosts.iter().find_map(|host| {
        let listed = host.get("rdma").is_some_and(Value::is_array).then(|| "`rdma` is a list".to_owned());
        host.get("ips").map(|_| "a host has `ips`".to_owned()).or(listed)
    })
}

/// Reads a hostfile of MLX, which `mark` tells it to be.
pub(super) fn read(text: &str, source: Source<'_>, mark: &str) -> Result<File> {
    let form = format!("an MLX hostfile (which this is, because {mark})");
    let is_list = mark == "it is a list";
    let file: Hostfile = if is_list {
        Hostfile { backend: None, envs: Vec::new(), hosts: read::parse(text, source, &form)? }
    } else {
        read::parse(text, source, &form)?
    };
    let names = names(&file.hosts);
    let size = file.hosts.len();
    let mut hosts = Vec::new();
    for (rank, (host, name)) in file.hosts.into_iter().zip(&names).enumerate() {
        let line = host.defined.line();
        let MlxHost { ssh, ips, rdma } = host.value;
        let rdma = match rdma {
            Some(row) if !row.value.is_empty() => Some(peers(rank, size, row, &names, source)?),
            _ => None,
        };
        let env =
            file.envs.iter().map(|pair| (pair.value.0.clone(), At { line: pair.line, value: pair.value.1.clone() }));
        let host = Host {
            name: Some(At { line: ssh.line, value: name.clone() }),
            addresses: (!ips.is_empty()).then_some(Many { line, items: ips }),
            rdma,
            env: Some(env.collect()),
            ssh: Some(ssh),
            ..Host::default()
        };
        hosts.push(Entry { line, host });
    }
    let mut made = File::of(hosts);
    if let Some(At { line, value: (transport, topology) }) = file.backend {
        made.transport = Some(At { line, value: transport });
        made.topology = Some(At { line, value: topology });
    }
    Ok(made)
}

/// A name for every host; one that is listed more than once is numbered.
fn names(hosts: &[Spanned<MlxHost>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for host in hosts {
        let name = bare(&host.value.ssh.value);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !names.contains(name));
        names.extend(free);
    }
    names
}

/// A row of the matrix as a table by name.
fn peers(rank: usize, size: usize, row: Row, names: &[String], source: Source<'_>) -> Result<Rdma> {
    let line = row.defined.line();
    if row.value.len() != size {
        let message = format!("`hosts[{rank}].rdma` has {} entries for {size} hosts", row.value.len());
        return Err(source.refuse(line, message, "it has one for every host in their order, null for the host itself"));
    }
    let mut peers = BTreeMap::new();
    for (peer, devices) in row.value.into_iter().enumerate() {
        let Some(devices) = devices.filter(|devices| !devices.items.is_empty()) else { continue };
        if peer == rank {
            let message = format!("`hosts[{rank}].rdma[{peer}]` is a device from the host to itself");
            return Err(source.refuse(devices.line, message, "write null there"));
        }
        peers.insert(names[peer].clone(), devices);
    }
    Ok(Rdma::Peers(line, peers))
}
