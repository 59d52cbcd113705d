//! MLX's hostfiles, as MLX writes them.

use tbshard::cluster::{Cluster, Topology, Transport};
use tbshard::transport::rdma::Place;

use super::read;
use crate::damage::{refused, refused_with_hint};

#[test]
fn a_bare_list_is_a_mesh() {
    let cluster = read(r#"[{"ssh": "mac1", "ips": ["10.0.0.1", "10.0.1.1"]}, {"ssh": "admin@mac2"}]"#);
    assert_eq!((cluster.transport, cluster.topology), (Transport::Auto, Topology::Mesh));
    assert_eq!((cluster.hosts[0].addresses.len(), cluster.hosts[1].addresses.len()), (2, 0));
    assert_eq!((cluster.hosts[1].name.as_str(), cluster.hosts[1].ssh.as_str()), ("mac2", "admin@mac2"));
}

#[test]
fn a_row_of_devices_tells_a_hostfile_of_mlx() {
    let cluster = read(r#"{"hosts": [{"ssh": "a", "rdma": [null, "x"]}, {"ssh": "b", "rdma": ["y", null]}]}"#);
    assert_eq!(cluster.hosts[1].rdma, [vec![Place::of("y")], vec![]]);
}

#[test]
fn backends_are_what_mlx_makes_of_them() {
    for (backend, transport, topology) in [
        ("jaccl", Transport::Rdma, Topology::Mesh),
        ("jaccl-ring", Transport::Rdma, Topology::Ring),
        ("ring", Transport::Tcp, Topology::Ring),
        ("mpi", Transport::Tcp, Topology::Mesh),
        ("nccl", Transport::Tcp, Topology::Mesh),
        ("", Transport::Auto, Topology::Mesh),
    ] {
        let hosts = r#"[{"ssh": "a", "ips": [], "rdma": [null, "rdma_en3"]}, {"ssh": "b", "ips": [], "rdma": [["rdma_en4"], null]}]"#;
        let cluster = read(&format!(r#"{{"backend": "{backend}", "envs": [], "hosts": {hosts}}}"#));
        assert_eq!((cluster.transport, cluster.topology), (transport, topology), "{backend}");
        assert_eq!(cluster.hosts[0].rdma, [vec![], vec![Place::of("rdma_en3")]]);
        assert_eq!(cluster.hosts[1].rdma, [vec![Place::of("rdma_en4")], vec![]]);
    }
}

#[test]
fn a_ring_needs_no_devices_to_those_it_has_no_cable_to() {
    let row = |rank: usize| {
        let device =
            |peer: usize| if (rank + 4 - peer) % 2 == 1 { format!("\"rdma_en{peer}\"") } else { "null".to_owned() };
        (0..4).map(device).collect::<Vec<_>>().join(", ")
    };
    let host = |rank: usize| format!("{{\"ssh\": \"m{rank}\", \"rdma\": [{}]}}", row(rank));
    let hosts = (0..4).map(host).collect::<Vec<_>>().join(",\n");
    let text = |backend: &str| format!("{{\"backend\": \"{backend}\",\n\t\"hosts\": [{hosts}]}}");
    assert_eq!(read(&text("jaccl-ring")).hosts[0].rdma.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0, 1]);
    let mesh = Cluster::parse(&text("jaccl"), "hosts.json");
    refused_with_hint(mesh, &["hosts.json:2: ", "host `m0` names no RDMA device to host `m2`"], "topology: ring");
}

#[test]
fn environment_variables_are_every_hosts() {
    let cluster = read(r#"{"envs": ["A=1", "B=x=y", "C="], "hosts": [{"ssh": "a"}, {"ssh": "b"}]}"#);
    for host in &cluster.hosts {
        let env: Vec<(&str, &str)> = host.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(env, [("A", "1"), ("B", "x=y"), ("C", "")]);
    }
}

#[test]
fn one_machine_may_be_listed_more_than_once() {
    let cluster = read(r#"[{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]"#);
    assert_eq!(cluster.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["127.0.0.1", "127.0.0.1-2"]);
}

#[test]
fn bad_hostfiles_are_refused_by_line_and_key() {
    for (text, words, hint) in [
        (r#"[{"ssh": "a", "ip": []}]"#, "`ip` in `[0]` is no key of an MLX hostfile", "`ips`"),
        ("{\"hosts\": [\n{\"ips\": []}]}", ":2: `hosts[0]` has no `ssh`", "needs it"),
        ("{\"hosts\": [{\"ssh\": \"a\"}],\n\"backend\": \"jacl\"}", ":2: `backend` is `jacl`", "jaccl"),
        ("{\"hosts\": [{\"ssh\": \"a\"}],\n\"envs\": [\"A\"]}", ":2: `envs[0]` is `A`, not NAME=VALUE", "write"),
        ("{\"hosts\": [{\"ssh\": \"a\"}],\n\"envs\": [\"1A=2\"]}", ":2: `envs[0]` is `1A=2`", "write"),
        (
            "[{\"ssh\": \"a\", \"rdma\": [null,\n\"x\"]}, {\"ssh\": \"b\", \"rdma\": [\"x\"]}]",
            ":2: `hosts[1].rdma` has 1 entries for 2",
            "null",
        ),
        (r#"[{"ssh": "a", "rdma": ["x"]}]"#, "`hosts[0].rdma[0]` is a device from the host to itself", "null"),
        (r#"[{"ssh": "a", "ips": ["mac1"]}]"#, "`[0].ips[0]` is `mac1`, not an IP address", "192.168"),
        (r#"{"hosts": [{"ssh": "a", "ips": []}], "transport": "tcp"}"#, "because a host has `ips`", "known here"),
        (r#"[{"ssh": "-a"}]"#, "`[0].ssh` is `-a`", "host name"),
        (r#"{"backend": "jaccl", "hosts": [{"ssh": "a"}, {"ssh": "b"}]}"#, "no host names its RDMA devices", "rdma"),
    ] {
        refused_with_hint(Cluster::parse(text, "hosts.json"), &["hosts.json:", words], hint);
    }
    refused(Cluster::parse("[{\"ssh\": \"a\"},\n", "hosts.json"), &["hosts.json:1: unclosed bracket"]);
}
