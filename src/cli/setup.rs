//! `tbshard setup`: writes a cluster file from what the hosts say of themselves.

mod thunderbolt;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};

use super::capture::{capture, this_program};
use super::hosts::{Lines, Machines, muster};
use super::probe::Probed;
use super::{Outcome, ui};
use crate::cluster::Transport;
use crate::cluster::agent::Machine;
use crate::cluster::facts::{Facts, Interface};
use crate::error::{Error, Result};

/// How long a host may take to say what it is.
const FACTS: Duration = Duration::from_secs(30);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The hosts, as ssh knows them: a,b,c
    #[arg(long, value_name = "NAMES")]
    hosts: String,
    /// What connects them
    #[arg(long, value_enum, default_value_t = Over::Ethernet)]
    over: Over,
    /// Mend what is not set up, instead of saying how
    #[arg(long)]
    auto: bool,
    /// Copy this tbshard to hosts that have none or another one
    #[arg(long)]
    deploy: bool,
    /// Undo what a setup over Thunderbolt has changed: say how, or with --auto do it
    #[arg(long, conflicts_with = "output")]
    undo: bool,
    /// Print the cables for graphviz
    #[arg(long, help_heading = "Output", conflicts_with_all = ["json", "undo"])]
    dot: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output", conflicts_with = "undo")]
    json: bool,
    /// Write the cluster file here [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if there is one
    #[arg(long, requires = "output")]
    force: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    /// Thunderbolt cables, with RDMA
    Thunderbolt,
    /// Any IP network
    Ethernet,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let asked =
        [("--undo", args.undo), ("--dot", args.dot), ("--json", args.json)].into_iter().find(|(_, asked)| *asked);
    if let Some((flag, _)) = asked.filter(|_| args.over == Over::Ethernet) {
        let error = Error::usage(format!("{flag} is for --over thunderbolt"));
        return Err(error.hint("an IP network needs nothing that tbshard sets up or draws"));
    }
    if let Some(path) = args.output.as_ref().filter(|path| path.exists() && !args.force) {
        let error = Error::usage(format!("`{}` exists", path.display()));
        return Err(error.hint("--force replaces it"));
    }
    if args.over == Over::Thunderbolt {
        return thunderbolt::run(args);
    }
    let mut machines = Machines::open(&args.hosts)?;
    let names = machines.names();
    let lines = Lines::new(&names, args.quiet);
    let mut fleet = muster(&machines, 0, args.deploy, &lines)?;
    let start = |rank: usize| (rank, this_program(&["probe", "facts"], &BTreeMap::new(), None));
    let captured = capture(&mut fleet, (0..names.len()).map(start).collect(), FACTS);
    let mut found = Vec::new();
    for (rank, captured) in captured {
        let probed = captured.json::<Probed>().map_err(|error| error.context(&names[rank]))?;
        let machine = fleet.machine(rank).cloned();
        found.push((machine, probed.facts));
    }
    fleet.end();
    lines.clear();
    let addresses = addresses(&found, &names)?;
    for ((host, address), (_, facts)) in machines.cluster.hosts.iter_mut().zip(&addresses).zip(&found) {
        host.addresses = vec![*address];
        host.memory = facts.memory;
    }
    machines.cluster.transport = Transport::Tcp;
    let text = machines.cluster.to_yaml();
    match &args.output {
        None => {
            ui::print(&text)?;
        }
        Some(path) => {
            std::fs::write(path, &text).map_err(|error| Error::io(path, error))?;
            ui::say(format_args!("wrote `{}`", path.display()));
            if args.auto {
                ui::whisper("--auto: an IP network needs nothing that tbshard could set up");
            }
            ui::say(format_args!("next: tbshard doctor --hosts {}", path.display()));
        }
    }
    Ok(Outcome::Done)
}

/// An address of every host, all in one network; where several networks have them all, the one that ssh uses.
fn addresses(found: &[(Option<Machine>, Facts)], names: &[String]) -> Result<Vec<IpAddr>> {
    let used = |rank: usize| found[rank].0.as_ref().and_then(|machine| machine.link).map(|(server, _)| server);
    let fits = |interface: &&Interface| match interface.address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let candidates = found[0].1.interfaces.iter().filter(fits);
    let network = |first: &Interface| -> Option<(usize, Vec<IpAddr>)> {
        let mut all = vec![first.address];
        for (_, facts) in &found[1..] {
            let inside = facts.interfaces.iter().filter(fits).find(|other| first.reaches(&other.address));
            all.push(inside?.address);
        }
        let by_ssh = (0..all.len()).filter(|rank| used(*rank) == Some(all[*rank])).count();
        Some((by_ssh, all))
    };
    // the same machine several times has no network between
    let ids: Vec<_> = found.iter().map(|(machine, _)| machine.as_ref().map(|machine| &machine.id)).collect();
    let best = candidates.filter_map(network).max_by_key(|(by_ssh, all)| (*by_ssh, all[0].is_ipv4()));
    if let Some((_, all)) = best {
        return Ok(all);
    }
    if ids.iter().all(|id| *id == ids[0]) {
        return Ok(vec![IpAddr::from([127, 0, 0, 1]); found.len()]);
    }
    let list = |facts: &Facts| {
        let all: Vec<String> = facts.interfaces.iter().map(|interface| interface.address.to_string()).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(" ") }
    };
    let lists: Vec<String> =
        names.iter().zip(found).map(|(name, (_, facts))| format!("{name}: {}", list(facts))).collect();
    let error = Error::cluster(format!("the hosts have no network in common ({})", lists.join("; ")));
    Err(error.hint("connect them to one switch, or write `addresses:` of a routed network into the file by hand"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, link: Option<&str>, interfaces: &[(&str, u8)]) -> (Option<Machine>, Facts) {
        let mut machine = Machine::here("build", None);
        machine.id = id.to_owned();
        machine.link = link.map(|address| (address.parse().unwrap(), address.parse().unwrap()));
        let interface = |(address, prefix): &(&str, u8)| Interface {
            name: "en0".to_owned(),
            address: address.parse().unwrap(),
            prefix: *prefix,
        };
        let facts = Facts { interfaces: interfaces.iter().map(interface).collect(), ..Facts::here() };
        (Some(machine), facts)
    }

    #[test]
    fn hosts_get_addresses_of_one_network() {
        let names = ["a".to_owned(), "b".to_owned()];
        let slow = [("192.168.1.1", 24), ("192.168.1.2", 24)];
        let fast = [("10.0.0.1", 24), ("10.0.0.2", 24)];
        let both = |at: usize| [slow[at], ("169.254.3.4", 16), fast[at]];
        let chosen =
            |a, b| addresses(&[a, b], &names).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        let found = chosen(host("1", Some("10.0.0.1"), &both(0)), host("2", Some("10.0.0.2"), &both(1))).unwrap();
        assert_eq!(found, ["10.0.0.1", "10.0.0.2"]);
        let found = chosen(host("1", None, &both(0)), host("2", None, &slow[1..])).unwrap();
        assert_eq!(found, ["192.168.1.1", "192.168.1.2"]);
        let error = chosen(host("1", None, &slow[..1]), host("2", None, &fast[1..])).unwrap_err().to_string();
        assert!(error.contains("no network in common (a: 192.168.1.1; b: 10.0.0.2)"), "{error}");
        assert_eq!(chosen(host("1", None, &[]), host("1", None, &[])).unwrap(), ["127.0.0.1", "127.0.0.1"]);
    }
}
