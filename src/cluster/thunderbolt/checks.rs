//! What would keep RDMA from working between Macs, and the command that mends it.

use std::net::{IpAddr, Ipv4Addr};

use super::goal::in_shell;
use super::{Cabling, End, Goal, Mac, Plan, Rdma, Reach, Shape};
use crate::cluster::Cluster;
use crate::cluster::finding::{Finding, Level};

/// The first macOS with RDMA over Thunderbolt.
const FIRST: (u32, u32) = (26, 2);
/// The first whose messages may be longer than a frame, as MLX's source has it.
const LONG: (u32, u32) = (26, 3);
const UPDATE: &str = "sudo softwareupdate --install --all --restart";
const RECOVERY: &str = "in Recovery, which takes hands on that Mac: shut it down, hold its power button until `Options` \
     appears, open Utilities > Terminal there, run `rdma_ctl enable`, and restart";

/// What is wrong with one Mac, whatever it is cabled to.
pub fn check_alone(host: &str, mac: &Mac) -> Vec<Finding> {
    let mut found = Vec::new();
    let version = &mac.version.text;
    if mac.version.product < FIRST {
        let what = format!("macOS {version} has no RDMA over Thunderbolt, which came with 26.2");
        found.push(Finding::new(Level::Error, host, what, UPDATE));
    } else if mac.version.product < LONG {
        let what = format!("macOS {version} sends no message longer than 4 KiB by RDMA, later ones do (26.3)");
        found.push(Finding::new(Level::Warning, host, what, UPDATE));
    }
    match mac.rdma {
        Rdma::Disabled => {
            let mut finding = Finding::new(Level::Error, host, "RDMA is off", RECOVERY);
            finding.undo = Some("the same with `rdma_ctl disable`".to_owned());
            found.push(finding);
        }
        Rdma::Absent if mac.version.product >= FIRST => {
            let what = format!("macOS {version} should have `rdma_ctl`, and there is none");
            found.push(Finding::new(Level::Error, host, what, UPDATE));
        }
        _ => {}
    }
    let limit = mac.wired_limit.filter(|limit| *limit > 0).zip(mac.memory);
    if let Some((limit, memory)) = limit.filter(|(limit, memory)| limit << 20 < memory / 2) {
        let what = format!("its GPU may use {limit} MiB of {} MiB only", memory >> 20);
        let mut finding = Finding::new(Level::Warning, host, what, "sudo sysctl iogpu.wired_limit_mb=0");
        finding.undo = Some(format!("sudo sysctl iogpu.wired_limit_mb={limit}"));
        found.push(finding);
    }
    found
}

/// What is wrong with Macs and the cables between them, beside what `plan` sets up.
pub fn check(macs: &[(String, Mac)], cabling: &Cabling, plan: &Plan) -> Vec<Finding> {
    let mut found: Vec<Finding> = macs.iter().flat_map(|(host, mac)| check_alone(host, mac)).collect();
    versions(macs, &mut found);
    ports(macs, cabling, &mut found);
    shape(macs, cabling, &mut found);
    devices(macs, cabling, plan, &mut found);
    found
}

/// What `plan` sets up and is not so yet.
pub fn to_do(macs: &[(String, Mac)], plan: &Plan) -> Vec<Finding> {
    let finding = |(host, goal): (usize, &Goal)| {
        let (name, mac) = &macs[host];
        let level = match goal {
            // it works as it is, until a restart
            Goal::Configured { .. } | Goal::Service { .. } => Level::Warning,
            Goal::Address { interface, address, .. } => {
                let has = mac.link(interface).map(|link| &link.addresses[..]).unwrap_or_default();
                let works = has.iter().any(|(own, _)| own == address || own.is_link_local());
                if works { Level::Warning } else { Level::Error }
            }
            _ => Level::Error,
        };
        let mut finding = Finding::new(level, name, goal.lack(mac), in_shell(&goal.commands(mac)));
        finding.undo = Some(in_shell(&goal.undo())).filter(|undo| !undo.is_empty());
        finding
    };
    plan.open(macs).map(finding).collect()
}

/// A Mac whose share of the weights is more than its GPU may use.
pub fn check_memory(host: &str, mac: &Mac, weights: u64) -> Option<Finding> {
    let memory = mac.memory?;
    // the system's own choice is said to be three quarters, and two thirds of a small memory
    let own = if memory <= 36 << 30 { memory / 3 * 2 } else { memory / 4 * 3 };
    let limit = mac.wired_limit.filter(|limit| *limit > 0).map_or(own, |limit| limit << 20);
    if weights <= limit {
        return None;
    }
    let gib = |bytes: u64| bytes >> 30;
    let what =
        format!("its share of the weights is {} GiB, and its GPU may use about {} GiB", gib(weights), gib(limit));
    // room for the context, and for everything that is not the GPU's
    let most = memory.saturating_sub(8 << 30) >> 20;
    let wanted = ((weights + (4 << 30)) >> 20).min(most);
    if weights >> 20 > most {
        return Some(Finding::new(Level::Error, host, what, "add hosts, or take a smaller format"));
    }
    let fix = format!("sudo sysctl iogpu.wired_limit_mb={wanted} (until it restarts)");
    let mut finding = Finding::new(Level::Error, host, what, fix);
    finding.undo = Some(format!("sudo sysctl iogpu.wired_limit_mb={}", mac.wired_limit.unwrap_or(0)));
    Some(finding)
}

fn versions(macs: &[(String, Mac)], found: &mut Vec<Finding>) {
    let Some((first, newest)) = macs.iter().max_by_key(|(_, mac)| mac.version.product) else { return };
    for (host, mac) in macs.iter().filter(|(_, mac)| mac.version != newest.version) {
        let (own, other) = (&mac.version.text, &newest.version.text);
        let what =
            format!("it runs macOS {own}, and {first} runs {other}; RDMA is known to fail between some versions");
        found.push(Finding::new(Level::Warning, host, what, UPDATE));
    }
}

fn label(macs: &[(String, Mac)], end: End) -> String {
    macs[end.host].1.ports[end.port].label()
}

/// Cables that RDMA cannot use, and why.
fn ports(macs: &[(String, Mac)], cabling: &Cabling, found: &mut Vec<Finding>) {
    for cable in &cabling.cables {
        for (end, peer) in [(0, 1), (1, 0)].map(|(a, b)| (cable.ends[a], cable.ends[b])) {
            let (host, mac) = &macs[end.host];
            let (port, to) = (&mac.ports[end.port], &macs[peer.host].0);
            let here = port.label();
            if port.interface.is_none() {
                let what = format!("the cable to {to} is in {here}, which has no network interface");
                let fix = "sudo networksetup -detectnewhardware";
                found.push(Finding::new(Level::Error, host, what, fix));
            }
            if let Some(speed) = port.speed.filter(|speed| !speed.is_fifth()) {
                let what = format!(
                    "{here} to {to} runs at {} Gb/s; RDMA takes Thunderbolt 5, which runs at 80",
                    speed.gigabits
                );
                let free = free(mac);
                let fix = match &free[..] {
                    [] => "take a Thunderbolt 5 cable without a hub; if it is one, the port is of an earlier generation, and only TCP is left: `transport: tcp`".to_owned(),
                    free => format!("take a Thunderbolt 5 cable without a hub, or put it into {}", free.join(" or ")),
                };
                found.push(Finding::new(Level::Error, host, what, fix));
            }
        }
        let shares =
            |end: &End| cabling.cables.iter().any(|other| other.usable && other.ends.contains(end) && other != cable);
        if let Some(end) = cable.ends.iter().find(|end| !cable.usable && shares(end)) {
            let (host, here) = (&macs[end.host].0, label(macs, *end));
            let finding = match cable.via.first() {
                Some(hub) => {
                    let what = format!("{here} leads to two Macs, through {hub}; RDMA takes one Mac a port");
                    Finding::new(Level::Error, host, what, "connect each of them to a port of its own")
                }
                None => {
                    let what = format!("{here} is at the other end of two Macs' cables, of which one is gone");
                    Finding::new(Level::Error, host, what, "pull the cable there and put it in again")
                }
            };
            found.push(finding);
        }
        if cable.usable && !cable.mutual {
            let [one, two] = cable.ends;
            let blind = if macs[one.host].1.ports[one.port].seen.is_empty() { one } else { two };
            let other = if blind == one { two } else { one };
            let what = format!("{} does not see {}, which sees it", label(macs, blind), macs[other.host].0);
            found.push(Finding::new(
                Level::Warning,
                &macs[blind.host].0,
                what,
                "pull the cable there and put it in again",
            ));
        }
    }
    for (end, name) in &cabling.strangers {
        let what = format!("{} leads to `{name}`, which is none of these hosts", label(macs, *end));
        found.push(Finding::new(
            Level::Warning,
            &macs[end.host].0,
            what,
            "name that Mac in --hosts too, or take the cable for another",
        ));
    }
}

/// Ports with nothing in them that are fast enough.
fn free(mac: &Mac) -> Vec<String> {
    let fits = |port: &&super::Port| !port.connected && port.speed.is_none_or(super::Speed::is_fifth);
    mac.ports.iter().filter(fits).map(super::Port::label).collect()
}

/// What a mesh or ring lacks.
fn shape(macs: &[(String, Mac)], cabling: &Cabling, found: &mut Vec<Finding>) {
    let Shape::Neither(ring) = cabling.shape() else { return };
    for (a, b) in cabling.missing() {
        let both = if ring.contains(&(a, b)) && macs.len() > 2 { ", which a ring needs too" } else { "" };
        let what = format!("no cable for RDMA leads to {}{both}", macs[b].0);
        let at = |host: usize| match &free(&macs[host].1)[..] {
            [] => format!("{} (which has no free port)", macs[host].0),
            free => format!("{} ({})", macs[host].0, free.join(" or ")),
        };
        let fix = format!("connect {} with {}, by a Thunderbolt 5 cable", at(a), at(b));
        found.push(Finding::new(Level::Error, &macs[a].0, what, fix));
    }
}

/// The RDMA devices of cabled ports.
fn devices(macs: &[(String, Mac)], cabling: &Cabling, plan: &Plan, found: &mut Vec<Finding>) {
    for cable in cabling.usable() {
        for (end, peer) in [(0, 1), (1, 0)].map(|(a, b)| (cable.ends[a], cable.ends[b])) {
            let ((host, mac), to) = (&macs[end.host], &macs[peer.host].0);
            let Some(interface) = mac.ports[end.port].interface.as_deref().filter(|_| mac.rdma == Rdma::Enabled) else {
                continue;
            };
            let Some(device) = mac.device(interface) else {
                let what = format!("RDMA is on, and there is no device rdma_{interface} for the cable to {to}");
                found.push(Finding::new(Level::Error, host, what, "sudo shutdown -r now"));
                continue;
            };
            if device.active == Some(false) {
                let what = format!("the port of {} is down, though its cable leads to {to}", device.name);
                found.push(Finding::new(
                    Level::Error,
                    host,
                    what,
                    "pull the cable at both ends and put it in again; if that changes nothing: sudo shutdown -r now",
                ));
            }
            // an address that is still to come brings its GID with it
            let settled =
                plan.goals.iter().all(|(at, goal)| *at != end.host || !is_of(goal, interface) || goal.met(mac));
            if settled && device.gids.as_ref().is_some_and(Vec::is_empty) {
                let what = format!("{interface} has an IPv4 address, and {} has no GID of it", device.name);
                let service = mac.services.iter().find(|service| service.interface == interface && service.enabled);
                let name = service.map_or(interface, |service| &service.name);
                let turn =
                    |way: &str| ["networksetup", "-setnetworkserviceenabled", name, way].map(str::to_owned).to_vec();
                found.push(Finding::new(Level::Error, host, what, in_shell(&[turn("off"), turn("on")])));
            }
        }
    }
}

fn is_of(goal: &Goal, name: &str) -> bool {
    match goal {
        Goal::Configured { interface, .. }
        | Goal::Member { interface, .. }
        | Goal::Service { interface, .. }
        | Goal::Address { interface, .. } => interface == name,
        Goal::NoService { .. } => false,
    }
}

/// What is wrong where `host` does not reach `peer`, though both have their addresses.
pub fn check_reach(host: &str, (peer, address): (&str, Ipv4Addr), reach: Reach) -> Option<Finding> {
    let (what, fix) = match reach {
        Reach::Reached => return None,
        Reach::Forbidden => (
            format!("{peer} answers to ping at {address}, and not to tbshard: Local Network privacy or a firewall"),
            "allow it in System Settings > Privacy & Security > Local Network, which no command can: \
             open 'x-apple.systempreferences:com.apple.preference.security?Privacy_LocalNetwork'"
                .to_owned(),
        ),
        Reach::Silent => (
            format!("nothing answers at {peer}'s address {address}, though the cable is there"),
            format!("pull that cable and put it in again; `ping -c 1 {address}` there shows whether it is mended"),
        ),
    };
    Some(Finding::new(Level::Error, host, what, fix))
}

/// A Mac that ssh reaches over what `plan` would take away; `links` is where ssh comes in on every one.
pub fn lifeline(macs: &[(String, Mac)], plan: &Plan, links: &[Option<IpAddr>]) -> Option<Finding> {
    macs.iter().zip(links).enumerate().find_map(|(host, ((name, mac), link))| {
        let Some(IpAddr::V4(link)) = link else { return None };
        let over = mac.links.iter().find(|own| own.addresses.iter().any(|(address, _)| address == link))?;
        let touches = |goal: &Goal| is_of(goal, &over.name) || over.members.iter().any(|member| is_of(goal, member));
        if !mac.is_thunderbolt(&over.name) || !plan.open(macs).any(|(at, goal)| at == host && touches(goal)) {
            return None;
        }
        let what = format!("ssh reaches it at {link} over {}, which this would take away under itself", over.name);
        Some(Finding::new(Level::Error, name, what, "name it by its address in another network: Ethernet or Wi-Fi"))
    })
}

/// Where the devices that a cluster file names lead elsewhere than it says. `macs` are its hosts, in its order.
pub fn check_file(macs: &[(String, Mac)], cabling: &Cabling, cluster: &Cluster) -> Vec<Finding> {
    let mut found = Vec::new();
    let actual = cabling.devices(macs);
    for (a, host) in cluster.hosts.iter().enumerate() {
        for (b, named) in host.rdma.iter().enumerate() {
            let named = named.iter().map(|place| &place.device);
            for device in named.filter(|device| device.starts_with("rdma_en") && !actual[a][b].contains(device)) {
                let to = actual[a].iter().position(|devices| devices.contains(device));
                let to = to.map_or("no host of the file".to_owned(), |to| macs[to].0.clone());
                let what =
                    format!("the cluster file says that {device} leads to {}, and its cable leads to {to}", macs[b].0);
                let right = &actual[a][b];
                let fix = match &right[..] {
                    [] => "connect the two, or write the file anew: tbshard setup --over thunderbolt".to_owned(),
                    right => format!("write `{}: {}` below `rdma:` of {}", macs[b].0, right.join(", "), macs[a].0),
                };
                found.push(Finding::new(Level::Error, &macs[a].0, what, fix));
            }
        }
    }
    found
}
