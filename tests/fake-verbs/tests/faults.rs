//! What goes wrong by itself, because a test wants it.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::null_mut;

use fake_verbs::abi::{QpAttr, RC, UC, status};
use fake_verbs::{Fabric, Fault, Kind};

use crate::happy::link;
use crate::support::{End, Other, Verbs, errno, init_attr, meet_other, open};

/// Sends messages of 8 bytes filled with 0, 1, 2… and tells what arrives in order, as (first byte, status).
fn run(fabric: &Fabric, ends: &mut [End; 2], count: u64, receives: u64) -> Vec<(u8, u32)> {
    let [one, two] = ends;
    for id in 0..receives {
        assert_eq!(two.recv(id, id as usize * 64, 8), 0);
    }
    for id in 0..count {
        one.bytes(id as usize * 64, 8).fill(id as u8);
        assert_eq!(one.send(id, id as usize * 64, 8), 0);
    }
    let mut got = Vec::new();
    for id in 0..receives {
        let Some(wc) = two.within(id, std::time::Duration::from_millis(50)) else { break };
        got.push((two.bytes(id as usize * 64, 8)[0], wc.status));
    }
    assert_eq!(fabric.broken(), [""; 0], "{:?}", fabric.violations());
    got
}

fn with(fault: Fault, count: u64, receives: u64) -> Vec<(u8, u32)> {
    let fabric = Fabric::apple(2);
    let mut ends = link(&fabric, UC, ["mac0", "mac1"]);
    fabric.fault(Fault { device: Some(fabric.index("mac0.rdma_en2")), ..fault });
    let got = run(&fabric, &mut ends, count, receives);
    ends.into_iter().for_each(End::end);
    got
}

#[test]
fn messages_are_lost_doubled_swapped_and_spoilt() {
    assert_eq!(with(Fault::new(Kind::Drop, 1), 3, 3), [(0, 0), (2, 0)]);
    assert_eq!(with(Fault { times: 2, ..Fault::new(Kind::Drop, 0) }, 3, 3), [(2, 0)]);
    assert_eq!(with(Fault { every: 2, times: u64::MAX, ..Fault::new(Kind::Drop, 1) }, 5, 3), [(0, 0), (2, 0), (4, 0)]);
    assert_eq!(with(Fault::new(Kind::Duplicate, 1), 3, 4), [(0, 0), (1, 0), (1, 0), (2, 0)]);
    assert_eq!(with(Fault::new(Kind::Reorder, 0), 3, 3), [(1, 0), (0, 0), (2, 0)]);
    assert_eq!(with(Fault { value: 0, ..Fault::new(Kind::Corrupt, 2) }, 3, 3), [(0, 0), (1, 0), (2 ^ 0x40, 0)]);
}

#[test]
fn completions_fail() {
    let fabric = Fabric::apple(2);
    let mut ends = link(&fabric, UC, ["mac0", "mac1"]);
    fabric.fault(Fault { value: 21, ..Fault::new(Kind::RecvStatus, 1) });
    assert_eq!(run(&fabric, &mut ends, 3, 3), [(0, 0), (0, 21), (0, 5)]);
    let fabric = Fabric::apple(2);
    let mut ends = link(&fabric, UC, ["mac0", "mac1"]);
    fabric.fault(Fault { value: 12, ..Fault::new(Kind::SendStatus, 1) });
    assert_eq!(run(&fabric, &mut ends, 2, 2).len(), 2);
    assert_eq!((ends[0].wait(0).status, ends[0].wait(1).status), (0, 12));
    assert_eq!(ends[0].send(7, 0, 8), 0);
    assert_eq!(ends[0].wait(7).status, status::WR_FLUSH_ERR);
}

#[test]
fn polling_fails() {
    let fabric = Fabric::apple(2);
    let mut ends = link(&fabric, UC, ["mac0", "mac1"]);
    fabric.fault(Fault { device: Some(fabric.index("mac1.rdma_en2")), ..Fault::new(Kind::Poll, 1) });
    assert_eq!((ends[1].poll(), ends[1].poll(), ends[1].poll(), ends[0].poll()), (0, -1, 0, 0));
    fabric.clear_faults();
}

#[test]
fn every_call_of_a_start_fails_once() {
    let fabric = Fabric::apple(2);
    fabric.act_as(Some("mac0"));
    let verbs = Verbs::open(&fabric.library());
    let context = open(verbs, "rdma_en2");
    let next = || {
        fabric.clear_faults();
        fabric.fault(Fault { value: 55, ..Fault::new(Kind::Call, 0) });
    };
    // SAFETY: live handles.
    unsafe {
        next();
        assert!((verbs.ibv_alloc_pd)(context).is_null() && errno() == 55);
        let pd = (verbs.ibv_alloc_pd)(context);
        next();
        assert!((verbs.ibv_create_cq)(context, 1, null_mut(), null_mut(), 0).is_null() && errno() == 55);
        let cq = (verbs.ibv_create_cq)(context, 1, null_mut(), null_mut(), 0);
        next();
        assert!((verbs.ibv_reg_mr)(pd, null_mut(), 1, 7).is_null() && errno() == 55);
        next();
        assert!((verbs.ibv_create_qp)(pd, &mut init_attr(cq, UC, 1)).is_null() && errno() == 55);
        let qp = (verbs.ibv_create_qp)(pd, &mut init_attr(cq, UC, 1));
        next();
        assert_eq!((verbs.ibv_modify_qp)(qp, &mut QpAttr::default(), 1), 55);
        (verbs.ibv_destroy_qp)(qp);
        (verbs.ibv_destroy_cq)(cq);
        (verbs.ibv_dealloc_pd)(pd);
        (verbs.ibv_close_device)(context);
    }
    assert_eq!((fabric.broken(), fabric.objects().len()), (vec![], 0));
}

#[test]
fn a_faulty_file_says_so_from_the_start() {
    let faults = serde_json::json!([{ "kind": "drop", "device": "mac0.rdma_en2", "after": 1 }]);
    let fabric = Fabric::apple(2).with("faults", faults);
    let mut ends = link(&fabric, UC, ["mac0", "mac1"]);
    assert_eq!(run(&fabric, &mut ends, 3, 3), [(0, 0), (2, 0)]);
}

#[test]
fn a_port_goes_down_and_comes_back() {
    let fabric = Fabric::apple(2);
    let [mut one, mut two] = link(&fabric, UC, ["mac0", "mac1"]);
    fabric.set_port("mac1.rdma_en2", false);
    assert_eq!((two.recv(1, 0, 8), one.send(1, 0, 8)), (0, 0));
    one.never(1);
    two.never(1);
    fabric.set_port("mac1.rdma_en2", true);
    assert_eq!((one.wait(1).status, two.wait(1).status), (0, 0));
}

#[test]
fn a_machine_stands_still() {
    let fabric = Fabric::apple(2);
    let [mut one, mut two] = link(&fabric, UC, ["mac0", "mac1"]);
    assert_eq!(two.recv(1, 0, 8), 0);
    fabric.set_still("mac1.rdma_en2", true);
    assert_eq!(one.send(1, 0, 8), 0);
    one.never(1);
    two.never(1);
    Fabric::attach(fabric.dir()).set_still("mac1.rdma_en2", false);
    assert_eq!((one.wait(1).status, two.wait(1).status), (0, 0));
}

#[test]
fn a_dead_peer_of_a_mac_is_silence() {
    let fabric = Fabric::apple(2);
    let [mut one, two] = link(&fabric, UC, ["mac0", "mac1"]);
    assert_eq!((two.recv(1, 0, 8), two.recv(2, 0, 8)), (0, 0));
    two.end();
    assert_eq!((one.send(1, 0, 8), one.recv(2, 0, 8)), (0, 0));
    one.never(1);
    one.never(2);
    one.end();
}

/// A process that connects, posts receives, and waits to be killed.
#[test]
#[ignore = "the other process"]
fn victim() {
    let [host, kind] = ["FAKE_VERBS_HOST", "VICTIM"].map(|key| std::env::var(key).unwrap());
    let kind = if kind == "rc" { RC } else { UC };
    let name = if host.starts_with("mac") { "rdma_en2" } else { "rxe0" };
    let end = End::new(Verbs::open(std::path::Path::new("libibverbs.so.1")), name, kind, 64);
    let end = meet_other(end);
    assert_eq!((end.recv(1, 0, 8), end.recv(2, 0, 8)), (0, 0));
    println!("posted");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_peer_is_an_error_of_rc_and_silence_of_uc() {
    for (fabric, kind, hosts) in
        [(Fabric::apple(2), UC, ["mac0", "mac1"]), (Fabric::rxe(2).with("retry_ms", 50), RC, ["linux0", "linux1"])]
    {
        fabric.act_as(Some(hosts[0]));
        let device = fabric.device(hosts[0], hosts[1]);
        let end = End::new(Verbs::open(&fabric.library()), &device, kind, 64);
        let word = if kind == RC { "rc" } else { "uc" };
        let (mut other, mut lines) = Other::start(&fabric, hosts[1], "faults::victim", &[("VICTIM", word)]);
        let mut end = other.meet(&mut lines, end);
        assert!(lines.any(|line| line == "posted"));
        assert_eq!(end.send(1, 0, 8), 0);
        assert_eq!(end.wait(1).status, 0);
        other.child.kill().unwrap();
        other.child.wait().unwrap();
        assert_eq!((end.recv(8, 0, 8), end.send(2, 0, 8), end.send(3, 0, 8)), (0, 0, 0));
        if kind == RC {
            // what the dead machine's hardware had room for may have gone through
            assert!([0, status::RETRY_EXC_ERR].contains(&end.wait(2).status));
            assert!([status::RETRY_EXC_ERR, status::WR_FLUSH_ERR].contains(&end.wait(3).status));
        } else {
            end.never(3);
            end.never(8);
        }
        end.end();
        assert_eq!(fabric.broken(), [""; 0]);
    }
}

/// A process whose driver crashes when it posts a receive.
#[test]
#[ignore = "the other process"]
fn crasher() {
    let end = End::new(Verbs::open(std::path::Path::new("libibverbs.so.1")), "rdma_en2", UC, 64);
    end.recv(1, 0, 8);
}

#[test]
fn a_driver_crashes() {
    let fabric = Fabric::apple(2);
    fabric.fault(Fault::new(Kind::Crash, 0));
    let words = ["faults::crasher", "--exact", "--ignored"];
    let output = Command::new(std::env::current_exe().unwrap()).args(words).envs(fabric.env("mac0")).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
}
