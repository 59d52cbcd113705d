//! Rules of requests and messages, of both personalities.

use std::ptr::null_mut;
use std::time::Duration;

use fake_verbs::Fabric;
use fake_verbs::abi::*;

use crate::happy::link;
use crate::support::{BUFFER, End, init_attr, send_wr};

const HALF: usize = 1 << 19;

fn macs(fabric: &Fabric) -> [End; 2] {
    link(fabric, UC, ["mac0", "mac1"])
}

fn linux(fabric: &Fabric, kind: u32) -> [End; 2] {
    link(fabric, kind, ["linux0", "linux1"])
}

#[track_caller]
fn broken(fabric: &Fabric, rules: &[&str]) {
    assert_eq!(fabric.broken(), rules, "{:?}", fabric.violations());
    fabric.clear_violations();
}

fn end(ends: [End; 2]) {
    ends.into_iter().for_each(End::end);
}

#[test]
fn a_mac_sends_only() {
    let fabric = Fabric::apple(2);
    let ends = macs(&fabric);
    let one = &ends[0];
    let change = |change: fn(&mut SendWr), rule: &str| {
        let mut sge = one.sge(0, 8);
        let mut wr = send_wr(1, &mut sge);
        change(&mut wr);
        assert_eq!(one.post(&mut wr), 22);
        broken(&fabric, &[rule]);
    };
    change(|wr| wr.opcode = SEND_WITH_IMM, "opcode");
    change(|wr| wr.opcode = 0, "opcode");
    change(|wr| wr.rest[10] = 1, "wr-tail");
    change(|wr| wr.imm_data = 1, "wr-tail");
    change(|wr| wr.send_flags = SIGNALED | INLINE, "inline");
    change(|wr| wr.num_sge = 2, "too-many-sges");
    // SAFETY: the request's element.
    change(|wr| unsafe { (*wr.sg_list).lkey += 1 }, "lkey");
    // SAFETY: the request's element.
    change(|wr| unsafe { (*wr.sg_list).addr -= 1 }, "lkey");
    // SAFETY: the request's element.
    change(|wr| unsafe { (*wr.sg_list).addr += BUFFER as u64 - 7 }, "lkey");
    // SAFETY: the request's element.
    change(|wr| unsafe { (*wr.sg_list).length = 4095 * 4096 + 1 }, "message-too-long");
    assert_eq!(one.recv(2, 1 << 20, 8), 22);
    broken(&fabric, &["lkey"]);
    end(ends);
}

#[test]
fn requests_have_their_states() {
    let fabric = Fabric::apple(2);
    fabric.act_as(Some("mac0"));
    let one = End::new(crate::support::Verbs::open(&fabric.library()), "rdma_en2", UC, 64);
    assert_eq!((one.init(), one.recv(1, 0, 8), one.send(2, 0, 8)), (0, 22, 22));
    broken(&fabric, &["recv-before-rtr", "send-before-rts"]);
    one.end();
}

#[test]
fn a_send_waits_for_its_receive() {
    let fabric = Fabric::apple(2);
    let [mut one, mut two] = macs(&fabric);
    one.bytes(0, 8).fill(3);
    assert_eq!(one.send(1, 0, 8), 0);
    one.never(1);
    assert_eq!(two.recv(2, 0, 8), 0);
    assert_eq!((one.wait(1).status, two.wait(2).byte_len), (0, 8));
    // its buffer is not the program's until it completes
    assert_eq!(one.send(1, 0, 8), 0);
    one.bytes(0, 8).fill(4);
    assert_eq!(two.recv(2, 0, 8), 0);
    one.wait(1);
    broken(&fabric, &["buffer-changed"]);
    // nor before it leaves
    assert_eq!(two.recv(2, 0, 8), 0);
    fabric.set_still("mac1.rdma_en2", true);
    assert_eq!(one.send(1, 0, 8), 0);
    one.bytes(0, 8).fill(5);
    fabric.set_still("mac1.rdma_en2", false);
    one.wait(1);
    broken(&fabric, &["buffer-changed"]);
    end([one, two]);
}

#[test]
fn depth_is_counted_in_frames() {
    let fabric = Fabric::apple(2).with("granted", 8);
    let [mut one, mut two] = macs(&fabric);
    let mut attr = QpAttr::default();
    let mut init = init_attr(null_mut(), 0, 0);
    // SAFETY: a live handle.
    unsafe { (one.verbs.ibv_query_qp)(one.qp, &mut attr, 0, &mut init) };
    assert_eq!((attr.cap.max_send_wr, init.cap.max_recv_wr, attr.qp_state), (8, 8, state::RTS));
    // 5 + 3 frames fit, also with the last byte in a frame of its own
    assert_eq!((two.recv(1, 0, 4 * 4096 + 1), two.recv(2, HALF, 12288)), (0, 0));
    broken(&fabric, &[]);
    assert_eq!(two.recv(3, 0, 0), 0);
    broken(&fabric, &["overpost-recv"]);
    assert_eq!((one.send(1, 0, 4 * 4096 + 1), one.send(2, 0, 12288), one.send(3, 0, 1)), (0, 0, 0));
    broken(&fabric, &["overpost-send"]);
    assert_eq!((one.wait(1).status, one.wait(2).status), (0, 0));
    one.never(3);
    assert_eq!((two.wait(1).status, two.wait(2).status), (0, 0));
    two.never(3);
    // what was polled has room again
    assert_eq!((two.recv(4, 0, 1), one.send(4, 0, 1)), (0, 0));
    assert_eq!((one.wait(4).status, two.wait(4).status), (0, 0));
    broken(&fabric, &[]);
    end([one, two]);
    let fabric = Fabric::apple(2);
    let ends = macs(&fabric);
    // SAFETY: a live handle.
    unsafe { (ends[0].verbs.ibv_query_qp)(ends[0].qp, &mut attr, 0, &mut init) };
    assert_eq!(attr.cap.max_send_wr, 1023);
    end(ends);
}

#[test]
fn unsignaled_sends_keep_their_room_until_a_signaled_one() {
    let fabric = Fabric::apple(2).with("granted", 4);
    let [mut one, mut two] = macs(&fabric);
    for round in 0..4u64 {
        assert_eq!(two.recv(round, 0, 8), 0);
        let mut sge = one.sge(0, 8);
        let mut wr = send_wr(round, &mut sge);
        wr.send_flags = if round == 3 { SIGNALED } else { 0 };
        assert_eq!(one.post(&mut wr), 0);
        two.wait(round);
    }
    assert_eq!(one.wait(3).status, 0);
    assert!(one.done.is_empty());
    assert_eq!((two.recv(9, 0, 4 * 4096), one.send(9, 0, 4 * 4096)), (0, 0));
    one.wait(9);
    broken(&fabric, &[]);
    end([one, two]);
}

#[test]
fn frames_of_both_sides_are_the_same() {
    let fabric = Fabric::apple(2);
    let [mut one, mut two] = macs(&fabric);
    // of one number of frames, a receive may be longer
    assert_eq!((two.recv(1, 0, 8192), one.send(1, 0, 4097)), (0, 0));
    assert_eq!((two.wait(1).byte_len, one.wait(1).status), (4097, 0));
    broken(&fabric, &[]);
    assert_eq!((two.recv(2, 0, 8192), two.recv(3, 0, 8), one.send(2, 0, 4096)), (0, 0, 0));
    assert_eq!(one.wait(2).status, status::SUCCESS);
    assert_eq!((two.wait(2).status, two.wait(3).status), (status::LOC_LEN_ERR, status::WR_FLUSH_ERR));
    broken(&fabric, &["frames"]);
    end([one, two]);
}

#[test]
fn large_messages_break_before_26_3() {
    let fabric = Fabric::apple(2).with("os", "26.2");
    let [mut one, mut two] = macs(&fabric);
    one.bytes(0, 8192).fill(1);
    assert_eq!((two.recv(1, 0, 8192), one.send(1, 0, 8192)), (0, 0));
    two.wait(1);
    assert!(two.bytes(0, 4096).iter().all(|byte| *byte == 1));
    assert!(two.bytes(4096, 4096).iter().any(|byte| *byte != 1));
    broken(&fabric, &["large-message"]);
    end([one, two]);
}

#[test]
fn a_released_region_is_missed() {
    let fabric = Fabric::apple(2);
    let [one, mut two] = macs(&fabric);
    assert_eq!(two.recv(1, 0, 8), 0);
    // SAFETY: a live handle.
    assert_eq!(unsafe { (two.verbs.ibv_dereg_mr)(two.mr) }, 0);
    assert_eq!(one.send(1, 0, 8), 0);
    assert_eq!(two.wait(1).status, status::LOC_PROT_ERR);
    broken(&fabric, &["lkey"]);
}

#[test]
fn a_queue_pair_falls_asleep() {
    let fabric = Fabric::apple(2).with("idle_ms", 20);
    let [mut one, mut two] = macs(&fabric);
    assert_eq!((two.recv(1, 0, 8), two.recv(2, 0, 8), one.send(1, 0, 8)), (0, 0, 0));
    two.wait(1);
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(one.send(2, 0, 8), 0);
    one.wait(2);
    two.never(2);
    broken(&fabric, &["idle"]);
    end([one, two]);
}

#[test]
fn a_full_completion_queue_loses() {
    let fabric = Fabric::rxe(2);
    let [one, two] = linux(&fabric, UC);
    // SAFETY: live handles.
    unsafe {
        let cq = (one.verbs.ibv_create_cq)(one.context, 2, null_mut(), null_mut(), 0);
        let qp = (one.verbs.ibv_create_qp)(one.pd, &mut init_attr(cq, UC, 8));
        let other = End { qp, cq, ..End::new(one.verbs, "rxe0", UC, 1) };
        other.connect(two.address());
        for round in 0..3 {
            let mut sge = one.sge(0, 8);
            assert_eq!(other.post(&mut send_wr(round, &mut sge)), 0);
        }
    }
    broken(&fabric, &["cq-overrun"]);
}

#[test]
fn a_full_queue_refuses_on_linux() {
    let fabric = Fabric::rxe(2);
    let [one, two] = linux(&fabric, RC);
    for round in 0..64 {
        assert_eq!(one.send(round, 0, 8), 0);
    }
    assert_eq!(one.send(64, 0, 8), 12);
    broken(&fabric, &["queue-full"]);
    end([one, two]);
}

#[test]
fn uc_loses_what_nobody_awaits_and_rc_waits() {
    let fabric = Fabric::rxe(2);
    let [mut one, mut two] = linux(&fabric, UC);
    assert_eq!(one.send(1, 0, 8), 0);
    assert_eq!(one.wait(1).status, 0);
    assert_eq!(two.recv(1, 0, 8), 0);
    two.never(1);
    one.bytes(0, 8).fill(9);
    assert_eq!(one.send(2, 0, 8), 0);
    assert_eq!((two.wait(1).byte_len, two.bytes(0, 1)[0]), (8, 9));
    end([one, two]);
    let [mut one, mut two] = linux(&fabric, RC);
    assert_eq!(one.send(1, 0, 8), 0);
    one.never(1);
    assert_eq!(two.recv(1, 0, 100), 0);
    assert_eq!((two.wait(1).byte_len, one.wait(1).status), (8, 0));
    broken(&fabric, &[]);
    end([one, two]);
}

#[test]
fn rc_tells_that_its_peer_is_gone() {
    let fabric = Fabric::rxe(2).with("retry_ms", 50);
    let [mut one, two] = linux(&fabric, RC);
    two.end();
    assert_eq!((one.send(1, 0, 8), one.send(2, 0, 8)), (0, 0));
    assert_eq!((one.wait(1).status, one.wait(2).status), (status::RETRY_EXC_ERR, status::WR_FLUSH_ERR));
    assert_eq!(one.send(3, 0, 8), 0);
    assert_eq!(one.wait(3).status, status::WR_FLUSH_ERR);
    broken(&fabric, &[]);
    one.end();
}

#[test]
fn a_short_receive_is_an_error() {
    let fabric = Fabric::rxe(2);
    for (kind, sender) in [(UC, status::SUCCESS), (RC, status::REM_INV_REQ_ERR)] {
        let [mut one, mut two] = linux(&fabric, kind);
        assert_eq!((two.recv(1, 0, 7), one.send(1, 0, 8)), (0, 0));
        assert_eq!((two.wait(1).status, one.wait(1).status), (status::LOC_LEN_ERR, sender));
        broken(&fabric, &["recv-too-short"]);
        end([one, two]);
    }
}

#[test]
fn a_wrong_first_number_is_told() {
    let fabric = Fabric::rxe(2);
    let [one, two] = linux(&fabric, UC);
    // SAFETY: live handles.
    let again = unsafe { (one.verbs.ibv_create_qp)(one.pd, &mut init_attr(one.cq, UC, 8)) };
    let third = End { qp: again, ..End::new(one.verbs, "rxe0", UC, 1) };
    assert_eq!(two.modify(QpAttr::default(), mask::STATE), 0);
    assert_eq!(two.init(), 0);
    let mut attr = two.rtr_attr(third.address());
    attr.rq_psn = 8;
    assert_eq!(two.rtr(attr), 0);
    third.connect(two.address());
    let mut sge = one.sge(0, 8);
    assert_eq!((two.recv(1, 0, 8), third.post(&mut send_wr(1, &mut sge))), (0, 0));
    broken(&fabric, &["psn"]);
}

#[test]
fn linux_has_immediate_data_inline_and_several_elements() {
    let fabric = Fabric::rxe(2);
    let [mut one, mut two] = linux(&fabric, RC);
    // SAFETY: live handles.
    let qp = unsafe {
        let mut attr = init_attr(one.cq, RC, 8);
        (attr.cap.max_send_sge, attr.cap.max_inline_data) = (2, 64);
        (one.verbs.ibv_destroy_qp)(one.qp);
        (one.verbs.ibv_create_qp)(one.pd, &mut attr)
    };
    one.qp = qp;
    assert_eq!(two.modify(QpAttr::default(), mask::STATE), 0);
    one.connect(two.address());
    two.connect(one.address());
    one.bytes(0, 4).fill(1);
    one.bytes(100, 4).fill(2);
    let mut parts = [one.sge(0, 4), one.sge(100, 4)];
    let mut wr = send_wr(1, &mut parts[0]);
    (wr.num_sge, wr.opcode, wr.imm_data, wr.send_flags) = (2, SEND_WITH_IMM, 77, SIGNALED | INLINE);
    assert_eq!((two.recv(1, 0, 8), one.post(&mut wr)), (0, 0));
    let got = two.wait(1);
    assert_eq!((got.imm_data, got.wc_flags, got.byte_len), (77, WC_WITH_IMM, 8));
    assert_eq!(two.bytes(0, 8), [1, 1, 1, 1, 2, 2, 2, 2]);
    broken(&fabric, &[]);
    end([one, two]);
}

#[test]
fn every_rule_is_tried() {
    let tests = [include_str!("data.rs"), include_str!("setup.rs")].concat();
    for rule in fake_verbs::rules::ALL {
        assert!(tests.contains(&format!("\"{}\"", rule.name)), "{} is not tried", rule.name);
    }
}
