//! Files and flags that are refused: the line, the key and what to do about it.

use tbshard::cluster::Cluster;
use tbshard::error::Kind;

use crate::damage::{refused, refused_with_hint};

/// Text, what the error says behind the name of the file, and what the hint says.
const CASES: &[(&str, &str, &str)] = &[
    // keys that nobody knows, at every level
    ("host: [a]", ":1: `host` is no key of a cluster file", "did you mean `hosts`?"),
    ("hosts: [a]\n\ntransprt: tcp", ":3: `transprt` is no key", "`transport`"),
    ("hosts:\n- name: a\n  adresses: 10.0.0.1", ":3: `adresses` in `hosts[0]` is no key", "`addresses`"),
    ("hosts: [a]\nparallel: {tensor: 1}", ":2: `tensor` in `parallel` is no key", "known here: `tp`, `pp`"),
    ("hosts: [a]\nparallel:\n  stategy: auto", ":3: `stategy` in `parallel` is no key", "`strategy`"),
    ("hosts: [a]\ntimeouts: {hartbeat: 5s}", ":2: `hartbeat` in `timeouts` is no key", "`heartbeat`"),
    // YAML
    ("", ":1: the file ends before it says anything", "`hosts`"),
    ("# nothing\n", "the file ends before it says anything", "`hosts`"),
    ("hosts: [a\n", ":1: unclosed bracket", "brackets"),
    ("hosts: [a]\n  transport: tcp", ":2: ", "indentation"),
    ("hosts: [a]\nhosts: [b]", ":2: the key `hosts` stands there a second time", "remove"),
    ("hosts: [{name: a, env: {X: 1,\n X: 2}}]", ":2: the key `X` stands there a second time", "remove"),
    ("hosts: [a]\n---\nhosts: [b]", ":3: a second document begins", "---"),
    ("hosts: *nobody", ":1: ", "YAML"),
    ("just words", ":1: the file has to be a table of keys", "schema"),
    // shapes
    ("transport: tcp", ":1: `hosts` is missing", "needs it"),
    ("hosts: a", ":1: `hosts` has to be a list", "schema"),
    ("hosts:\n- 5", ":2: `hosts[0]` is integer `5`, not a host's name or a table of its keys", "schema"),
    ("hosts:\n- a\n-", ":3: `hosts[1]` is empty, not a host's name", "schema"),
    ("hosts: [a]\nparallel: 4", ":2: `parallel` has to be a table of keys", "schema"),
    ("hosts: [{name: a, port: [1]}]", "`hosts[0].port` has to be one value", "schema"),
    ("hosts: [{name: a, env: {X: }}]", "`hosts[0].env.X` is empty", "remove"),
    ("hosts: [{name: a, env: {value: }}]", "`hosts[0].env.value` is empty", "remove"),
    ("hosts: [{name: a, addresses: {b: c}}]", "`hosts[0].addresses` is map, not an IP address", "schema"),
    ("hosts: [{name: a, rdma: {b: [[x]]}}]", "`hosts[0].rdma.b[0]` has to be one value", "schema"),
    // hosts
    ("hosts: []", ":1: `hosts` is empty", "rank 0"),
    ("hosts: [{}]", ":1: `hosts[0]` has neither `name` nor `ssh`", "ssh"),
    ("hosts:\n- a\n- b\n- a", ":4: hosts 0 and 2 are both called `a`", "`name` of its own"),
    ("hosts: [a,\n A]", ":2: hosts 0 and 1 are both called `a`", "`name` of its own"),
    ("hosts: [{ssh: big}, {ssh: me@big}]", "are both called `big`", "`name` of its own"),
    (
        "hosts: [{name: a, user: me, ssh: you@a}]",
        "host `a` has a `user`, and its `ssh` names one too",
        "one of the two",
    ),
    // nothing that ssh or a shell takes for more than a name
    ("hosts: [-oProxyCommand=x]", "`hosts[0]` is `-oProxyCommand=x`, not a host", "host name"),
    ("hosts: [\"a b\"]", "`hosts[0]` is `a b`, not a host", "host name"),
    ("hosts: [\"a\\nb\"]", "`hosts[0]` is `a\\nb`, not a host", "host name"),
    ("hosts: [\"a\\u0007\"]", "`hosts[0]` is `a\\u{7}`, not a host", "host name"),
    ("hosts: [\"a\\u202eb\"]", "`hosts[0]` is `a\\u{202e}b`, not a host", "host name"),
    ("hosts: [{ssh: me@-b}]", "`hosts[0].ssh` is `me@-b`, not a host", "host name"),
    ("hosts: [{ssh: me@}]", "`hosts[0].ssh` is `me@`, not a host", "host name"),
    ("hosts: [{ssh: \"@b\"}]", "`hosts[0].ssh` is `@b`, not a host", "host name"),
    ("hosts: [{ssh: \"$(x)\"}]", "`hosts[0].ssh` is `$(x)`, not a host", "host name"),
    ("hosts: [{ssh: \"\"}]", "`hosts[0].ssh` is ``, not a host", "host name"),
    ("hosts: [{ssh: \"ssh://a\"}]", "`hosts[0].ssh` is `ssh://a`, not a host", "keys of their own"),
    ("hosts: [{name: me@a}]", "`hosts[0].name` is `me@a`, not a name for a host", "letters"),
    ("hosts: [{name: a, user: -x}]", "`hosts[0].user` is `-x`, not a user name", "log in"),
    ("hosts: [{name: a, user: a;b}]", "`hosts[0].user` is `a;b`, not a user name", "log in"),
    // values
    ("hosts: [{name: a, port: 0}]", "`hosts[0].port` is `0`, not a port", "leave it out"),
    ("hosts: [{name: a, port: 65536}]", "`hosts[0].port` is `65536`, not a port", "leave it out"),
    ("hosts: [{name: a, memory: 0}]", "`hosts[0].memory` is `0`, not an amount of memory", "512GB"),
    ("hosts: [{name: a, memory: 512}]", "`hosts[0].memory` is `512`, not an amount", "512GB"),
    ("hosts: [{name: a, memory: 512G}]", "`hosts[0].memory` is `512G`, not an amount", "512GB"),
    ("hosts: [{name: a, memory: -1GB}]", "`hosts[0].memory` is `-1GB`, not an amount", "512GB"),
    ("hosts: [{name: a, memory: 99999999999TB}]", "not an amount of memory", "512GB"),
    // 2^64 + 2^40 bytes
    ("hosts: [{name: a, memory: 16777217TiB}]", "not an amount of memory", "512GB"),
    ("hosts: [{name: a, weight: 0}]", "`hosts[0].weight` is `0`, not a number", "twice"),
    ("hosts: [{name: a, weight: -1}]", "`hosts[0].weight` is `-1`, not a number", "twice"),
    ("hosts: [{name: a, weight: .nan}]", "`hosts[0].weight` is `.nan`, not a number", "twice"),
    ("hosts: [{name: a, weight: inf}]", "`hosts[0].weight` is `inf`, not a number", "twice"),
    ("hosts: [{name: a, threads: 0}]", "`hosts[0].threads` is `0`, not a whole number", "leave it out"),
    ("hosts: [{name: a, threads: 1.5}]", "`hosts[0].threads` is `1.5`, not a whole number", "leave it out"),
    ("hosts: [{name: a, binary: bin/tbshard}]", "`hosts[0].binary` is `bin/tbshard`, not the path", "PATH"),
    ("hosts: [{name: a, binary: /opt/}]", "`hosts[0].binary` is `/opt/`, not the path", "PATH"),
    ("hosts: [{name: a, binary: -x}]", "`hosts[0].binary` is `-x`, not the path", "PATH"),
    ("hosts: [{name: a, models: {q: here}}]", "`hosts[0].models.q` is `here`, not a path", "home"),
    ("hosts: [{name: a, models: {\"\": /q}}]", "host `a`: `models` has ``, which is no model's name", "--model"),
    ("hosts: [{name: a, env: {1A: x}}]", "host `a`: `env` sets `1A`, which is no name of a variable", "letters"),
    ("hosts: [{name: a, env: {\"A=B\": x}}]", "`env` sets `A=B`", "letters"),
    ("hosts: [{name: a, env: {A: \"x\\0y\"}}]", "`hosts[0].env.A` is `x\\0y`, not a text", "file"),
    ("hosts: [a]\ntransport: rmda", ":2: `transport` is `rmda`, not `auto`, `rdma` or `tcp`", "auto takes"),
    ("hosts: [a]\ntopology: star", ":2: `topology` is `star`, not `mesh` or `ring`", "neighbours"),
    // addresses
    ("hosts: [{name: a, addresses: mac1}]", "`hosts[0].addresses` is `mac1`, not an IP address", "192.168"),
    ("hosts: [{name: a, addresses: [0.0.0.0]}]", "`hosts[0].addresses[0]` is `0.0.0.0`, not an IP", "192.168"),
    ("hosts: [{name: a, addresses: [224.0.0.1]}]", "`224.0.0.1`, not an IP address", "192.168"),
    ("hosts: [{name: a, addresses: [\"fe80::1\"]}]", "`fe80::1`, not an IP address", "192.168"),
    (
        "hosts:\n- {name: a, addresses: 10.0.0.1}\n- {name: b, addresses: 10.0.0.1}",
        ":3: hosts `a` and `b` both have the address 10.0.0.1",
        "own address",
    ),
    ("hosts: [{name: a, addresses: [10.0.0.1, 10.0.0.1]}]", "both have the address 10.0.0.1", "once"),
    (
        "hosts:\n- {name: b, addresses: 10.0.0.1}\n- {name: a, addresses: 127.0.0.1}",
        ":3: host `a` has a loopback address, which host `b` cannot reach",
        "network",
    ),
    // RDMA
    ("hosts: [a, b]\ntransport: rdma", ":2: `transport` is `rdma`, and no host names its RDMA devices", "four-macs"),
    ("hosts:\n- {name: a, rdma: x}\n- b", ":3: host `a` names RDMA devices, and host `b` names none", "every host"),
    (
        "hosts:\n- {name: mac1, rdma: {mac3: x}}\n- {name: mac2, rdma: {mac1: x}}",
        ":2: host `mac1`: `rdma` names `mac3`, which is no host here",
        "did you mean `mac",
    ),
    ("hosts: [{name: a, rdma: {a: x}}, {name: b, rdma: {a: x}}]", "host `a` names an RDMA device to itself", "remove"),
    (
        "hosts:\n- {name: a, rdma: {b: x}}\n- {name: b, rdma: {a: x}}\n- {name: c, rdma: {a: x, b: x}}",
        ":2: host `a` names no RDMA device to host `c`",
        "topology: ring",
    ),
    (
        "hosts: [{name: a, rdma: {b: [x, y]}}, {name: b, rdma: {a: x}}]",
        "host `a` names 2 RDMA devices to host `b`, which names 1 back",
        "two ends",
    ),
    (
        "hosts: [{name: a, rdma: {b: [x, x]}}, {name: b, rdma: {a: [x, y]}}]",
        "host `a` names `x` twice to host `b`",
        "once",
    ),
    (
        "hosts: [{name: a, rdma: rdma_en3}, {name: b, rdma: x}, {name: c, rdma: x}]",
        "host `a` names `rdma_en3` both to host `b` and to host `c`",
        "one cable",
    ),
    (
        "hosts: [{name: a, rdma: {b: \"x:0\"}}, {name: b, rdma: {a: x}}]",
        "`hosts[0].rdma.b` is `x:0`, not the name of an RDMA device",
        "mlx5_0:2 is a port",
    ),
    (
        "hosts: [{name: a, rdma: {b: \"x y\"}}, {name: b, rdma: {a: x}}]",
        "`hosts[0].rdma.b` is `x y`, not the name of an RDMA device",
        "ibv_devices",
    ),
    (
        "hosts: [{name: a, rdma: {}}, {name: b, rdma: {}}]\ntopology: ring",
        "host `a` names no RDMA device to host `b`",
        "one before and the one after",
    ),
    // all or none
    ("hosts:\n- {name: a, memory: 8GB}\n- b", ":3: host `a` has `memory`, and host `b` has none", "none"),
    ("hosts:\n- b\n- {name: a, weight: 1}", ":2: host `a` has `weight`, and host `b` has none", "none"),
    // parallel
    (
        "hosts: [a, b]\nparallel:\n  pp: 1\n  tp: 3",
        ":4: `parallel.tp` is 3, which times 1 stages is not 2",
        "leave one",
    ),
    ("hosts: [a, b]\nparallel: {tp: 3}", ":2: `parallel.tp` is 3, which does not divide 2", "number of hosts"),
    ("hosts: [a, b]\nparallel: {pp: 3}", ":2: `parallel.pp` is 3, which does not divide 2", "number of hosts"),
    (
        "hosts: [a, b]\nparallel: {tp: 65536, pp: 65536}",
        "`parallel.tp` is 65536, which times 65536 stages",
        "leave one",
    ),
    (
        "hosts: [a, b]\nparallel: {split: [1, 2, 3]}",
        "stages in `parallel.split` is 3, which does not divide 2",
        "hosts",
    ),
    ("hosts: [a, b]\nparallel: {split: []}", "`parallel.split` has 0 stages", "leave it out"),
    ("hosts: [a, b]\nparallel: {pp: 2, split: [5]}", "`parallel.split` has 1 stages, and `pp` is 2", "every stage"),
    ("hosts: [a, b]\nparallel: {split: [5, 0]}", "`parallel.split[1]` is `0`, not a whole number", "leave it out"),
    ("hosts: [a, b]\nparallel: {pp: 2, strategy: tensor}", "`parallel.strategy` contradicts", "one stage"),
    ("hosts: [a, b]\nparallel: {tp: 2, strategy: pipeline}", "`parallel.strategy` contradicts", "one stage"),
    // timeouts
    ("hosts: [a]\ntimeouts: {connect: 10 parsecs}", ":2: `timeouts.connect` is `10 parsecs`, not a time", "10s"),
    ("hosts: [a]\ntimeouts: {start: 0}", "`timeouts.start` is `0`, not a time", "10s"),
    ("hosts: [a]\ntimeouts: {start: 25h}", "`timeouts.start` is `25h`, not a time", "10s"),
    ("hosts: [a]\ntimeouts: {heartbeat: 100ms}", ":2: `timeouts.heartbeat` is 100ms, less than 500ms", "5s"),
    ("hosts: [a]\ntimeouts:\n  progress: 2s", ":3: `timeouts.progress` is shorter than `timeouts.heartbeat`", "stuck"),
];

#[test]
fn bad_files_are_refused_by_line_and_key() {
    for (text, words, hint) in CASES {
        let result = Cluster::parse(text, "dir/cluster.yaml");
        let result = result.map_err(|error| error.context(format!("{text:?}")));
        assert_eq!(result.as_ref().map_err(|error| error.kind()).err(), Some(Kind::Failed), "{text:?}");
        refused_with_hint(result, &["dir/cluster.yaml", words], hint);
    }
}

#[test]
fn bad_names_are_refused_as_a_flag() {
    for (names, words, hint) in [
        ("a,,b", "one of the names is ``", "host name"),
        ("", "one of the names is ``", "host name"),
        ("a,-oX", "one of the names is `-oX`", "host name"),
        ("a,b c", "one of the names is `b c`", "host name"),
        ("a,b,a", "hosts 0 and 2 are both called `a`", "--local"),
    ] {
        let result = Cluster::of_names(names);
        assert_eq!(result.as_ref().map_err(|error| error.kind()).err(), Some(Kind::Usage), "{names:?}");
        refused_with_hint(result, &["--hosts: ", words], hint);
    }
}

#[test]
fn too_many_hosts_are_refused() {
    let list = |count: usize| (0..count).map(|rank| format!("h{rank}")).collect::<Vec<_>>().join(",");
    assert_eq!(Cluster::of_names(&list(1024)).unwrap().hosts.len(), 1024);
    refused(Cluster::of_names(&list(1025)), &["1025 hosts", "at most 1024"]);
}

#[test]
fn files_that_are_no_text_or_too_large_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.yaml");
    std::fs::write(&path, b"hosts: [a]\n# caf\xe9\n").unwrap();
    refused(Cluster::read(&path), &["cluster.yaml:2: byte 16 is not UTF-8"]);
    std::fs::write(&path, format!("hosts: [a]\n#{}", " ".repeat(1 << 20))).unwrap();
    refused(Cluster::read(&path), &["cluster.yaml is larger than 1048576 bytes"]);
    refused(Cluster::read(dir.path()), &[&dir.path().display().to_string()]);
    if std::path::Path::new("/dev/zero").exists() {
        refused(Cluster::of_hosts("/dev/zero"), &["/dev/zero is larger than"]);
    }
}

#[test]
fn alias_bombs_and_towers_are_refused_at_once() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let alias = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let started = std::time::Instant::now();
    refused(Cluster::parse(&bomb, "bomb.yaml"), &["bomb.yaml"]);
    refused(Cluster::parse(&format!("{bomb}hosts: *a19\n"), "bomb.yaml"), &["bomb.yaml"]);
    let flat = format!("hosts:\n{}", "- a\n".repeat(200_000));
    refused(Cluster::parse(&flat, "flat.yaml"), &["flat.yaml:", "too large or too deep for a cluster file"]);
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let tower = format!("{}x{}", open.repeat(200_000), close.repeat(200_000));
        refused(Cluster::parse(&tower, "tower.yaml"), &["tower.yaml"]);
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn an_error_shows_no_more_than_a_line_of_the_file() {
    let long = format!("hosts: [a]\ntransport: \"{}\\n\\e[31m\"", "x".repeat(100_000));
    let Err(error) = Cluster::parse(&long, "f.yaml") else { panic!("it was accepted") };
    assert!(error.to_string().len() < 200 && !error.to_string().contains(char::is_control), "{error:?}");
    let long = format!("hosts: [a]\n\"{}\\e[31m\": 1", "k".repeat(900));
    let Err(error) = Cluster::parse(&long, "f.yaml") else { panic!("it was accepted") };
    assert!(error.to_string().len() < 200 && !error.to_string().contains(char::is_control), "{error:?}");
}
