//! The Macs of a fleet: what they say of themselves, and orders to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::json;

use super::capture::{capture, this_program};
use super::probe::Probed;
use crate::cluster::finding::{Finding, Level};
use crate::cluster::fleet::Fleet;
use crate::cluster::thunderbolt::{self, Applied, Cabling, Mac, Order, Plan, Raw, Reach};
use crate::cluster::{Cluster, Transport};
use crate::error::{Error, Result};

/// How long a host may take to say what it is: macOS takes seconds to list its Thunderbolt ports.
const FACTS: Duration = Duration::from_secs(60);
/// How long it may take to change something.
const CHANGES: Duration = Duration::from_secs(120);

/// What hosts say of themselves.
pub(super) fn ask(fleet: &mut Fleet, hosts: &[usize], cluster: &Cluster) -> Result<Vec<Probed>> {
    let start = |host: &usize| (*host, this_program(&["probe", "facts"], &cluster.hosts[*host].env, None));
    let captured = capture(fleet, hosts.iter().map(start).collect(), FACTS);
    let read = |(host, captured): (usize, super::capture::Captured)| {
        captured.json::<Probed>().map_err(|error| error.context(&cluster.hosts[host].name))
    };
    captured.into_iter().map(read).collect()
}

/// The Mac that a host is.
pub(super) fn mac(host: &str, raw: Option<&Raw>, system: &str) -> Result<Mac> {
    let Some(raw) = raw else {
        let error = Error::usage(format!("{host} is no Mac but {system}"));
        return Err(error.hint("--over ethernet is for other machines and for mixed clusters"));
    };
    Mac::read(raw).map_err(|error| error.context(host))
}

/// Carries out an order on a host.
pub(super) fn order(fleet: &mut Fleet, host: usize, cluster: &Cluster, order: &Order) -> Result<Applied> {
    let text = json!(order).to_string();
    let start = this_program(&["probe", "apply", &text], &cluster.hosts[host].env, None);
    let captured = capture(fleet, vec![(host, start)], CHANGES).remove(&host).unwrap_or_default();
    captured.json::<Applied>().map_err(|error| error.context(&cluster.hosts[host].name))
}

/// IPv4 addresses that ssh knows of, which are no cable's.
pub(super) fn taken(fleet: &Fleet) -> Vec<Ipv4Addr> {
    let links = (0..fleet.len()).filter_map(|host| fleet.machine(host)?.link);
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    links.filter_map(|(_, client)| address(client)).collect()
}

/// What `doctor` finds out about the Macs among a cluster's hosts.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    pub(super) findings: Vec<Finding>,
    pub(super) macs: BTreeMap<usize, Mac>,
    /// The cabling in ASCII and for graphviz.
    pub(super) drawings: Option<(String, String)>,
    /// By rank, the addresses at the other ends of its cables, and whose they are.
    peers: BTreeMap<usize, Vec<(Ipv4Addr, String)>>,
}

impl Inspection {
    /// Looks at what the hosts, by rank, have said.
    pub(super) fn of(cluster: &Cluster, said: &BTreeMap<usize, &Raw>, fleet: &Fleet) -> Self {
        let mut inspection = Self::default();
        for (rank, raw) in said {
            let host = &cluster.hosts[*rank].name;
            match Mac::read(raw) {
                Ok(mac) => _ = inspection.macs.insert(*rank, mac),
                Err(error) => {
                    let fix = error.hint_text().unwrap_or("see that host").to_owned();
                    inspection.findings.push(Finding::new(Level::Error, host, error, fix));
                }
            }
        }
        if let Err(error) = inspection.cables(cluster, fleet) {
            let fix = error.hint_text().unwrap_or("see those hosts").to_owned();
            inspection.findings.push(Finding::new(Level::Error, "cables", error, fix));
        }
        inspection
    }

    fn cables(&mut self, cluster: &Cluster, fleet: &Fleet) -> Result<()> {
        let macs: Vec<(String, Mac)> =
            self.macs.iter().map(|(rank, mac)| (cluster.hosts[*rank].name.clone(), mac.clone())).collect();
        let cabling = Cabling::of(&macs)?;
        let wanted = cluster.transport == Transport::Rdma || cluster.has_rdma();
        if macs.len() < 2 || (!wanted && cabling.cables.is_empty()) {
            return Ok(());
        }
        self.drawings = Some((thunderbolt::drawing(&macs, &cabling), thunderbolt::dot(&macs, &cabling)));
        let plan = Plan::new(&macs, &cabling, &taken(fleet))?;
        let ranks: Vec<usize> = self.macs.keys().copied().collect();
        for (cable, addresses) in &plan.addresses {
            let settled = |host: usize| plan.open(&macs).all(|(other, _)| other != host);
            let [a, b] = cable.ends.map(|end| end.host);
            if settled(a) && settled(b) {
                self.peers.entry(ranks[a]).or_default().push((addresses[1], macs[b].0.clone()));
                self.peers.entry(ranks[b]).or_default().push((addresses[0], macs[a].0.clone()));
            }
        }
        let mut found = thunderbolt::check(&macs, &cabling, &plan);
        if macs.len() == cluster.hosts.len() && cluster.transport != Transport::Tcp {
            found.extend(thunderbolt::check_file(&macs, &cabling, cluster));
        }
        let open = thunderbolt::to_do(&macs, &plan);
        found.extend(open);
        for finding in &mut found {
            if !wanted || cluster.transport == Transport::Tcp {
                finding.level = Level::Warning;
            }
        }
        self.findings.extend(found);
        Ok(())
    }

    /// Lets every Mac that is set up try its cables.
    pub(super) fn reach(&mut self, cluster: &Cluster, fleet: &mut Fleet) {
        let start = |(rank, peers): (&usize, &Vec<(Ipv4Addr, String)>)| {
            let addresses: Vec<String> = peers.iter().map(|(address, _)| address.to_string()).collect();
            let words: Vec<&str> = ["probe", "reach"].into_iter().chain(addresses.iter().map(String::as_str)).collect();
            (*rank, this_program(&words, &cluster.hosts[*rank].env, None))
        };
        for (rank, captured) in capture(fleet, self.peers.iter().map(start).collect(), FACTS) {
            let (host, peers) = (&cluster.hosts[rank].name, &self.peers[&rank]);
            match captured.json::<Vec<Reach>>() {
                Ok(all) => {
                    let found = peers
                        .iter()
                        .zip(all)
                        .filter_map(|((address, peer), reach)| thunderbolt::check_reach(host, (peer, *address), reach));
                    self.findings.extend(found);
                }
                Err(error) => {
                    let fix = error.hint_text().unwrap_or("see that host").to_owned();
                    self.findings.push(Finding::new(Level::Error, host, error, fix));
                }
            }
        }
    }
}
