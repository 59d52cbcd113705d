//! `tbshard doctor`: what would keep a run from working, and the command that mends it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::json;

use super::agent::BUILD;
use super::capture::{capture, this_program};
use super::hosts::{HostsArgs, Lines, Machines, enlist};
use super::load::ModelArgs;
use super::macs::Inspection;
use super::probe::{Found, LinkSpeed, Probed};
use super::table::aligned;
use super::{Outcome, ui};
use crate::cluster::agent::Machine;
use crate::cluster::facts::Facts;
use crate::cluster::finding::{Finding, Level};
use crate::cluster::fleet::Fleet;
use crate::cluster::thunderbolt::{self, Mac, Raw};
use crate::cluster::ticket::{Fabric, Meeting, Ticket};
use crate::error::{Error, Result};

/// How long a host may take to say what it is; it may have to read the headers of a large model.
const FACTS: Duration = Duration::from_secs(60);
/// How long all links may take.
const LINKS: Duration = Duration::from_secs(120);
/// Clocks further apart than this make logs hard to read.
const SKEW: f64 = 5.0;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    hosts: HostsArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Print the Thunderbolt cables between the hosts for graphviz, and nothing else
    #[arg(long, help_heading = "Output", requires = "hosts", conflicts_with = "json")]
    dot: bool,
}

/// A host's state.
#[derive(Debug, Serialize)]
struct HostReport {
    host: String,
    machine: Option<Machine>,
    facts: Option<Facts>,
    model_digest: Option<String>,
    /// Bytes of weights that would be its own, about.
    weights: Option<u64>,
    /// Seconds that its clock is ahead of this machine's.
    clock_skew: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    hosts: Vec<HostReport>,
    links: Vec<LinkSpeed>,
    findings: Vec<Finding>,
    /// The cables between Macs, in ASCII.
    #[serde(skip_serializing_if = "Option::is_none")]
    cabling: Option<String>,
    #[serde(skip)]
    dot: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let mut report = Report::default();
    match &args.hosts.hosts {
        Some(hosts) => report.cluster(&Machines::open(hosts)?, args)?,
        None => report.alone(args),
    }
    report.judge();
    if args.dot {
        let Some(dot) = &report.dot else {
            let error = Error::msg("there are no Thunderbolt cables to draw: the hosts are not two Macs or more");
            return Err(error.hint("`tbshard doctor --hosts FILE` without --dot says what is wrong with them"));
        };
        ui::print(dot)?;
        return Ok(Outcome::Done);
    }
    ui::print(&if args.json { json!(report).to_string() + "\n" } else { report.text() })?;
    let failed = report.findings.iter().any(|finding| finding.level == Level::Error);
    Ok(if failed { Outcome::Code(1) } else { Outcome::Done })
}

impl Report {
    fn find(&mut self, level: Level, host: &str, what: impl ToString, fix: impl ToString) {
        self.findings.push(Finding::new(level, host, what, fix));
    }

    fn wrong(&mut self, host: &str, error: &Error) {
        self.find(Level::Error, host, error, error.hint_text().unwrap_or("see that host"));
    }

    /// The digest and size of the model, if the host has it.
    fn model(&mut self, host: &str, found: Option<&Found>) -> Option<(String, u64)> {
        match found? {
            Found::Present { digest, bytes } => Some((digest.clone(), *bytes)),
            Found::Absent(error, hint) => {
                self.find(Level::Error, host, error, hint);
                None
            }
        }
    }

    /// This machine, without others.
    fn alone(&mut self, args: &Args) {
        let (machine, facts) = (Machine::here(BUILD, None), Facts::here());
        let host = machine.hostname.clone();
        let found = args.model.model.as_ref().map(|_| Found::of(&args.model));
        let model = self.model(&host, found.as_ref());
        let (machine, facts, clock_skew) = (Some(machine), Some(facts), Some(0.0));
        let (model_digest, weights) = model.map_or((None, None), |(digest, bytes)| (Some(digest), Some(bytes)));
        match Raw::here(super::env::home().as_deref()).and_then(|raw| raw.as_ref().map(Mac::read).transpose()) {
            Ok(Some(mac)) => {
                // alone it needs no RDMA
                let found = thunderbolt::check_alone(&host, &mac).into_iter();
                self.findings.extend(found.map(|finding| Finding { level: Level::Warning, ..finding }));
                self.findings.extend(weights.and_then(|weights| thunderbolt::check_memory(&host, &mac, weights)));
            }
            Ok(None) => {}
            Err(error) => self.wrong(&host, &error),
        }
        self.hosts.push(HostReport { host, machine, facts, model_digest, weights, clock_skew });
    }

    fn cluster(&mut self, machines: &Machines, args: &Args) -> Result<()> {
        if let Err(error) = machines.check(true) {
            self.wrong("cluster file", &error);
        }
        let names = machines.names();
        let lines = Lines::new(&names, args.model.quiet || args.json);
        let (mut fleet, refused) = enlist(machines, 0, args.hosts.deploy, &lines)?;
        let usable: Vec<usize> = (0..names.len()).filter(|at| refused.iter().all(|(index, _)| index != at)).collect();
        for (index, refusal) in &refused {
            self.wrong(&names[*index], &refusal.error(&names[*index]));
        }
        let probed = self.probe(machines, &mut fleet, &usable, args);
        let said = probed.iter().filter_map(|(rank, (probed, _))| Some((*rank, probed.mac.as_ref()?))).collect();
        let mut inspection = Inspection::of(&machines.cluster, &said, &fleet);
        inspection.reach(&machines.cluster, &mut fleet);
        self.findings.extend(inspection.findings);
        (self.cabling, self.dot) = inspection.drawings.unzip();
        let shares = machines.cluster.weights();
        let all: f64 = shares.iter().map(|share| *share as f64).sum();
        for (rank, host) in names.iter().enumerate() {
            let (machine, probed) =
                (fleet.machine(rank).filter(|_| usable.contains(&rank)).cloned(), probed.get(&rank));
            let model = self.model(host, probed.and_then(|(probed, _)| probed.model.as_ref()));
            let (model_digest, bytes) = model.map_or((None, None), |(digest, bytes)| (Some(digest), Some(bytes)));
            let weights = bytes.map(|bytes| (bytes as f64 * shares[rank] as f64 / all) as u64);
            // a Mac's ports are judged with their cables
            let rdma = probed.and_then(|(probed, _)| probed.rdma.as_ref().filter(|_| probed.mac.is_none()));
            self.findings
                .extend(rdma.into_iter().flat_map(|said| said.findings(host, &machines.cluster.hosts[rank].rdma)));
            let mac = inspection.macs.get(&rank).zip(weights);
            self.findings.extend(mac.and_then(|(mac, weights)| thunderbolt::check_memory(host, mac, weights)));
            let (facts, clock_skew) = (probed.map(|(probed, _)| probed.facts.clone()), probed.map(|(_, skew)| *skew));
            self.hosts.push(HostReport { host: host.clone(), machine, facts, model_digest, weights, clock_skew });
        }
        let ready = self.ports(machines, &mut fleet, &usable);
        if ready.len() > 1 {
            usable.iter().for_each(|rank| lines.say(*rank, "measuring links".to_owned()));
            match measure(machines, &mut fleet, &ready) {
                Ok(links) => self.links = links,
                Err(error) => self.wrong("links", &error),
            }
        }
        lines.clear();
        fleet.end();
        Ok(())
    }

    /// What the hosts say of themselves, and how far their clocks are ahead.
    fn probe(
        &mut self,
        machines: &Machines,
        fleet: &mut Fleet,
        usable: &[usize],
        args: &Args,
    ) -> BTreeMap<usize, (Probed, f64)> {
        let start = |rank: &usize| {
            let host = &machines.cluster.hosts[*rank];
            let mut words = vec!["probe", "facts"];
            let model = args.model.model.as_ref();
            if let Some(model) = model {
                words.extend(["--model", host.models.get(model).unwrap_or(model)]);
            }
            let mut env = host.env.clone();
            if machines.cluster.uses_rdma() {
                words.push("--rdma");
            }
            // whether it is there is asked, not that it be fetched
            env.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
            (*rank, this_program(&words, &env, None))
        };
        let before = now();
        let captured = capture(fleet, usable.iter().map(start).collect(), FACTS);
        let mut all = BTreeMap::new();
        for (rank, captured) in captured {
            match captured.json::<Probed>() {
                Ok(probed) => {
                    // it read its clock at some moment in between
                    let (clock, after) = (probed.facts.clock, now());
                    let skew = if clock < before { clock - before } else { (clock - after).max(0.0) };
                    all.insert(rank, (probed, skew));
                }
                Err(error) => self.wrong(&machines.cluster.hosts[rank].name, &error),
            }
        }
        all
    }

    /// The hosts that can listen at the addresses that the file gives them.
    fn ports(&mut self, machines: &Machines, fleet: &mut Fleet, usable: &[usize]) -> Vec<usize> {
        let mut ready = Vec::new();
        for rank in usable {
            let host = &machines.cluster.hosts[*rank];
            match host.addresses.iter().try_for_each(|address| fleet.listen(*rank, *address).map(drop)) {
                Ok(()) => ready.push(*rank),
                Err(error) => {
                    let fix = format!(
                        "`ssh {} ip -brief address` shows what it has; mend `addresses:` in the file",
                        host.ssh
                    );
                    self.find(Level::Error, &host.name, error, fix);
                }
            }
        }
        ready
    }

    /// Compares the hosts with each other.
    fn judge(&mut self) {
        let mut findings = Vec::new();
        let digests: Vec<(&String, &String)> =
            self.hosts.iter().filter_map(|host| Some((&host.host, host.model_digest.as_ref()?))).collect();
        if let Some((first, digest)) = digests.first() {
            for (host, other) in digests.iter().filter(|(_, other)| other != digest) {
                let what = format!("its model is another than that of {first}: digest {other:.12}, not {digest:.12}");
                let fix = format!("copy it: rsync -a {first}:DIRECTORY/ {host}:DIRECTORY/");
                findings.push(Finding::new(Level::Error, host, what, fix));
            }
        }
        for HostReport { host, facts, clock_skew, weights, .. } in &self.hosts {
            let needs = weights.zip(facts.as_ref().and_then(|facts| facts.memory));
            if let Some((weights, memory)) = needs.filter(|(weights, memory)| weights > memory) {
                let what =
                    format!("its share of the weights is {}, its memory {}", gigabytes(weights), gigabytes(memory));
                let fix =
                    "add hosts, give it a smaller `memory:` or `weight:` in the cluster file, or take a smaller format";
                findings.push(Finding::new(Level::Error, host, what, fix));
            }
            if let Some(skew) = clock_skew.filter(|skew| skew.abs() > SKEW) {
                let fix = "sudo timedatectl set-ntp true (Linux), sudo sntp -sS time.apple.com (macOS)";
                let what = format!("its clock is {skew:+.0} s off this machine's");
                findings.push(Finding::new(Level::Warning, host, what, fix));
            }
            let low = facts.as_ref().and_then(|facts| Some((facts.free?, facts.memory?)));
            if let Some((free, memory)) = low.filter(|(free, memory)| free * 10 < *memory) {
                let what = format!("only {} of {} of memory are free", gigabytes(free), gigabytes(memory));
                let fix = "end other programs there; `ps aux --sort=-rss | head` shows the largest";
                findings.push(Finding::new(Level::Warning, host, what, fix));
            }
        }
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ["host", "tbshard", "system", "cores", "free", "memory", "weights", "model", "clock"].map(str::to_owned),
        ];
        for HostReport { host, machine, facts, model_digest, weights, clock_skew } in &self.hosts {
            let dash = || "-".to_owned();
            let bytes = |bytes: Option<u64>| bytes.map_or_else(dash, gigabytes);
            rows.push([
                host.clone(),
                machine.as_ref().map_or_else(dash, |machine| machine.version.clone()),
                machine.as_ref().map_or_else(dash, |machine| machine.system.clone()),
                facts.as_ref().map_or_else(dash, |facts| facts.cores.to_string()),
                bytes(facts.as_ref().and_then(|facts| facts.free)),
                bytes(facts.as_ref().and_then(|facts| facts.memory)),
                bytes(*weights),
                model_digest.as_ref().map_or_else(dash, |digest| digest.chars().take(8).collect()),
                clock_skew.map_or_else(dash, |skew| format!("{skew:+.1} s")),
            ]);
        }
        let mut text = aligned(&rows, &[3, 4, 5, 6, 8]) + "\n";
        if !self.links.is_empty() {
            let mut rows = vec![["link", "latency", "bandwidth"].map(str::to_owned)];
            for LinkSpeed { ranks: (a, b), seconds, bytes_per_second } in &self.links {
                let name = |rank: usize| self.hosts.get(rank).map_or("?", |host| host.host.as_str());
                let link = format!("{} – {}", name(*a), name(*b));
                rows.push([link, format!("{:.0} µs", seconds * 1e6), format!("{:.2} GB/s", bytes_per_second / 1e9)]);
            }
            text += &format!("\n{}\n", aligned(&rows, &[1, 2]));
        }
        text += "\n";
        text += &self.cabling.as_ref().map_or(String::new(), |cabling| format!("{cabling}\n"));
        self.findings.iter().for_each(|finding| text += &format!("{finding}\n"));
        if self.findings.is_empty() {
            text += "nothing is wrong\n";
        }
        text
    }
}

/// Measures the links between these hosts.
fn measure(machines: &Machines, fleet: &mut Fleet, ready: &[usize]) -> Result<Vec<LinkSpeed>> {
    let address = machines.rendezvous(fleet, ready[0])?;
    let at = fleet.listen(ready[0], address)?;
    let first = Ticket::new(machines.cluster.hosts.len(), Fabric::Tcp, Meeting::At(at))?;
    let tickets = machines.tickets(first, None, |rank| fleet.machine(rank).map(|machine| machine.id.clone()));
    let start = |(rank, host): (usize, &usize)| {
        let own = tickets[*host].clone();
        let hosts = ready.iter().map(|host| own.hosts[*host].clone()).collect();
        let ticket = Ticket { rank, world_size: ready.len(), hosts, layout: None, ..own };
        (*host, this_program(&["probe", "links"], &machines.cluster.hosts[*host].env, Some(ticket)))
    };
    let mut captured = capture(fleet, ready.iter().enumerate().map(start).collect(), LINKS);
    let measured = captured.remove(&ready[0]).unwrap_or_default().json::<Vec<LinkSpeed>>()?;
    let place = |link: LinkSpeed| LinkSpeed { ranks: (ready[link.ranks.0], ready[link.ranks.1]), ..link };
    Ok(measured.into_iter().map(place).collect())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `23.4 GB`.
fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}
