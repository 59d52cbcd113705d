//! Files that are read, and what comes of them; the examples in configs/; and what `--hosts` may be given.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tbshard::cluster::{Cluster, Host, Parallel, Timeouts, Topology, Transport};
use tbshard::partition::{Plan, Strategy};
use tbshard::transport::rdma::Place;

use super::read;

/// The files of configs/, by name.
pub fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn example(name: &str) -> Cluster {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    Cluster::read(&path).unwrap_or_else(|error| panic!("{error:?}"))
}

fn names(cluster: &Cluster) -> Vec<&str> {
    cluster.hosts.iter().map(|host| host.name.as_str()).collect()
}

#[test]
fn a_file_with_everything_is_read_as_it_is_written() {
    let cluster = read(
        r#"
hosts:
  - name: first
    ssh: first.lan
    user: me
    port: 2222
    addresses: [192.168.1.10, "fd00::1"]
    rdma: {second: [rdma_en3, rdma_en4]}
    memory: 1.5TB
    weight: 2.5
    threads: 24
    binary: ~/bin/tbshard
    models: {qwen3.6-27b: /models/qwen, "Qwen/Qwen3-8B": ~/hub}
    env: {A: 1, _B2: "x y", C: no, D: 1.50, value: v}
  - name: second
    rdma: {first: [rdma_en3, rdma_en5]}
    memory: 512 GiB
    weight: 1
transport: rdma
topology: ring
parallel: {tp: 1, pp: 2, strategy: pipeline, split: [20, 44]}
timeouts: {connect: 500ms, start: 1.5min, heartbeat: 2, progress: 1h}
"#,
    );
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let devices = |list: &[&str]| list.iter().map(|device| Place::of(*device)).collect::<Vec<_>>();
    let first = Host {
        name: "first".to_owned(),
        ssh: "first.lan".to_owned(),
        user: Some("me".to_owned()),
        port: Some(2222),
        addresses: vec!["192.168.1.10".parse().unwrap(), "fd00::1".parse().unwrap()],
        rdma: vec![devices(&[]), devices(&["rdma_en3", "rdma_en4"])],
        memory: Some(1_500_000_000_000),
        weight: Some(2.5),
        threads: Some(24),
        binary: Some("~/bin/tbshard".to_owned()),
        models: pairs(&[("qwen3.6-27b", "/models/qwen"), ("Qwen/Qwen3-8B", "~/hub")]),
        env: pairs(&[("A", "1"), ("_B2", "x y"), ("C", "no"), ("D", "1.50"), ("value", "v")]),
    };
    let second = Host {
        name: "second".to_owned(),
        ssh: "second".to_owned(),
        rdma: vec![devices(&["rdma_en3", "rdma_en5"]), devices(&[])],
        memory: Some(512 << 30),
        weight: Some(1.0),
        ..Host::default()
    };
    let expected = Cluster {
        hosts: vec![first, second],
        transport: Transport::Rdma,
        topology: Topology::Ring,
        parallel: Parallel { tp: Some(1), pp: Some(2), strategy: Strategy::Pipeline, split: Some(vec![20, 44]) },
        timeouts: Timeouts {
            connect: Duration::from_millis(500),
            start: Duration::from_secs(90),
            heartbeat: Duration::from_secs(2),
            progress: Duration::from_secs(3600),
        },
    };
    assert_eq!(cluster, expected);
}

#[test]
fn what_is_left_out_has_defaults() {
    let cluster = read("hosts: [mac1, me@mac2, {ssh: you@mac3}, {name: mac4, models: , threads: null}]\nparallel:\n");
    assert_eq!(names(&cluster), ["mac1", "mac2", "mac3", "mac4"]);
    let ssh: Vec<&str> = cluster.hosts.iter().map(|host| host.ssh.as_str()).collect();
    assert_eq!(ssh, ["mac1", "me@mac2", "you@mac3", "mac4"]);
    assert_eq!((cluster.transport, cluster.topology), (Transport::Auto, Topology::Mesh));
    assert_eq!(cluster.parallel, Parallel::default());
    let seconds = Duration::from_secs;
    let Timeouts { connect, start, heartbeat, progress } = cluster.timeouts;
    assert_eq!((connect, start, heartbeat, progress), (seconds(10), seconds(60), seconds(5), seconds(600)));
    assert!(cluster.hosts.iter().all(|host| host.addresses.is_empty() && host.rdma.is_empty()));
    assert!(!cluster.has_rdma());
}

#[test]
fn anchors_and_merge_keys_save_writing() {
    let cluster = read("hosts:\n  - &a {name: a, threads: 8, env: {X: y}}\n  - {<<: *a, name: b, threads: 4}\n");
    assert_eq!(names(&cluster), ["a", "b"]);
    assert_eq!((cluster.hosts[0].threads, cluster.hosts[1].threads), (Some(8), Some(4)));
    assert_eq!(cluster.hosts[1].env["X"], "y");
}

#[test]
fn a_host_of_a_number_is_reached_there() {
    let address = |text: &str| read(text).hosts[0].addresses.first().map(ToString::to_string);
    assert_eq!(address("hosts: [me@10.0.0.7, b]").as_deref(), Some("10.0.0.7"));
    assert_eq!(address("hosts: [\"fd00::7\", b]").as_deref(), Some("fd00::7"));
    assert_eq!(address("hosts: [{ssh: 10.0.0.7, addresses: 10.1.0.7}]").as_deref(), Some("10.1.0.7"));
    // "here" means something else on every host
    assert_eq!(address("hosts: [127.0.0.1, b]"), None);
    assert_eq!(address("hosts: [127.0.0.1, {name: b, ssh: 127.0.0.1}]").as_deref(), Some("127.0.0.1"));
}

#[test]
fn ranks_on_one_machine_may_share_its_address() {
    let cluster =
        read("hosts:\n- {name: a, ssh: big, addresses: 10.0.0.1}\n- {name: b, ssh: big, addresses: 10.0.0.1}\n");
    assert_eq!(cluster.hosts[0].addresses, cluster.hosts[1].addresses);
}

#[test]
fn one_card_reaches_everybody_and_a_ring_its_neighbours() {
    let every = read("hosts:\n- {name: a, rdma: mlx5_0}\n- {name: b, rdma: mlx5_1}\n- {name: c, rdma: {a: x, b: y}}\n");
    assert!(every.has_rdma());
    assert_eq!(every.hosts[0].rdma, [vec![], vec![Place::of("mlx5_0")], vec![Place::of("mlx5_0")]]);
    assert_eq!(every.hosts[2].rdma, [vec![Place::of("x")], vec![Place::of("y")], vec![]]);
    let hosts = |n: usize| (0..n).map(|rank| format!("- {{name: h{rank}, rdma: mlx5_0}}\n")).collect::<String>();
    let ring = read(&format!("hosts:\n{}topology: ring\n", hosts(5)));
    let linked = |rank: usize| (0..5).filter(|peer| !ring.hosts[rank].rdma[*peer].is_empty()).collect::<Vec<_>>();
    assert_eq!([linked(0), linked(2), linked(4)], [vec![1, 4], vec![1, 3], vec![0, 3]]);
}

#[test]
fn shares_follow_weight_then_memory_then_nothing() {
    let weights = |a: &str, b: &str| read(&format!("hosts:\n- {{name: a, {a}}}\n- {{name: b, {b}}}\n")).weights();
    assert_eq!(weights("weight: 3, memory: 1GB", "weight: 0.5, memory: 9GB"), [3000, 500]);
    assert_eq!(weights("memory: 512GiB", "memory: 1MiB"), [512 << 10, 1]);
    assert_eq!(weights("threads: 8", "threads: 1"), [1, 1]);
    assert_eq!(read("hosts: [{name: a, memory: 1048577}]").memory(), Some(vec![(1 << 20) + 1]));
    assert_eq!(read("hosts: [a]").memory(), None);
}

#[test]
fn a_cluster_has_a_plan() {
    let text = "hosts:\n- {name: a, memory: 384GB}\n- {name: b, memory: 128GB}\nparallel: {pp: 2}\n";
    let plan = Plan::new(64, 64, &read(text).layout()).unwrap();
    assert_eq!(plan.stages(), [0..48, 48..64]);
    // whatever the file accepts, the plan accepts
    for parallel in
        ["tp: 6", "pp: 6", "tp: 2, pp: 3", "tp: 3", "split: [9, 1]", "strategy: tensor", "strategy: pipeline, tp: 1"]
    {
        let cluster = read(&format!("hosts: [a, b, c, d, e, f]\nparallel: {{{parallel}}}\n"));
        let layers = cluster.parallel.split.as_ref().map_or(10, |split| split.iter().sum());
        Plan::new(layers, 6, &cluster.layout()).unwrap_or_else(|error| panic!("{parallel}: {error:?}"));
    }
}

#[test]
fn every_example_is_read() {
    let stems: Vec<String> = examples().iter().map(|path| path.file_name().unwrap().display().to_string()).collect();
    let known = [
        "four-macs.yaml",
        "linux-roce.yaml",
        "linux-tcp.yaml",
        "mlx-hostfile.json",
        "ring-of-four.yaml",
        "this-machine.yaml",
        "two-macs.yaml",
    ];
    assert_eq!(stems, known, "an example that no test looks at");

    let four = example("four-macs.yaml");
    assert_eq!((four.hosts.len(), four.transport, four.parallel.strategy), (4, Transport::Rdma, Strategy::Tensor));
    assert_eq!(four.hosts[2].rdma.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 0, 1]);
    let roce = example("linux-roce.yaml");
    assert_eq!(names(&roce), ["node1", "node2", "node3", "node4"]);
    assert!(roce.has_rdma() && roce.hosts.iter().all(|host| host.threads == Some(64)));
    assert_eq!(roce.hosts[3].rdma[0], [Place::of("mlx5_1")]);
    let tcp = example("linux-tcp.yaml");
    assert_eq!((tcp.transport, tcp.weights(), tcp.hosts[1].port), (Transport::Tcp, vec![3000, 1000], Some(2222)));
    let mlx = example("mlx-hostfile.json");
    assert_eq!((mlx.transport, mlx.hosts[0].rdma[2].len()), (Transport::Rdma, 2));
    let ring = example("ring-of-four.yaml");
    assert_eq!((ring.topology, ring.parallel.tp, ring.parallel.pp), (Topology::Ring, Some(2), Some(2)));
    let here = example("this-machine.yaml");
    assert!(here.hosts.iter().all(|host| host.ssh == "127.0.0.1" && host.addresses[0].is_loopback()));
    let two = example("two-macs.yaml");
    assert_eq!(two.memory(), Some(vec![512_000_000_000, 256_000_000_000]));
}

#[test]
fn hosts_may_be_a_file_or_names() {
    let cluster = Cluster::of_hosts("mac1, me@mac2,10.0.0.3").unwrap();
    assert_eq!(names(&cluster), ["mac1", "mac2", "10.0.0.3"]);
    assert_eq!(cluster, Cluster::of_names("mac1,me@mac2,10.0.0.3").unwrap());
    assert_eq!(cluster.hosts[2].addresses.len(), 1);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whatever");
    std::fs::write(&path, "hosts: [a, b]").unwrap();
    assert_eq!(names(&Cluster::of_hosts(&path.display().to_string()).unwrap()), ["a", "b"]);
    for missing in ["cluster.yaml", "hosts.YML", "hosts.json", "./mac1", "dir/mac1"] {
        let error = Cluster::of_hosts(missing).unwrap_err();
        assert!(error.to_string().contains(missing) && error.to_string().contains("No such file"), "{error:?}");
    }
}

#[test]
fn the_host_that_leads_takes_its_layers_and_cables_along() {
    let mut cluster = read(
        "hosts:\n\
         - {name: a, rdma: {b: ab, c: ac}}\n\
         - {name: b, rdma: {a: ba, c: bc}}\n\
         - {name: c, rdma: {a: ca, b: cb}}\n\
         parallel: {pp: 3, split: [1, 2, 3]}\n",
    );
    cluster.lead(2);
    assert_eq!(names(&cluster), ["c", "a", "b"]);
    assert_eq!(cluster.parallel.split, Some(vec![3, 1, 2]));
    let cables: Vec<Vec<Place>> = cluster.hosts.iter().map(|host| host.rdma.concat()).collect();
    assert_eq!(cables, [["ca", "cb"], ["ac", "ab"], ["bc", "ba"]].map(|ends| ends.map(Place::of)));
    assert!(cluster.hosts.iter().enumerate().all(|(rank, host)| host.rdma[rank].is_empty()));
}
