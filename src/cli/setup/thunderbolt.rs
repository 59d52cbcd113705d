//! `tbshard setup --over thunderbolt`: Macs by the cables between them, with RDMA.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::hosts::{Lines, Machines, muster};
use super::super::probe::Probed;
use super::super::{Outcome, macs, ui};
use super::{Args, addresses};
use crate::cluster::facts::{Facts, Interface};
use crate::cluster::finding::{Finding, Level};
use crate::cluster::fleet::Fleet;
use crate::cluster::thunderbolt::{self, Cabling, Goal, Mac, Order, Plan, Record, Shape, in_shell};
use crate::cluster::{Cluster, Timeouts, Topology, Transport};
use crate::error::{Error, Result};
use crate::transport::rdma::Place;

/// How often it is looked whether a change shows, and how long after each time.
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);

/// Hosts that are all Macs, and an agent on each.
struct Site {
    machines: Machines,
    fleet: Fleet,
    macs: Vec<(String, Mac)>,
    probed: Vec<Probed>,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let machines = Machines::open(&args.hosts)?;
    if machines.cluster.hosts.len() < 2 {
        return Err(Error::usage("--over thunderbolt takes two Macs or more").hint("--hosts mac1,mac2"));
    }
    let mut site = Site::connect(machines, args)?;
    let outcome = if args.undo { site.undo(args) } else { site.set_up(args) };
    site.fleet.end();
    outcome
}

impl Site {
    fn connect(machines: Machines, args: &Args) -> Result<Self> {
        let names = machines.names();
        let lines = Lines::new(&names, args.quiet || args.json);
        let mut fleet = muster(&machines, 0, args.deploy, &lines)?;
        (0..names.len()).for_each(|host| lines.say(host, "listing its ports".to_owned()));
        let all: Vec<usize> = (0..names.len()).collect();
        let probed = macs::ask(&mut fleet, &all, &machines.cluster)?;
        lines.clear();
        let mut read = Vec::new();
        for (host, (name, probed)) in names.into_iter().zip(&probed).enumerate() {
            let system = fleet.machine(host).map_or("another system", |machine| machine.system.as_str());
            read.push((name.clone(), macs::mac(&name, probed.mac.as_ref(), system)?));
        }
        Ok(Self { machines, fleet, macs: read, probed })
    }

    /// Asks a host again.
    fn look(&mut self, host: usize) -> Result<()> {
        let mut probed = macs::ask(&mut self.fleet, &[host], &self.machines.cluster)?;
        let raw = probed.pop().and_then(|probed| probed.mac);
        self.macs[host].1 = macs::mac(&self.macs[host].0, raw.as_ref(), "another system")?;
        Ok(())
    }

    fn set_up(&mut self, args: &Args) -> Result<Outcome> {
        let cabling = Cabling::of(&self.macs)?;
        let plan = Plan::new(&self.macs, &cabling, &macs::taken(&self.fleet))?;
        if !args.json && !args.dot {
            ui::say(thunderbolt::drawing(&self.macs, &cabling));
        }
        if args.auto {
            self.carry_out(&plan, args)?;
        }
        let findings = thunderbolt::check(&self.macs, &cabling, &plan);
        let shape = cabling.shape();
        let file = match &shape {
            Shape::Neither(_) => None,
            shape => Some(self.file(&cabling, &plan, shape)?),
        };
        if args.json {
            ui::print(&(self.report(&cabling, &plan, &findings, file.as_deref()).to_string() + "\n"))?;
        } else {
            findings.iter().for_each(ui::say);
            self.list(&plan, args.auto);
        }
        if args.dot {
            ui::print(&thunderbolt::dot(&self.macs, &cabling))?;
        }
        let Some(file) = file else {
            let error = Error::msg("the cables make neither a mesh nor a ring, so there is no cluster file");
            let hint = "connect what is missing above; --dot draws it, and --over ethernet needs no cables between all";
            return Err(error.hint(hint));
        };
        match &args.output {
            Some(path) => {
                std::fs::write(path, &file).map_err(|error| Error::io(path, error))?;
                ui::say(format_args!("wrote `{}`", path.display()));
                ui::say(format_args!("next: tbshard doctor --hosts {}", path.display()));
            }
            None if args.json || args.dot => {}
            None => _ = ui::print(&file)?,
        }
        let wrong = findings.iter().any(|finding| finding.level == Level::Error);
        Ok(if wrong { Outcome::Code(1) } else { Outcome::Done })
    }

    /// Says what is left to do.
    fn list(&self, plan: &Plan, auto: bool) {
        let open: Vec<(usize, &Goal)> = plan.open(&self.macs).collect();
        if open.is_empty() {
            if !auto {
                ui::say("nothing is to be set up");
            }
            return;
        }
        ui::say("to be set up, in this order (--auto does it):");
        self.commands(&open);
    }

    fn commands(&self, open: &[(usize, &Goal)]) {
        for (host, (name, mac)) in self.macs.iter().enumerate() {
            let own: Vec<&Goal> = open.iter().filter(|(at, _)| *at == host).map(|(_, goal)| *goal).collect();
            if !own.is_empty() {
                ui::say(format_args!("  on {name}:"));
            }
            for goal in own {
                ui::whisper(format_args!("    # {}", goal.lack(mac)));
                goal.commands(mac)
                    .iter()
                    .for_each(|command| ui::say(format_args!("    {}", in_shell(std::slice::from_ref(command)))));
            }
        }
    }

    /// Makes everything so that is not so yet, one goal after the other, and looks whether it is so then.
    fn carry_out(&mut self, plan: &Plan, args: &Args) -> Result<()> {
        let links: Vec<Option<IpAddr>> = (0..self.macs.len())
            .map(|host| self.fleet.machine(host).and_then(|machine| machine.link).map(|(server, _)| server))
            .collect();
        if let Some(Finding { host, what, fix, .. }) = thunderbolt::lifeline(&self.macs, plan, &links) {
            return Err(Error::msg(format!("{host}: {what}")).hint(fix));
        }
        let mut done = 0;
        for (host, goal) in &plan.goals {
            if goal.met(&self.macs[*host].1) {
                continue;
            }
            self.reach(*host, goal, plan)?;
            done += 1;
        }
        if !args.json {
            let count = self.macs.len();
            match (done, args.undo) {
                (0, false) => ui::say(format_args!("nothing is to be set up: all {count} Macs are as they should be")),
                (0, true) => ui::say("nothing is to be undone"),
                (_, false) => ui::say(format_args!(
                    "done; tbshard setup --over thunderbolt --hosts {} --undo --auto undoes it",
                    args.hosts
                )),
                (_, true) => ui::say("undone"),
            }
        }
        Ok(())
    }

    fn reach(&mut self, host: usize, goal: &Goal, plan: &Plan) -> Result<()> {
        let (name, mac) = &self.macs[host];
        let (name, commands) = (name.clone(), goal.commands(mac));
        let before = |interface: &String, is: bool| if is { vec![interface.clone()] } else { Vec::new() };
        let remember = match goal {
            Goal::Configured { interface, member: false } => {
                Record { configured: before(interface, mac.configured.contains(interface)), ..Record::default() }
            }
            Goal::Member { interface, member: false } => {
                Record { members: before(interface, mac.bridge_of(interface) == Some("bridge0")), ..Record::default() }
            }
            _ => Record::default(),
        };
        ui::say(format_args!("{name}: {}", in_shell(&commands)));
        let order = Order { commands, remember, forget: false };
        let applied = macs::order(&mut self.fleet, host, &self.machines.cluster, &order)?;
        if let Some(words) = applied.password {
            ui::say("to be run by hand, in this order:");
            self.commands(&plan.open(&self.macs).collect::<Vec<_>>());
            let error = Error::msg(format!("{name}: sudo wants a password there ({words})"));
            return Err(error.hint(format!(
                "run the commands above, or log in as a user whose sudo asks nothing: `ssh {name} sudo -n true`"
            )));
        }
        if let Some(said) = applied.said.last().filter(|said| said.code != Some(0)) {
            let words = said.err.lines().chain(said.out.lines()).find(|line| !line.trim().is_empty());
            let error = Error::msg(format!(
                "{name}: `{}` failed: {}",
                said.command.join(" "),
                words.unwrap_or("it says nothing")
            ));
            return Err(error.hint("what was done before it stays; --undo --auto takes it back"));
        }
        for look in 0..LOOKS {
            self.look(host)?;
            if goal.met(&self.macs[host].1) {
                return Ok(());
            }
            if look + 1 < LOOKS {
                std::thread::sleep(PAUSE);
            }
        }
        let lack = goal.lack(&self.macs[host].1);
        let error =
            Error::msg(format!("{name}: `{}` went well and changed nothing: {lack}", in_shell(&order.commands)));
        Err(error.hint("see that Mac's System Settings > Network; --undo --auto takes back what was done"))
    }

    fn undo(&mut self, args: &Args) -> Result<Outcome> {
        let plan = thunderbolt::undo(&self.macs);
        for (name, mac) in &self.macs {
            let ours = mac.services.iter().any(|service| service.name.starts_with("tbshard "));
            if ours && mac.record.is_none() {
                ui::say(format_args!(
                    "{name}: what was in bridge0 before is not known, as no --auto has changed it; macOS itself puts every Thunderbolt port there: sudo ifconfig bridge0 addm enX"
                ));
            }
        }
        if args.auto {
            self.carry_out(&plan, args)?;
            for host in (0..self.macs.len()).filter(|host| self.macs[*host].1.record.is_some()).collect::<Vec<_>>() {
                let forget = Order { forget: true, ..Order::default() };
                macs::order(&mut self.fleet, host, &self.machines.cluster, &forget)?;
            }
            return Ok(Outcome::Done);
        }
        let open: Vec<(usize, &Goal)> = plan.open(&self.macs).collect();
        if open.is_empty() {
            ui::say("nothing is to be undone");
        } else {
            ui::say("to be undone, in this order (--undo --auto does it):");
            self.commands(&open);
        }
        Ok(Outcome::Done)
    }

    /// The cluster file, with the hosts in the order of the ring if it is one.
    fn file(&mut self, cabling: &Cabling, plan: &Plan, shape: &Shape) -> Result<String> {
        let names: Vec<String> = self.macs.iter().map(|(name, _)| name.clone()).collect();
        let order: Vec<usize> = match shape {
            Shape::Ring(order) => order.clone(),
            _ => (0..names.len()).collect(),
        };
        let facts = |host: usize| {
            let mac = &self.macs[host].1;
            let interfaces = mac.other_networks().filter(|(_, address, _)| !address.is_loopback());
            let interface = |(name, address, prefix): (&str, std::net::Ipv4Addr, u8)| Interface {
                name: name.to_owned(),
                address: IpAddr::V4(address),
                prefix,
            };
            (
                self.fleet.machine(host).cloned(),
                Facts { interfaces: interfaces.map(interface).collect(), ..self.probed[host].facts.clone() },
            )
        };
        // ranks meet in a network that all are in; two Macs have one by their cable
        let found: Vec<_> = (0..names.len()).map(facts).collect();
        let cable = plan.addresses.first().filter(|_| names.len() == 2);
        let addresses = addresses(&found, &names)
            .or_else(|error| cable.map(|(_, ends)| ends.map(IpAddr::V4).to_vec()).ok_or(error))?;
        let devices = cabling.devices(&self.macs);
        let memory: Option<Vec<u64>> =
            self.macs.iter().zip(&self.probed).map(|((_, mac), probed)| mac.memory.or(probed.facts.memory)).collect();
        let cluster = &self.machines.cluster;
        let mut made = Cluster { transport: Transport::Rdma, ..cluster.clone() };
        made.topology = if matches!(shape, Shape::Ring(_)) { Topology::Ring } else { Topology::Mesh };
        made.timeouts.heartbeat = Timeouts::RDMA_HEARTBEAT;
        made.hosts = order
            .iter()
            .map(|host| crate::cluster::Host {
                addresses: vec![addresses[*host]],
                rdma: order.iter().map(|peer| devices[*host][*peer].iter().map(Place::of).collect()).collect(),
                memory: memory.as_ref().map(|memory| memory[*host]),
                ..cluster.hosts[*host].clone()
            })
            .collect();
        let text = made.to_yaml();
        // what is written can be read
        Cluster::parse(&text, "the cluster file").map(|_| text)
    }

    fn report(&self, cabling: &Cabling, plan: &Plan, findings: &[Finding], file: Option<&str>) -> Value {
        let names: Vec<&String> = self.macs.iter().map(|(name, _)| name).collect();
        let cables = cabling.cables.iter().map(|cable| {
            let interfaces = cable.ends.map(|end| &self.macs[end.host].1.ports[end.port].interface);
            let addresses =
                plan.addresses.iter().find(|(other, _)| other.ends == cable.ends).map(|(_, addresses)| addresses);
            json!({
                "hosts": cable.ends.map(|end| names[end.host]), "interfaces": interfaces, "through": cable.via,
                "usable": cable.usable, "addresses": addresses,
            })
        });
        let missing: Vec<_> = cabling.missing().into_iter().map(|(a, b)| [names[a], names[b]]).collect();
        let shape = match cabling.shape() {
            Shape::Mesh => "mesh",
            Shape::Ring(_) => "ring",
            Shape::Neither(_) => "neither",
        };
        json!({
            "hosts": names, "topology": shape, "cables": cables.collect::<Vec<_>>(), "missing": missing,
            "findings": findings, "to_do": thunderbolt::to_do(&self.macs, plan), "file": file,
        })
    }
}
