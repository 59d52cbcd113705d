//! Any cluster that can be is written as a file that reads back as the same cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use tbshard::cluster::{Cluster, Host, Parallel, Timeouts, Topology, Transport};
use tbshard::partition::Strategy as Way;
use tbshard::transport::rdma::Place;

use super::read;

/// Names as people and YAML's traps would have them.
fn word() -> impl Strategy<Value = String> {
    let traps = [
        "true", "no", "null", "NULL", "0x10", "1e3", "10", "1.5", "12:30", "#x", "*a", "!t", "[x]", "a:", "é", "~", "=",
    ];
    prop_oneof![
        3 => "[a-z0-9_][a-z0-9_.-]{0,12}",
        1 => select(traps.map(str::to_owned).to_vec()),
        1 => "[\\p{L}\\p{N}#%*+.:=?!^_\\[\\]~][\\p{L}\\p{N}#%*+.:=?!^_\\[\\]~-]{0,8}",
    ]
}

fn path() -> impl Strategy<Value = String> {
    ("(/|~/)", "[^\\p{C}]{0,20}").prop_map(|(root, rest)| format!("{root}{rest}"))
}

fn models() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[^\\p{C}]{1,20}", path(), 0..3)
}

/// Variables, with any text that is no NUL.
fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,8}", "[^\\x00]{0,30}", 0..3)
}

fn host() -> impl Strategy<Value = Host> {
    let ssh = prop_oneof![word(), (word(), word()).prop_map(|(user, host)| format!("{user}@{host}"))];
    let reach = (word(), ssh, prop::option::of(word()), prop::option::of(1..=u16::MAX), any::<bool>());
    let memory = prop_oneof![
        1_u64 << 20..=1 << 50,
        (1_u64..1000).prop_map(|n| n * 1_000_000_000),
        (1_u64..1000).prop_map(|n| n << 30)
    ];
    let size = (memory, 0.001_f64..=1e6, prop::option::of(1..=65_536_usize));
    let binary = prop::option::of(prop_oneof!["[a-z_][a-z0-9_.-]{0,8}", path().prop_map(|path| format!("{path}x"))]);
    (reach, size, binary, models(), env()).prop_map(|(reach, (memory, weight, threads), binary, models, env)| {
        let (name, ssh, user, port, same) = reach;
        // an address in numbers is one of the host's addresses, which reading adds
        let name = if name.parse::<std::net::IpAddr>().is_ok() { "numbers".to_owned() } else { name };
        let ssh = if same || ssh.parse::<std::net::IpAddr>().is_ok() { name.clone() } else { ssh };
        let user = user.filter(|user| !ssh.contains('@') && !user.contains(':'));
        let (memory, weight) = (Some(memory), Some(weight));
        Host { name, ssh, user, port, memory, weight, threads, binary, models, env, ..Host::default() }
    })
}

fn wait() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (500..=86_400_000_u64).prop_map(Duration::from_millis),
        (1..=1440_u64).prop_map(|n| Duration::from_secs(n * 60))
    ]
}

/// How hosts are cut, in ways that fit `size` of them.
fn parallel(size: usize) -> impl Strategy<Value = Parallel> {
    let divisors: Vec<usize> = (1..=size).filter(|tp| size.is_multiple_of(*tp)).collect();
    (select(divisors), any::<[bool; 3]>(), prop::collection::vec(1..100_usize, size), 0..3_u8).prop_map(
        move |(tp, [has_tp, has_pp, has_split], layers, way)| {
            let pp = size / tp;
            let strategy = match way {
                1 if pp == 1 => Way::Tensor,
                2 if tp == 1 => Way::Pipeline,
                _ => Way::Auto,
            };
            let split = has_split.then(|| layers[..pp].to_vec());
            Parallel { tp: has_tp.then_some(tp), pp: has_pp.then_some(pp), strategy, split }
        },
    )
}

/// Numbers made into what has to differ or agree between hosts.
fn finish(cluster: &mut Cluster, [memory, weight, addresses, rdma]: [bool; 4], seed: u64) {
    let size = cluster.hosts.len();
    for (rank, host) in cluster.hosts.iter_mut().enumerate() {
        host.name.push_str(&format!(".{rank}"));
        // as in `host`: 0.0.0 has become an address
        if host.name.parse::<IpAddr>().is_ok() {
            host.name = format!("numbers.{rank}");
        }
        if !host.ssh.contains('@') && seed.is_multiple_of(2) {
            host.ssh.clone_from(&host.name);
        }
        host.memory = host.memory.filter(|_| memory);
        host.weight = host.weight.filter(|_| weight);
        if addresses {
            let number = u16::try_from(rank).unwrap();
            host.addresses.push(IpAddr::V4(Ipv4Addr::new(10, 0, 1, number as u8)));
            host.addresses.push(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number)));
        }
        if rdma {
            let links = |peer: usize| if peer == rank { 0 } else { 1 + (seed as usize + rank + peer) % 3 };
            let device = |peer: usize, link: usize| match (peer * 4 + link, seed % 3) {
                (number, 0) => Place::of(format!("rdma_en{number}")),
                (number, 1) => format!("mlx5_{number}:2").parse().unwrap(),
                (number, _) => format!("mlx5_0:{}:{number}", number + 1).parse().unwrap(),
            };
            host.rdma = (0..size).map(|peer| (0..links(peer)).map(|link| device(peer, link)).collect()).collect();
        }
    }
    if !rdma && cluster.transport == Transport::Rdma {
        cluster.transport = Transport::Tcp;
    }
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let transport = select(vec![Transport::Auto, Transport::Rdma, Transport::Tcp]);
    let topology = select(vec![Topology::Mesh, Topology::Ring]);
    (1..=8_usize).prop_flat_map(move |size| {
        let hosts = prop::collection::vec(host(), size);
        let kinds = (transport.clone(), topology.clone(), any::<[bool; 4]>(), any::<u64>());
        (hosts, kinds, parallel(size), (wait(), wait(), wait(), wait())).prop_map(
            |(hosts, (transport, topology, has, seed), parallel, (connect, start, heartbeat, progress))| {
                let (heartbeat, progress) = (heartbeat.min(progress), heartbeat.max(progress));
                let timeouts = Timeouts { connect, start, heartbeat, progress };
                let mut cluster = Cluster { hosts, transport, topology, parallel, timeouts };
                finish(&mut cluster, has, seed);
                cluster
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(cluster in cluster()) {
        let text = cluster.to_yaml();
        let back = Cluster::parse(&text, "written.yaml");
        prop_assert!(back.is_ok(), "{:?}\n{text}", back.err());
        prop_assert_eq!(back.unwrap(), cluster, "{}", text);
    }
}

#[test]
fn what_is_written_is_for_people() {
    let text = read("hosts:\n- {ssh: me@mac1.lan, addresses: 10.0.0.1, memory: 512GB}\n- {name: b, memory: 96GiB}\n")
        .to_yaml();
    for line in [
        "  - name: mac1.lan",
        "    ssh: me@mac1.lan",
        "    addresses: [10.0.0.1]",
        "    memory: 512GB",
        "    memory: 96GiB",
    ] {
        assert!(text.lines().any(|written| written == line), "{line:?} is not in\n{text}");
    }
    assert!(text.lines().filter(|line| line.trim_start().starts_with('#')).count() >= 5, "{text}");
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
}
