//! What keeps RDMA from being set up: every rank ends with an error that names the device and says what to do.

use std::sync::Arc;

use fake_verbs::Fabric as Fake;
use tbshard::transport::Endpoint;
use tbshard::transport::rdma::{Cabling, Place, Service, examine};
use tbshard::transport::verbs::Library;

use crate::transport::conformance::all_to_all;
use crate::transport::fabric::on_all;
use crate::transport::fake::{Machines, connect_all};

/// The errors of two ranks, with their hints.
fn errors(fake: Fake, machines: Machines, change: impl Fn(usize, &mut Cabling) + Sync) -> Vec<String> {
    let fake = Arc::new(fake);
    let all = connect_all(&fake, machines, 2, |rank| {
        let mut cabling = machines.cabling(&fake, rank, 2);
        change(rank, &mut cabling);
        cabling
    });
    let said = all.into_iter().map(|end| match end {
        Ok(_) => "connected".to_owned(),
        Err(error) => format!("{error} | {}", error.hint_text().unwrap_or_default()),
    });
    let said = said.collect();
    assert!(fake.objects().is_empty(), "{:?}", fake.objects());
    said
}

fn has(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text}"));
}

#[test]
fn a_device_that_is_not_there_is_named_with_those_that_are() {
    let said = errors(Fake::apple(2), Machines::Macs, |rank, cabling| {
        if rank == 1 {
            cabling.devices[0] = vec![Place::of("rdma_en9")];
        }
    });
    has(&said[1], &["no RDMA device `rdma_en9`; it has rdma_en2", "tbshard doctor"]);
    // and the other rank knows why
    has(&said[0], &["rank 1", "has no RDMA: this machine has no RDMA device `rdma_en9`"]);
}

#[test]
fn apples_devices_have_no_reliable_queue_pairs() {
    let said = errors(Fake::apple(2), Machines::Macs, |_, cabling| cabling.service = Some(Service::Rc));
    said.iter().for_each(|said| has(said, &["`rdma_en2`: it gives no RC queue pair", "--rdma-qp uc"]));
}

#[test]
fn a_port_without_an_ipv4_address_says_how_to_give_it_one() {
    let fake = Fake::apple(2).with_device("mac0.rdma_en2", "ipv4", serde_json::Value::Null);
    let said = errors(fake, Machines::Macs, |_, _| ());
    has(&said[0], &["`rdma_en2` has no IPv4 address among its GIDs", "sudo ifconfig en2 inet"]);
    has(&said[1], &["rank 0", "has no RDMA", "no IPv4 address"]);
}

#[test]
fn a_cable_that_is_not_plugged_in_is_a_port_that_is_not_active() {
    let fake = Fake::apple(2);
    fake.set_port("mac1.rdma_en2", false);
    let said = errors(fake, Machines::Macs, |_, _| ());
    has(&said[1], &["`rdma_en2` has no active port", "plugged in at both ends"]);
}

#[test]
fn a_cable_that_leads_elsewhere_is_noticed() {
    // three Macs, and rank 0 believes that the port to mac2 leads to mac1
    let said = errors(Fake::apple(3), Machines::Macs, |rank, cabling| {
        if rank == 0 {
            cabling.devices[1] = vec![Place::of("rdma_en3")];
        }
    });
    assert!(said.iter().all(|said| said != "connected"), "{said:?}");
    assert!(said.iter().any(|said| said.contains("rdma_en3")), "{said:?}");
}

#[test]
fn both_ends_must_be_of_one_kind_and_number() {
    let said = errors(Fake::rxe(2), Machines::Reliable, |rank, cabling| {
        if rank == 1 {
            cabling.service = Some(Service::Uc);
        }
    });
    has(&said[0], &["rxe0 (RC) and rxe0 (UC)", "of two kinds", "--rdma-qp"]);
    let said = errors(Fake::rxe(2), Machines::Reliable, |rank, cabling| {
        if rank == 1 {
            cabling.devices[0].push(Place::of("rxe0"));
        }
    });
    has(&said[0], &["1 RDMA devices to", "has 2 back", "two ends"]);
}

/// The errors of two Linux machines whose first one is told of `place`.
fn chosen(fake: Fake, place: &str) -> Vec<String> {
    errors(fake, Machines::Reliable, |rank, cabling| {
        if rank == 0 {
            cabling.devices[1] = vec![place.parse().unwrap()];
        }
    })
}

#[test]
fn a_port_and_an_address_can_be_chosen() {
    // its cable is at its second port, and its table has the IPv4-mapped address at place 3
    let fake = || {
        let fake = Fake::rxe(2).with_device("linux0.rxe0", "port_num", 2);
        fake.with_device("linux0.rxe0", "gid_index", 3)
    };
    for place in ["rxe0", "rxe0:2", "rxe0::3", "rxe0:2:3", "rxe0:2:0"] {
        assert_eq!(chosen(fake(), place), ["connected", "connected"], "{place}");
    }
    has(&chosen(fake(), "rxe0:1")[0], &["port 1 of RDMA device `rxe0` is not active", "plugged in"]);
    has(&chosen(fake(), "rxe0:7")[0], &["RDMA device `rxe0` has no port 7", "ibv_devinfo"]);
    let said = chosen(fake(), "rxe0:2:6");
    has(&said[0], &["`rxe0` has no usable GID 6 at port 2", "usable there: 0 (fe80::", "3 (::ffff:10.77.0.1)"]);
    has(&said[1], &["rank 0", "has no RDMA: RDMA device `rxe0` has no usable GID 6"]);
    // a Mac's others are none to choose
    let said = errors(Fake::apple(2), Machines::Macs, |rank, cabling| {
        cabling.devices[1 - rank] = vec!["rdma_en2:1:0".parse().unwrap()];
    });
    has(&said[0], &["`rdma_en2` has no usable GID 0", "usable there: 1 (::ffff:169.254.0.1)"]);
}

/// Two Linux machines with InfiniBand.
fn infiniband() -> Fake {
    (0..2).fold(Fake::rxe(2), |fake, at| fake.with_device(&format!("linux{at}.rxe0"), "lid", at + 1))
}

#[test]
fn infiniband_connects_inside_a_subnet_and_says_what_it_cannot() {
    assert_eq!(chosen(infiniband(), "rxe0"), ["connected", "connected"]);
    let fake = Arc::new(infiniband());
    let ends = connect_all(&fake, Machines::Reliable, 2, |rank| Machines::Reliable.cabling(&fake, rank, 2));
    let ends: Vec<Box<dyn Endpoint>> = ends.into_iter().map(|end| Box::new(end.unwrap()) as _).collect();
    on_all(ends, |mut end| all_to_all(&mut *end, &[1, 70_000], true));
    let said = chosen(infiniband().with_device("linux1.rxe0", "subnet", 0x2001_u64 << 48), "rxe0");
    said.iter().for_each(|said| has(said, &["in two InfiniBand subnets", "IPoIB"]));
    let said = chosen(Fake::rxe(2).with_device("linux1.rxe0", "lid", 2), "rxe0");
    has(&said[0], &["rxe0 (RoCE) and rxe0 (InfiniBand)", "of two kinds", "mlx5_0:2"]);
}

#[test]
fn iwarp_is_refused_by_its_name() {
    let said = chosen(Fake::rxe(2).with_device("linux0.rxe0", "iwarp", true), "rxe0");
    has(&said[0], &["`rxe0` is iWARP", "`transport: tcp`", "RoCE"]);
    has(&said[1], &["rank 0", "is iWARP"]);
}

#[test]
fn queue_pairs_and_domains_that_are_used_up_say_so() {
    let said = errors(Fake::apple(2).with("limits", serde_json::json!({"max_pd": 0})), Machines::Macs, |_, _| ());
    has(&said[0], &["no protection domain left", "killed"]);
    let said = errors(Fake::apple(2).with("granted", 8), Machines::Macs, |_, _| ());
    has(&said[0], &["grants queues of 8 sends and 8 receives"]);
    let said = errors(Fake::apple(2).with("limits", serde_json::json!({"max_mr": 0})), Machines::Macs, |_, _| ());
    has(&said[0], &["cannot be registered", "ulimit -l"]);
}

#[test]
fn a_shallow_queue_is_enough() {
    let said = errors(Fake::apple(2).with("granted", 64), Machines::Macs, |_, _| ());
    assert_eq!(said, ["connected", "connected"]);
}

#[test]
fn two_cables_share_a_long_message() {
    let fake = Arc::new(Fake::cabled(2, &[(0, 1), (0, 1)]));
    let ends = connect_all(&fake, Machines::Macs, 2, |rank| {
        let mut cabling = Machines::Macs.cabling(&fake, rank, 2);
        cabling.devices[1 - rank] = vec![Place::of("rdma_en2"), Place::of("rdma_en3")];
        cabling
    });
    let ends: Vec<Box<dyn Endpoint>> = ends.into_iter().map(|end| Box::new(end.unwrap()) as _).collect();
    on_all(ends, |mut end| {
        for receive_first in [true, false] {
            all_to_all(&mut *end, &[3 << 20, 1, 300_000, 0, 262_144, 70_000, 1 << 20], receive_first);
        }
    });
}

#[test]
fn a_library_that_is_none_is_refused_by_its_name() {
    let error = Library::at("/no/such/libibverbs.so".as_ref()).err().unwrap().to_string();
    has(&error, &["/no/such/libibverbs.so"]);
}

#[test]
fn a_report_of_devices_says_what_they_are_and_leaves_nothing() {
    let fake = Fake::apple(2);
    fake.act_as(Some("mac0"));
    let found = examine(Some(Library::at(&fake.library()).unwrap()));
    assert_eq!((found.absent, found.devices.len()), (None, 1));
    let device = &found.devices[0];
    assert_eq!((device.name.as_str(), &device.error), ("rdma_en2", &None));
    assert_eq!((device.limits[0], device.granted, device.port.map(|port| port.2)), (11, Some((1023, 1023)), Some(1)));
    assert!(fake.objects().is_empty() && fake.violations().is_empty(), "{:?}", fake.violations());
}
