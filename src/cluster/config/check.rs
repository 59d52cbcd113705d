//! From a file as it is written to a cluster that can be.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use super::kind::{Kind, Name, bare, is_variable};
use super::read::{At, Source, shown};
use super::written::{self, Entry, File};
use super::{Cluster, Host, Parallel, Timeouts, Transport, rdma};
use crate::error::Result;
use crate::partition::{MAX_RANKS, Strategy};

/// A heartbeat that is shorter finds the busy, not the dead.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(500);

/// Makes a cluster of what a file says.
pub(super) fn cluster(file: File, source: Source<'_>) -> Result<Cluster> {
    let size = file.hosts.value.len();
    let line = file.hosts.defined.line();
    if size == 0 {
        return Err(source.refuse(line, "`hosts` is empty", "list a host for every rank; the first is rank 0"));
    }
    if size > MAX_RANKS {
        let message = format!("`hosts` lists {size} hosts, and a run has at most {MAX_RANKS} ranks");
        return Err(source.refuse(line, message, "list fewer"));
    }
    let topology = file.topology.as_ref().map(|at| at.value).unwrap_or_default();
    let transport = file.transport.as_ref().map(|at| at.value).unwrap_or_default();
    let lines: Vec<u64> = file.hosts.value.iter().map(|entry| entry.line).collect();
    let (mut hosts, mut devices) = (Vec::new(), Vec::new());
    for (rank, entry) in file.hosts.value.into_iter().enumerate() {
        let (made, named) = host(rank, entry, source)?;
        hosts.push(made);
        devices.push(named);
    }
    unique_names(&hosts, &lines, source)?;
    addresses_of_numbers(&mut hosts);
    distinct_addresses(&hosts, &lines, source)?;
    all_or_none(&hosts, &lines, source)?;
    rdma::connect(&mut hosts, (devices, &lines), topology, source)?;
    let mut cluster = Cluster {
        transport,
        topology,
        parallel: parallel(&file.parallel.unwrap_or_default(), size, source)?,
        timeouts: Timeouts::default(),
        hosts,
    };
    cluster.timeouts = timeouts(&file.timeouts.unwrap_or_default(), cluster.uses_rdma(), source)?;
    if transport == Transport::Rdma && size > 1 && !cluster.has_rdma() {
        let line = file.transport.map_or(0, |at| at.line);
        let message = "`transport` is `rdma`, and no host names its RDMA devices";
        return Err(source.refuse(
            line,
            message,
            "give every host `rdma`, as configs/four-macs.yaml shows, or write `auto`",
        ));
    }
    Ok(cluster)
}

/// A host, and its RDMA devices as they are written.
fn host(rank: usize, entry: Entry, source: Source<'_>) -> Result<(Host, Option<written::Rdma>)> {
    let Entry { line, host } = entry;
    let user = host.user.map(|at| at.value);
    let (name, ssh) = match (host.name.map(|at| at.value), host.ssh) {
        (Some(name), Some(ssh)) => (name, ssh.value),
        (Some(name), None) => (name.clone(), name),
        (None, Some(ssh)) => (bare(&ssh.value).to_owned(), ssh.value),
        (None, None) => {
            let message = format!("`hosts[{rank}]` has neither `name` nor `ssh`");
            return Err(source.refuse(line, message, "give what ssh calls the host"));
        }
    };
    if user.is_some() && ssh.contains('@') {
        let message = format!("host `{name}` has a `user`, and its `ssh` names one too");
        return Err(source.refuse(line, message, "remove one of the two"));
    }
    let env = host.env.unwrap_or_default();
    if let Some((key, at)) = env.iter().find(|(key, _)| !is_variable(key)) {
        let message = format!("host `{name}`: `env` sets `{}`, which is no name of a variable", shown(key));
        return Err(source.refuse(at.line, message, "use letters, digits and `_`, without a digit in front"));
    }
    let models = host.models.unwrap_or_default();
    if let Some((key, at)) = models.iter().find(|(key, _)| key.is_empty() || key.contains(char::is_control)) {
        let message = format!("host `{name}`: `models` has `{}`, which is no model's name", shown(key));
        return Err(source.refuse(at.line, message, "write the name or path that `--model` is given"));
    }
    let made = Host {
        name,
        ssh,
        user,
        port: host.port.map(|at| at.value),
        addresses: host.addresses.map(|list| list.items.into_iter().map(|at| at.value).collect()).unwrap_or_default(),
        rdma: Vec::new(),
        memory: host.memory.map(|at| at.value),
        weight: host.weight.map(|at| at.value),
        threads: host.threads.map(|at| at.value),
        binary: host.binary.map(|at| at.value),
        models: models.into_iter().map(|(key, at)| (key, at.value)).collect(),
        env: env.into_iter().map(|(key, at)| (key, at.value)).collect::<BTreeMap<_, _>>(),
    };
    Ok((made, host.rdma))
}

fn unique_names(hosts: &[Host], lines: &[u64], source: Source<'_>) -> Result<()> {
    let mut ranks = HashMap::new();
    for (rank, host) in hosts.iter().enumerate() {
        // case tells no two machines apart, neither for DNS nor for a reader
        if let Some(first) = ranks.insert(host.name.to_lowercase(), rank) {
            let message = format!("hosts {first} and {rank} are both called `{}`", hosts[first].name);
            let hint = if source.is_flag {
                "list every host once; `--local 2` runs two ranks on this machine"
            } else {
                "give each a `name` of its own; `ssh` may be the same for two ranks on one machine"
            };
            return Err(source.refuse(lines[rank], message, hint));
        }
        if Name::parse(&host.name).is_none() {
            let message = format!("`{}` is not {}", shown(&host.name), Name::IS);
            return Err(source.refuse(lines[rank], message, Name::HINT));
        }
    }
    Ok(())
}

/// A host that ssh knows by its address is reached there by the others too, unless it is one that means "here".
fn addresses_of_numbers(hosts: &mut [Host]) {
    let number = |host: &Host| bare(&host.ssh).parse::<IpAddr>().ok();
    let all_here = hosts.iter().all(|host| number(host).is_some_and(|address| address.is_loopback()));
    for host in hosts.iter_mut().filter(|host| host.addresses.is_empty()) {
        host.addresses.extend(number(host).filter(|address| all_here || !address.is_loopback()));
    }
}

fn distinct_addresses(hosts: &[Host], lines: &[u64], source: Source<'_>) -> Result<()> {
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    for (rank, host) in hosts.iter().enumerate() {
        for address in &host.addresses {
            let Some(other) = owners.insert(*address, rank) else { continue };
            // ranks on one machine share its addresses
            let same = other != rank && (address.is_loopback() || hosts[other].ssh == host.ssh);
            if !same {
                let message =
                    format!("hosts `{}` and `{}` both have the address {address}", hosts[other].name, host.name);
                return Err(source.refuse(lines[rank], message, "give every host its own address, once"));
            }
        }
    }
    let one = |here: bool| hosts.iter().position(|host| host.addresses.iter().any(|at| at.is_loopback() == here));
    if let (Some(here), Some(elsewhere)) = (one(true), one(false)) {
        let (host, other) = (&hosts[here].name, &hosts[elsewhere].name);
        let message = format!("host `{host}` has a loopback address, which host `{other}` cannot reach");
        return Err(source.refuse(lines[here], message, "give the address that it has in the cluster's network"));
    }
    Ok(())
}

/// `memory` and `weight` say how the hosts compare, which takes all of them.
fn all_or_none(hosts: &[Host], lines: &[u64], source: Source<'_>) -> Result<()> {
    for key in ["memory", "weight"] {
        let has = |host: &Host| if key == "memory" { host.memory.is_some() } else { host.weight.is_some() };
        let with = hosts.iter().find(|host| has(host));
        let without = hosts.iter().position(|host| !has(host));
        if let (Some(with), Some(rank)) = (with, without) {
            let message = format!("host `{}` has `{key}`, and host `{}` has none", with.name, hosts[rank].name);
            return Err(source.refuse(lines[rank], message, "give it for every host or for none"));
        }
    }
    Ok(())
}

fn parallel(written: &written::Parallel, size: usize, source: Source<'_>) -> Result<Parallel> {
    let (tp, pp, split) = (written.tp.as_ref(), written.pp.as_ref(), written.split.as_ref());
    if let Some(split) = split {
        let (stages, wanted) = (split.items.len(), pp.map(|at| at.value));
        if stages == 0 || wanted.is_some_and(|wanted| wanted != stages) {
            let pp = wanted.map_or(String::new(), |wanted| format!(", and `pp` is {wanted}"));
            let message = format!("`parallel.split` has {stages} stages{pp}");
            return Err(source.refuse(split.line, message, "list the layers of every stage, or leave it out"));
        }
    }
    let stages = match (pp, split) {
        (Some(pp), _) => Some((pp.line, pp.value, "`parallel.pp`")),
        (None, Some(split)) => Some((split.line, split.items.len(), "the number of stages in `parallel.split`")),
        (None, None) => None,
    };
    let wrong = match (tp, stages) {
        (Some(tp), Some((_, stages, _))) => (tp.value.checked_mul(stages) != Some(size))
            .then(|| (tp.line, format!("`parallel.tp` is {}, which times {stages} stages is not {size}", tp.value))),
        (Some(tp), None) => (!size.is_multiple_of(tp.value))
            .then(|| (tp.line, format!("`parallel.tp` is {}, which does not divide {size}", tp.value))),
        (None, Some((line, stages, name))) => {
            (!size.is_multiple_of(stages)).then(|| (line, format!("{name} is {stages}, which does not divide {size}")))
        }
        (None, None) => None,
    };
    if let Some((line, message)) = wrong {
        let hint = "`tp` times `pp` is the number of hosts; leave one of them out";
        return Err(source.refuse(line, format!("{message}, the number of hosts"), hint));
    }
    let strategy = written.strategy.as_ref().map(|at| at.value).unwrap_or_default();
    let ranks = tp.map(|at| at.value).or(stages.map(|(_, stages, _)| size / stages));
    let contradicts = match strategy {
        Strategy::Tensor => ranks.is_some_and(|ranks| ranks != size),
        Strategy::Pipeline => ranks.is_some_and(|ranks| ranks != 1),
        Strategy::Auto => false,
    };
    if let (true, Some(at)) = (contradicts, written.strategy.as_ref()) {
        let message = "`parallel.strategy` contradicts `tp`, `pp` or `split`";
        return Err(source.refuse(
            at.line,
            message,
            "tensor is one stage of all hosts, pipeline a stage for every host; leave one out",
        ));
    }
    let split = split.map(|split| split.items.iter().map(|at| at.value).collect());
    Ok(Parallel { tp: tp.map(|at| at.value), pp: pp.map(|at| at.value), strategy, split })
}

fn timeouts(written: &written::Timeouts, rdma: bool, source: Source<'_>) -> Result<Timeouts> {
    let mut default = Timeouts::default();
    if rdma {
        default.heartbeat = Timeouts::RDMA_HEARTBEAT;
    }
    let or = |at: &Option<At<_>>, default| at.as_ref().map_or(default, |at: &At<super::kind::Wait>| at.value);
    let timeouts = Timeouts {
        connect: or(&written.connect, default.connect),
        start: or(&written.start, default.start),
        heartbeat: or(&written.heartbeat, default.heartbeat),
        progress: or(&written.progress, default.progress),
    };
    let line = [&written.heartbeat, &written.progress].into_iter().flatten().map(|at| at.line).max().unwrap_or(0);
    if timeouts.heartbeat < SHORTEST_HEARTBEAT {
        let message = format!("`timeouts.heartbeat` is {:?}, less than {SHORTEST_HEARTBEAT:?}", timeouts.heartbeat);
        return Err(source.refuse(line, message, "a rank that computes for long still has heartbeats; 5s is plenty"));
    }
    if timeouts.progress < timeouts.heartbeat {
        let message = "`timeouts.progress` is shorter than `timeouts.heartbeat`";
        return Err(source.refuse(
            line,
            message,
            "heartbeat finds the dead, progress the stuck; the latter takes longer",
        ));
    }
    Ok(timeouts)
}
