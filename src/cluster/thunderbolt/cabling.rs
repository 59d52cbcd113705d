//! Who is cabled to whom: a port sees the domain of the port at the other end, also through hubs.

use std::collections::HashMap;

use super::Mac;
use crate::error::{Error, Result};

/// An order of hosts, and the cables that it lacks as a ring.
type Ring = (Vec<usize>, Vec<(usize, usize)>);

/// Hosts for which every order of a ring is tried.
const TRIED: usize = 8;

/// A port of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// The host's index.
    pub host: usize,
    /// The port's index in [`Mac::ports`].
    pub port: usize,
}

/// A cable, or several with hubs between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cable {
    /// Its ends, that of the earlier host first.
    pub ends: [End; 2],
    /// Hubs and docks on the way, from the first end on.
    pub via: Vec<String>,
    /// Whether both ends see each other.
    pub mutual: bool,
    /// Whether RDMA can go over it: both interfaces are known, both ports are fast enough, neither has another peer.
    pub usable: bool,
}

/// All cables between some hosts.
#[derive(Debug, Clone, Default)]
pub struct Cabling {
    /// The cables, in the order of their ends.
    pub cables: Vec<Cable>,
    /// Ports with a machine at the other end that is none of these, and what it calls itself.
    pub strangers: Vec<(End, String)>,
    hosts: usize,
}

/// What the cables make of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A cable between every two.
    Mesh,
    /// A cable to the one before and the one after, in this order.
    Ring(Vec<usize>),
    /// Neither; these are the cables that a ring lacks, as few as can be.
    Neither(Vec<(usize, usize)>),
}

impl Cabling {
    /// The cables between `macs`, which come with their names.
    ///
    /// # Errors
    /// If two of them are the same machine.
    pub fn of(macs: &[(String, Mac)]) -> Result<Self> {
        let ends = |host: usize| (0..macs[host].1.ports.len()).map(move |port| End { host, port });
        let port = |end: End| &macs[end.host].1.ports[end.port];
        let mut owners: HashMap<&str, End> = HashMap::new();
        for end in (0..macs.len()).flat_map(ends) {
            let Some(domain) = &port(end).domain else { continue };
            if let Some(other) = owners.insert(domain, end).filter(|other| other.host != end.host) {
                let (one, two) = (&macs[other.host].0, &macs[end.host].0);
                let error = Error::usage(format!("{one} and {two} are the same Mac: both have the port {domain}"));
                return Err(error.hint("name every Mac once"));
            }
        }
        let mut all = Self { hosts: macs.len(), ..Self::default() };
        for end in (0..macs.len()).flat_map(ends) {
            for seen in &port(end).seen {
                let other = owners.get(seen.domain.as_str()).copied().filter(|other| other.host != end.host);
                let Some(other) = other else {
                    all.strangers.push((end, seen.name.clone()));
                    continue;
                };
                let (mut ends, mut via) = ([end, other], seen.via.clone());
                if other < end {
                    ends.reverse();
                    via.reverse();
                }
                match all.cables.iter_mut().find(|cable| cable.ends == ends) {
                    Some(cable) => cable.mutual = true,
                    None => all.cables.push(Cable { ends, via, mutual: false, usable: false }),
                }
            }
        }
        all.cables.sort_by_key(|cable| cable.ends);
        let mut used = Vec::new();
        for cable in &mut all.cables {
            let fits = |end: &End| {
                let port = port(*end);
                let slow = port.speed.is_some_and(|speed| !speed.is_fifth());
                port.interface.is_some() && !slow && !used.contains(end)
            };
            cable.usable = cable.ends.iter().all(fits);
            if cable.usable {
                used.extend(cable.ends);
            }
        }
        Ok(all)
    }

    /// The cables that RDMA can go over.
    pub fn usable(&self) -> impl Iterator<Item = &Cable> {
        self.cables.iter().filter(|cable| cable.usable)
    }

    /// Whether RDMA can go between two hosts.
    pub fn linked(&self, a: usize, b: usize) -> bool {
        let hosts = [a.min(b), a.max(b)];
        self.usable().any(|cable| cable.ends.map(|end| end.host) == hosts)
    }

    /// Pairs of hosts that a mesh would need a cable between.
    pub fn missing(&self) -> Vec<(usize, usize)> {
        let pairs = (0..self.hosts).flat_map(|a| (a + 1..self.hosts).map(move |b| (a, b)));
        pairs.filter(|(a, b)| !self.linked(*a, *b)).collect()
    }

    /// What the cables make of the hosts. Two hosts with a cable are a mesh.
    pub fn shape(&self) -> Shape {
        if self.missing().is_empty() {
            return Shape::Mesh;
        }
        let (mut best, mut tried): (Option<Ring>, usize) = (None, 0);
        // where there are many hosts, only orders along cables are tried
        let gaps = if self.hosts <= TRIED { self.hosts } else { 0 };
        self.rings(&mut vec![0], &mut Vec::new(), gaps, &mut best, &mut tried);
        match best {
            Some((order, gaps)) if gaps.is_empty() => Shape::Ring(order),
            Some((_, gaps)) => Shape::Neither(gaps),
            None => Shape::Neither(self.missing()),
        }
    }

    /// Goes on with `order` as a ring of which `gaps` are not there, fewer than in the best one so far.
    fn rings(
        &self,
        order: &mut Vec<usize>,
        gaps: &mut Vec<(usize, usize)>,
        most: usize,
        best: &mut Option<Ring>,
        tried: &mut usize,
    ) {
        *tried += 1;
        let limit = best.as_ref().map_or(most, |(_, gaps)| gaps.len().saturating_sub(1));
        if gaps.len() > limit || *tried > 1_000_000 || best.as_ref().is_some_and(|(_, gaps)| gaps.is_empty()) {
            return;
        }
        let Some(last) = order.last().copied() else { return };
        let complete = order.len() == self.hosts;
        let next = if complete { 0..1 } else { 1..self.hosts };
        for next in next.filter(|next| complete || !order.contains(next)).collect::<Vec<_>>() {
            let gap = !self.linked(last, next);
            if gap {
                gaps.push((last.min(next), last.max(next)));
            }
            let limit = best.as_ref().map_or(most, |(_, gaps)| gaps.len().saturating_sub(1));
            if complete && gaps.len() <= limit {
                *best = Some((order.clone(), gaps.clone()));
            } else if !complete {
                order.push(next);
                self.rings(order, gaps, most, best, tried);
                order.pop();
            }
            if gap {
                gaps.pop();
            }
        }
    }

    /// RDMA devices by host and peer, as in a cluster file: of two hosts' devices the first are one cable, and so on.
    pub fn devices(&self, macs: &[(String, Mac)]) -> Vec<Vec<Vec<String>>> {
        let mut devices = vec![vec![Vec::new(); macs.len()]; macs.len()];
        for cable in self.usable() {
            let [a, b] = cable.ends;
            for (end, peer) in [(a, b), (b, a)] {
                let interface = macs[end.host].1.ports[end.port].interface.as_deref().unwrap_or_default();
                devices[end.host][peer.host].push(format!("rdma_{interface}"));
            }
        }
        devices
    }
}
