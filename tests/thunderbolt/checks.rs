//! Everything that can be wrong is found, says where, and has a command that mends it.

use std::io::{Error, ErrorKind};

use tbshard::cluster::finding::{Finding, Level};
use tbshard::cluster::thunderbolt::{Cabling, Goal, Plan, Reach, Said, check, check_memory, check_reach, reach, to_do};

use super::site::{Site, dock, peer_mac};

fn findings(site: &Site) -> Vec<Finding> {
    let macs = site.macs();
    let cabling = Cabling::of(&macs).unwrap();
    let plan = Plan::new(&macs, &cabling, &[]).unwrap();
    let all = [check(&macs, &cabling, &plan), to_do(&macs, &plan)].concat();
    all.iter().for_each(|finding| assert!(!finding.fix.is_empty(), "{finding:?}"));
    all
}

/// Two Macs that nothing is wrong with.
fn good() -> Site {
    let site = Site::mesh(2);
    for host in 0..2 {
        site.write(host, "members", "en4\nen5\n");
        site.write(host, "configured", "en4\nen5\n");
        let line = format!("Left|Thunderbolt 1|en3|on|10.9.8.{}|255.255.255.252\n", host + 1);
        site.write(host, "services", &format!("Ethernet|Ethernet|en0|on||\n{line}"));
    }
    site
}

#[test]
fn a_network_that_the_user_made_stays() {
    assert_eq!(findings(&good()), []);
}

#[test]
fn what_is_wrong_has_a_command() {
    let old = "ProductName: macOS\nProductVersion: 26.1\nBuildVersion: 25B77\n";
    let middle = "ProductName: macOS\nProductVersion: 26.2\nBuildVersion: 25C56\n";
    let cases: [(&str, &dyn Fn(&mut Site), Level, &str, &str); 14] = [
        (
            "old",
            &|site| site.write(0, "versions", old),
            Level::Error,
            "mac1: macOS 26.1 (25B77) has no RDMA",
            "softwareupdate --install",
        ),
        (
            "middle",
            &|site| site.write(0, "versions", middle),
            Level::Warning,
            "no message longer than 4 KiB",
            "softwareupdate",
        ),
        (
            "differ",
            &|site| site.write(1, "versions", middle),
            Level::Warning,
            "mac2: it runs macOS 26.2 (25C56), and mac1 runs 26.3",
            "softwareupdate",
        ),
        ("off", &|site| site.write(0, "rdma", "disabled\n"), Level::Error, "mac1: RDMA is off", "`rdma_ctl enable`"),
        ("absent", &|site| site.remove(0, "rdma"), Level::Error, "there is none", "softwareupdate"),
        (
            "slow",
            &|site| {
                site.pull(0, 0);
                site.plug(0, 0, "40 Gb/s", peer_mac(1, 0));
            },
            Level::Error,
            "mac1: en3 (socket 1) to mac2 runs at 40 Gb/s",
            "put it into en4 (socket 2) or en5 (socket 3)",
        ),
        (
            "bridge",
            &|site| site.write(0, "members", "en3\n"),
            Level::Error,
            "en3 is a member of bridge0",
            "sudo ifconfig bridge0 deletem en3",
        ),
        (
            "bridge later",
            &|site| site.write(0, "configured", "en4\nen3\n"),
            Level::Warning,
            "after a restart",
            "Interfaces:1'",
        ),
        (
            "no GID",
            &|site| site.write(0, "no-gid", ""),
            Level::Error,
            "rdma_en3 has no GID of it",
            "sudo networksetup -setnetworkserviceenabled Left off && sudo networksetup -setnetworkserviceenabled Left on",
        ),
        (
            "down",
            &|site| site.write(1, "down-en3", ""),
            Level::Error,
            "mac2: the port of rdma_en3 is down",
            "pull the cable",
        ),
        (
            "wired",
            &|site| site.write(0, "wired", "8192\n"),
            Level::Warning,
            "its GPU may use 8192 MiB of 131072 MiB",
            "sudo sysctl iogpu.wired_limit_mb=0",
        ),
        (
            "stranger",
            &|site| site.plug(0, 1, "80 Gb/s", peer_mac(7, 0)),
            Level::Warning,
            "mac1: en4 (socket 2) leads to `Mac Studio`, which is none",
            "--hosts",
        ),
        (
            "one-sided",
            &|site| site.pull(1, 0),
            Level::Warning,
            "mac2: en3 (socket 1) does not see mac1",
            "put it in again",
        ),
        (
            "hub",
            &|site| {
                site.pull(0, 0);
                site.plug(0, 0, "40 Gb/s", dock("Old Dock", &[peer_mac(1, 0)]));
            },
            Level::Error,
            "runs at 40 Gb/s",
            "without a hub",
        ),
    ];
    for (name, spoil, level, what, fix) in cases {
        let mut site = good();
        spoil(&mut site);
        let found = findings(&site);
        let fits = |finding: &&Finding| {
            format!("{}: {}", finding.host, finding.what).contains(what)
                && finding.fix.contains(fix)
                && finding.level == level
        };
        assert!(found.iter().any(|finding| fits(&finding)), "{name}: {found:#?}");
    }
}

#[test]
fn addresses_are_judged_by_what_they_are() {
    let lacks = |spoil: &dyn Fn(&Site)| {
        let site = good();
        spoil(&site);
        let found = findings(&site);
        let of = |finding: &&Finding| finding.host == "mac1" && finding.what.contains("is to have");
        found.iter().find(of).map(|finding| (finding.level, finding.what.clone())).unwrap()
    };
    let services = "Ethernet|Ethernet|en0|on||\n";
    let (level, what) = lacks(&|site| site.write(0, "services", services));
    assert_eq!(level, Level::Error);
    assert_eq!(what, "en3 is to have 10.213.47.1/30 and has no IPv4 address, so RDMA has no GID");
    let (level, what) = lacks(&|site| {
        site.write(0, "services", services);
        site.write(0, "addresses", "en3 169.254.1.2 0xffff0000\n");
    });
    assert!(level == Level::Warning && what.contains("gave itself (169.254.1.2)"), "{what}");
    let (level, what) = lacks(&|site| {
        site.write(0, "services", services);
        site.write(0, "addresses", "en3 192.168.0.1 0xfffffffc\n");
    });
    assert!(level == Level::Error && what.contains("192.168.0.1/30, which does not fit"), "{what}");
}

/// The address that a Mac is to have, after the LANs are as `lans` says.
fn planned(lans: &[&str], taken: &[&str]) -> Result<Vec<String>, String> {
    let site = Site::mesh(3);
    lans.iter().enumerate().for_each(|(host, lan)| site.write(host, "lan", &format!("{lan}\n")));
    let macs = site.macs();
    let taken: Vec<_> = taken.iter().map(|address| address.parse().unwrap()).collect();
    let plan = Plan::new(&macs, &Cabling::of(&macs).unwrap(), &taken).map_err(|error| error.to_string())?;
    Ok(plan.addresses.iter().map(|(_, [a, b])| format!("{a} {b}")).collect())
}

#[test]
fn no_address_collides_with_a_network_of_the_user() {
    let lan = "192.168.1.5 0xffffff00";
    let first = ["10.213.47.1 10.213.47.2", "10.213.47.5 10.213.47.6", "10.213.47.9 10.213.47.10"];
    assert_eq!(planned(&[lan], &[]).unwrap(), first);
    // a company's 10/8 on one Mac, or whoever calls ssh, moves all
    assert_eq!(planned(&[lan, "10.4.4.4 0xff000000"], &[]).unwrap()[0], "172.29.213.1 172.29.213.2");
    assert_eq!(planned(&[lan], &["10.213.47.200"]).unwrap()[0], "172.29.213.1 172.29.213.2");
    let all = ["10.4.4.4 0xff000000", "172.16.0.9 0xfff00000", "192.168.3.3 0xffff0000"];
    assert!(planned(&all, &[]).unwrap_err().contains("no range of private addresses is free"));
}

#[test]
fn a_cable_that_moved_gets_addresses_that_fit_again() {
    let site = good();
    for (host, address) in [(0, "10.213.47.1"), (1, "10.213.47.6")] {
        site.write(host, "services", &format!("tbshard en3|Thunderbolt 1|en3|on|{address}|255.255.255.252\n"));
    }
    let macs = site.macs();
    let plan = Plan::new(&macs, &Cabling::of(&macs).unwrap(), &[]).unwrap();
    let open: Vec<_> = plan.open(&macs).collect();
    assert!(
        matches!(open[..], [(1, Goal::Address { address, .. })] if address.to_string() == "10.213.47.2"),
        "{open:?}"
    );
}

#[test]
fn a_share_that_the_gpu_may_not_use_has_a_limit_that_fits() {
    let site = good();
    let mac = &site.macs()[0].1;
    assert_eq!(check_memory("mac1", mac, 90 << 30), None);
    let finding = check_memory("mac1", mac, 100 << 30).unwrap();
    assert_eq!(finding.fix, format!("sudo sysctl iogpu.wired_limit_mb={} (until it restarts)", 104 << 10));
    assert_eq!(finding.undo.unwrap(), "sudo sysctl iogpu.wired_limit_mb=0");
    assert!(check_memory("mac1", mac, 125 << 30).unwrap().fix.starts_with("add hosts"));
}

#[test]
fn privacy_shows_in_what_the_system_may_and_tbshard_may_not() {
    let address = "10.213.47.2".parse().unwrap();
    let cases = [
        (None, None, Reach::Reached),
        (Some(ErrorKind::ConnectionRefused), None, Reach::Reached),
        (Some(ErrorKind::HostUnreachable), Some(0), Reach::Forbidden),
        (Some(ErrorKind::TimedOut), Some(0), Reach::Forbidden),
        (Some(ErrorKind::TimedOut), Some(2), Reach::Silent),
        (Some(ErrorKind::HostUnreachable), None, Reach::Silent),
    ];
    for (error, ping, expected) in cases {
        let connect = |_| error.map_or(Ok(()), |kind| Err(Error::from(kind)));
        let mut run = |command: &[&str]| {
            assert_eq!(command.last(), Some(&"10.213.47.2"));
            Said { code: ping, ..Said::default() }
        };
        assert_eq!(reach(address, &connect, &mut run), expected, "{error:?} {ping:?}");
    }
    assert_eq!(check_reach("mac1", ("mac2", address), Reach::Reached), None);
    let finding = check_reach("mac1", ("mac2", address), Reach::Forbidden).unwrap();
    assert!(
        finding.what.contains("mac2 answers to ping at 10.213.47.2") && finding.fix.contains("Privacy_LocalNetwork")
    );
}
