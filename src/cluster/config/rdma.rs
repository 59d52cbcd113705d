//! RDMA devices: from the table of every host to the devices between every two, none missing and none too many.

use std::collections::HashMap;

use super::read::{Source, near, shown};
use super::written::Rdma;
use super::{Host, Topology};
use crate::error::Result;
use crate::transport::rdma::Place;

/// Apple's devices, of which each is a port with one cable.
const THUNDERBOLT: &str = "rdma_en";

/// Whether two ranks of a ring or mesh of `size` have a link.
fn linked(a: usize, b: usize, size: usize, topology: Topology) -> bool {
    match topology {
        Topology::Mesh => a != b,
        Topology::Ring => a != b && ((a + 1) % size == b || (b + 1) % size == a),
    }
}

/// Gives every host the devices that `written` has for it.
pub(super) fn connect(
    hosts: &mut [Host],
    (written, entries): (Vec<Option<Rdma>>, &[u64]),
    topology: Topology,
    source: Source<'_>,
) -> Result<()> {
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    let size = hosts.len();
    let Some(with) = written.iter().position(Option::is_some) else { return Ok(()) };
    let mut lines = Vec::new();
    for (rank, rdma) in written.into_iter().enumerate() {
        let Some(rdma) = rdma else {
            let message = format!("host `{}` names RDMA devices, and host `{}` names none", names[with], names[rank]);
            return Err(source.refuse(entries[rank], message, "give `rdma` for every host or for none"));
        };
        let (line, row) = row(rank, rdma, &names, topology, source)?;
        lines.push(line);
        hosts[rank].rdma = row;
    }
    for a in 0..size {
        for b in (0..size).filter(|b| *b != a) {
            let (there, back) = (hosts[a].rdma[b].len(), hosts[b].rdma[a].len());
            if there == 0 && linked(a, b, size, topology) {
                let message = format!("host `{}` names no RDMA device to host `{}`", names[a], names[b]);
                let hint = match topology {
                    Topology::Mesh => "a mesh has a cable between every two hosts; with fewer, write `topology: ring`",
                    Topology::Ring => {
                        "in a ring every host has a cable to the one before and the one after it in the list"
                    }
                };
                return Err(source.refuse(lines[a], message, hint));
            }
            if there != back {
                let message = format!(
                    "host `{}` names {there} RDMA devices to host `{}`, which names {back} back",
                    names[a], names[b]
                );
                return Err(source.refuse(lines[a], message, "a cable has two ends: name a device on both hosts"));
            }
        }
    }
    Ok(())
}

/// A host's devices by rank.
fn row(
    rank: usize,
    rdma: Rdma,
    names: &[String],
    topology: Topology,
    source: Source<'_>,
) -> Result<(u64, Vec<Vec<Place>>)> {
    let mut row = vec![Vec::new(); names.len()];
    let (line, peers) = match rdma {
        Rdma::Every(device) => {
            for peer in (0..names.len()).filter(|peer| linked(rank, *peer, names.len(), topology)) {
                row[peer].push(device.value.clone());
            }
            (device.line, Default::default())
        }
        Rdma::Peers(line, peers) => (line, peers),
    };
    for (name, devices) in peers {
        let Some(peer) = names.iter().position(|known| *known == name) else {
            let message = format!("host `{}`: `rdma` names `{}`, which is no host here", names[rank], shown(&name));
            return Err(source.refuse(devices.line, message, near(&name, names)));
        };
        if peer == rank {
            let message = format!("host `{name}` names an RDMA device to itself");
            return Err(source.refuse(devices.line, message, "remove it"));
        }
        row[peer] = devices.items.into_iter().map(|device| device.value).collect();
    }
    let mut used: HashMap<&Place, usize> = HashMap::new();
    for (peer, devices) in row.iter().enumerate() {
        for device in devices {
            let Some(other) = used.insert(device, peer) else { continue };
            if other == peer {
                let message = format!("host `{}` names `{device}` twice to host `{}`", names[rank], names[peer]);
                return Err(source.refuse(line, message, "name every device once"));
            }
            if device.device.starts_with(THUNDERBOLT) {
                let (host, other, peer) = (&names[rank], &names[other], &names[peer]);
                let message = format!("host `{host}` names `{device}` both to host `{other}` and to host `{peer}`");
                return Err(source.refuse(line, message, "a Thunderbolt port has one cable, to one host"));
            }
        }
    }
    Ok((line, row))
}
