//! `tbshard setup --over thunderbolt` and `doctor` on Macs that ssh reaches, which are scripts.

use serde_json::Value;
use tbshard::cluster::{Cluster, Topology, Transport};
use tbshard::transport::rdma::Place;

use super::Ended;
use super::site::{Site, dock, peer_mac};

fn setup(site: &Site, more: &[&str]) -> Ended {
    let ended = site.tbshard(&[&["setup", "--over", "thunderbolt", "--hosts", &site.hosts()][..], more].concat());
    assert!(!ended.err.contains("panicked"), "{ended:?}");
    ended
}

/// What the Macs were told to change, in all.
fn changes(site: &Site, host: usize) -> Vec<String> {
    site.read(host, "log").lines().map(str::to_owned).collect()
}

#[test]
fn without_auto_every_command_is_printed_and_nothing_changes() {
    let site = Site::mesh(2);
    let ended = setup(&site, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let list = "/Library/Preferences/SystemConfiguration/preferences.plist";
    for command in [
        "on mac1:".to_owned(),
        format!(
            "sudo /usr/libexec/PlistBuddy -c 'Delete :VirtualNetworkInterfaces:Bridge:bridge0:Interfaces:0' {list}"
        ),
        "sudo ifconfig bridge0 deletem en3".to_owned(),
        "sudo networksetup -createnetworkservice 'tbshard en3' en3".to_owned(),
        "sudo networksetup -setmanual 'tbshard en3' 10.213.47.1 255.255.255.252".to_owned(),
        "sudo networksetup -setmanual 'tbshard en3' 10.213.47.2 255.255.255.252".to_owned(),
        "--auto does it".to_owned(),
        "mac1 en3 ===== en3 mac2  80 Gb/s".to_owned(),
    ] {
        assert!(ended.err.contains(&command), "{command} is not in {}", ended.err);
    }
    assert!(changes(&site, 0).is_empty() && changes(&site, 1).is_empty());
    let cluster = Cluster::parse(&ended.out, "made").unwrap();
    assert_eq!((cluster.transport, cluster.topology), (Transport::Rdma, Topology::Mesh));
    assert_eq!(cluster.hosts[0].rdma, [vec![], vec![Place::of("rdma_en3")]]);
    assert_eq!(cluster.hosts[1].addresses, ["192.168.1.12".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(cluster.timeouts.heartbeat.as_millis(), 1500);
    assert_eq!(cluster.hosts[0].memory, Some(128 << 30));
}

#[test]
fn auto_sets_up_once_and_undo_restores() {
    let site = Site::mesh(3);
    let before: Vec<[String; 3]> = (0..3).map(|host| state(&site, host)).collect();
    let file = site.dir().join("cluster.yaml");
    let file = file.to_str().unwrap();
    let ended = setup(&site, &["--auto", "-o", file]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for host in 0..3 {
        // two cables each: the list, the bridge, the service, its address
        assert_eq!(changes(&site, host).len(), 8, "{:?}", changes(&site, host));
        assert_eq!(
            (site.read(host, "members"), site.read(host, "configured")),
            ("en5\n".to_owned(), "en5\n".to_owned())
        );
    }
    let cluster = Cluster::read(std::path::Path::new(file)).unwrap();
    assert!(cluster.has_rdma() && cluster.topology == Topology::Mesh, "{cluster:?}");
    let again = setup(&site, &["--auto", "-o", file, "--force"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(again.err.contains("nothing is to be set up: all 3 Macs"), "{again:?}");
    assert_eq!(changes(&site, 0).len(), 8);
    assert_eq!(Cluster::read(std::path::Path::new(file)).unwrap(), cluster);
    let told = setup(&site, &["--undo"]);
    assert!(
        told.code == Some(0) && told.err.contains("sudo networksetup -removenetworkservice 'tbshard en3'"),
        "{told:?}"
    );
    assert_eq!(changes(&site, 0).len(), 8);
    let undone = setup(&site, &["--undo", "--auto"]);
    assert_eq!(undone.code, Some(0), "{undone:?}");
    for (host, before) in before.iter().enumerate() {
        assert_eq!(state(&site, host), *before);
    }
    let again = setup(&site, &["--undo", "--auto"]);
    assert!(again.code == Some(0) && again.err.contains("nothing is to be undone"), "{again:?}");
}

/// Services and members, in an order that does not tell when they came.
fn state(site: &Site, host: usize) -> [String; 3] {
    ["services", "members", "configured"].map(|file| {
        let text = site.read(host, file);
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    })
}

#[test]
fn a_ring_lists_its_hosts_in_order() {
    // mac1 – mac3 – mac2 – mac4 – mac1
    let mut site = Site::new(4);
    site.cable((0, 0), (2, 0));
    site.cable((2, 1), (1, 0));
    site.cable((1, 1), (3, 0));
    site.cable((3, 1), (0, 1));
    let ended = setup(&site, &[]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // by hand, the second port leaves the list before the first, which would move it up
    let at = |text: &str| ended.err.find(text).unwrap();
    assert!(at("bridge0:Interfaces:1'") < at("bridge0:Interfaces:0'"), "{ended:?}");
    let cluster = Cluster::parse(&ended.out, "made").unwrap();
    let names: Vec<&str> = cluster.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!((cluster.topology, names), (Topology::Ring, vec!["mac1", "mac3", "mac2", "mac4"]));
    assert_eq!(cluster.hosts[2].rdma[3], [Place::of("rdma_en4")]);
}

#[test]
fn a_missing_cable_is_named_with_the_ports_that_are_free() {
    let mut site = Site::new(3);
    site.cable((0, 0), (1, 0));
    let ended = setup(&site, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.is_empty(), "{ended:?}");
    for text in [
        "error: mac1: no cable for RDMA leads to mac3, which a ring needs too",
        "connect mac1 (en4 (socket 2) or en5 (socket 3)) with mac3",
        "error: the cables make neither a mesh nor a ring",
    ] {
        assert!(ended.err.contains(text), "{text} is not in {}", ended.err);
    }
    let drawn = setup(&site, &["--dot"]);
    assert!(drawn.out.contains("\"mac1\" -- \"mac3\" [style=dashed color=red"), "{drawn:?}");
}

#[test]
fn a_password_is_not_asked_for() {
    let site = Site::mesh(2);
    site.write(1, "password", "");
    let ended = setup(&site, &["--auto"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("error: mac2: sudo wants a password there (sudo: a password is required)"), "{ended:?}");
    let by_hand = ended.err.split("to be run by hand").nth(1).unwrap();
    assert!(
        by_hand.contains("on mac2:") && by_hand.contains("deletem en3") && !by_hand.contains("on mac1:"),
        "{ended:?}"
    );
    // what was done on the other goes away, and what was not does no harm
    site.remove(1, "password");
    let undone = setup(&site, &["--undo", "--auto"]);
    assert_eq!(undone.code, Some(0), "{undone:?}");
    assert_eq!(site.read(0, "configured").lines().count(), 3);
}

#[test]
fn a_command_that_changes_nothing_is_noticed() {
    let site = Site::mesh(2);
    site.write(0, "stubborn", "");
    let ended = setup(&site, &["--auto"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let text = "error: mac1: `sudo networksetup -setmanual 'tbshard en3' 10.213.47.1 255.255.255.252` went well and changed nothing";
    assert!(ended.err.contains(text), "{ended:?}");
}

#[test]
fn a_command_that_fails_is_named_with_its_words() {
    let site = Site::mesh(2);
    site.write(0, "broken", "");
    let ended = setup(&site, &["--auto"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let text = "10.213.47.1 255.255.255.252` failed: ** Error: The parameters were not valid.";
    assert!(
        ended.err.contains("error: mac1: `sudo -n networksetup -setmanual") && ended.err.contains(text),
        "{ended:?}"
    );
    // and once it goes, what is left is done
    site.remove(0, "broken");
    assert_eq!(setup(&site, &["--auto"]).code, Some(0));
    assert_eq!(changes(&site, 0).len(), 4);
}

#[test]
fn nobody_saws_off_the_branch_that_ssh_sits_on() {
    let site = Site::mesh(2);
    site.write(0, "addresses", "bridge0 169.254.7.7 0xffff0000\n");
    site.ssh_comes_in_at(0, "169.254.7.7");
    let ended = setup(&site, &["--auto"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("ssh reaches it at 169.254.7.7 over bridge0"), "{ended:?}");
    assert!(changes(&site, 0).is_empty() && changes(&site, 1).is_empty());
}

#[test]
fn what_cannot_be_is_refused() {
    let site = Site::mesh(2);
    for (args, code, text) in [
        (&["setup", "--over", "thunderbolt", "--hosts", "mac1"][..], 2, "two Macs or more"),
        (&["setup", "--hosts", "mac1,mac2", "--undo"], 2, "--undo is for --over thunderbolt"),
        (&["setup", "--over", "thunderbolt", "--hosts", "mac1,mac2", "--undo", "-o", "x.yaml"], 2, "cannot be used"),
        (&["setup", "--over", "thunderbolt", "--hosts", "mac1,mac7"], 3, "mac7"),
    ] {
        let ended = site.tbshard(args);
        assert!(ended.code == Some(code) && ended.err.contains(text), "{args:?}: {ended:?}");
    }
    site.write(1, "profiler", "{\"SPThunderboltDataType\": 7}");
    let ended = setup(&site, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let text = "error: mac2: `system_profiler SPThunderboltDataType -json` says what tbshard does not understand";
    assert!(ended.err.contains(text), "{ended:?}");
}

#[test]
fn json_has_all_of_it() {
    let site = Site::mesh(2);
    let ended = setup(&site, &["--json"]);
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["topology"], "mesh");
    assert_eq!(report["cables"][0]["interfaces"], serde_json::json!(["en3", "en3"]));
    assert_eq!(report["cables"][0]["addresses"], serde_json::json!(["10.213.47.1", "10.213.47.2"]));
    assert_eq!(report["to_do"].as_array().unwrap().len(), 8);
    assert!(report["to_do"][0]["undo"].as_str().unwrap().contains("string en3"), "{report}");
    assert!(Cluster::parse(report["file"].as_str().unwrap(), "made").is_ok());
}

#[test]
fn doctor_finds_what_is_wrong_with_the_cables() {
    let mut site = Site::mesh(3);
    let file = site.dir().join("cluster.yaml");
    let file = file.to_str().unwrap();
    assert_eq!(setup(&site, &["--auto", "-o", file]).code, Some(0));
    let right = site.tbshard(&["doctor", "--hosts", file]);
    assert!(right.out.contains("mac1 en3 ===== en3 mac2") && !right.out.contains("rdma_en"), "{right:?}");
    // two cables of mac1 change places, behind a dock that is too slow
    for (host, port) in [(0, 0), (0, 1), (1, 0), (2, 0)] {
        site.pull(host, port);
    }
    site.cable((0, 0), (2, 0));
    site.plug(0, 1, "40 Gb/s", dock("Slow Dock", &[peer_mac(1, 0)]));
    site.plug(1, 0, "40 Gb/s", dock("Slow Dock", &[peer_mac(0, 1)]));
    site.write(1, "rdma", "disabled\n");
    let wrong = site.tbshard(&["doctor", "--hosts", file]);
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    for text in [
        "error: mac1: the cluster file says that rdma_en3 leads to mac2, and its cable leads to mac3",
        "error: mac1: en4 (socket 2) to mac2 runs at 40 Gb/s; RDMA takes Thunderbolt 5, which runs at 80",
        "error: mac2: RDMA is off\n  fix: in Recovery",
        "run `rdma_ctl enable`",
        "through Slow Dock, not for RDMA",
    ] {
        assert!(wrong.out.contains(text), "{text} is not in {}", wrong.out);
    }
    let drawn = site.tbshard(&["doctor", "--hosts", file, "--dot"]);
    assert!(drawn.code == Some(0) && drawn.out.starts_with("graph tbshard {"), "{drawn:?}");
}
