//! Rules of what is made before data flow, and of the order in which it ends.

use std::ffi::{CStr, c_int};
use std::process::Command;
use std::ptr::null_mut;

use fake_verbs::Fabric;
use fake_verbs::abi::*;

use crate::happy::link;
use crate::support::{Address, End, Verbs, aligned, errno, init_attr, open};

/// `mac0` of two, and its objects.
fn mac(fabric: &Fabric) -> End {
    fabric.act_as(Some("mac0"));
    End::new(Verbs::open(&fabric.library()), "rdma_en2", UC, 64)
}

/// The address of a queue pair of `mac1` that is ready.
fn peer(fabric: &Fabric) -> (End, Address) {
    fabric.act_as(Some("mac1"));
    let end = End::new(Verbs::open(&fabric.library()), "rdma_en2", UC, 64);
    assert_eq!(end.init(), 0);
    let address = end.address();
    (end, address)
}

#[track_caller]
fn broken(fabric: &Fabric, rules: &[&str]) {
    assert_eq!(fabric.broken(), rules, "{:?}", fabric.violations());
    fabric.clear_violations();
}

fn create(end: &End, change: impl FnOnce(&mut QpInitAttr)) -> *mut Qp {
    let mut attr = init_attr(end.cq, UC, 64);
    change(&mut attr);
    // SAFETY: live handles.
    unsafe { (end.verbs.ibv_create_qp)(end.pd, &mut attr) }
}

#[test]
fn macs_make_uc_queue_pairs_only() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    assert!(create(&end, |attr| attr.qp_type = RC).is_null());
    assert_eq!(errno(), 102);
    broken(&fabric, &["qp-type"]);
    assert!(create(&end, |attr| attr.srq = end.cq.cast()).is_null());
    broken(&fabric, &["srq"]);
    assert!(create(&end, |attr| attr.cap.max_inline_data = 1).is_null());
    broken(&fabric, &["inline"]);
    assert!(create(&end, |attr| attr.cap.max_recv_sge = 2).is_null());
    broken(&fabric, &["too-many-sges"]);
    assert!(create(&end, |attr| attr.cap.max_send_wr = 4096).is_null());
    broken(&fabric, &["argument"]);
    end.end();
}

#[test]
fn a_mac_has_ten_queue_pairs() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    // SAFETY: integers all over.
    let mut attr: DeviceAttr = unsafe { std::mem::zeroed() };
    // SAFETY: a live handle.
    unsafe { (end.verbs.ibv_query_device)(end.context, &mut attr) };
    assert_eq!((attr.max_qp, attr.max_pd, attr.max_mr, attr.max_sge, attr.max_srq), (11, 11, 100, 1, 0));
    let more: Vec<*mut Qp> = (0..9).map(|_| create(&end, |_| {})).collect();
    assert!(more.iter().all(|qp| !qp.is_null()));
    broken(&fabric, &[]);
    assert!(create(&end, |_| {}).is_null());
    assert_eq!(errno(), 16);
    broken(&fabric, &["too-many-qps"]);
    for qp in more {
        // SAFETY: a live handle.
        assert_eq!(unsafe { (end.verbs.ibv_destroy_qp)(qp) }, 0);
    }
    end.end();
    assert_eq!(fabric.objects().len(), 0);
}

#[test]
fn domains_and_regions_are_few() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    let verbs = end.verbs;
    // SAFETY: live handles.
    unsafe {
        let domains: Vec<*mut Pd> = (0..10).map(|_| (verbs.ibv_alloc_pd)(end.context)).collect();
        assert!(domains.iter().all(|pd| !pd.is_null()));
        assert!((verbs.ibv_alloc_pd)(end.context).is_null());
        broken(&fabric, &["too-many-pds"]);
        domains.iter().for_each(|pd| assert_eq!((verbs.ibv_dealloc_pd)(*pd), 0));
        let register = || (verbs.ibv_reg_mr)(end.pd, end.buffer.cast(), 4096, 7);
        let regions: Vec<*mut Mr> = (0..99).map(|_| register()).collect();
        assert!(regions.iter().all(|mr| !mr.is_null()));
        assert!(register().is_null());
        broken(&fabric, &["too-many-mrs"]);
        regions.iter().for_each(|mr| assert_eq!((verbs.ibv_dereg_mr)(*mr), 0));
    }
    end.end();
}

#[test]
fn memory_is_aligned_mapped_and_writable() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    let register = |at: *mut u8, len: usize, access: c_int| {
        // SAFETY: a live handle; memory that is not there is not touched.
        let mr = unsafe { (end.verbs.ibv_reg_mr)(end.pd, at.cast(), len, access) };
        if !mr.is_null() {
            // SAFETY: a live handle.
            assert_eq!(unsafe { (end.verbs.ibv_dereg_mr)(mr) }, 0);
        }
        !mr.is_null()
    };
    assert!(!register(end.buffer.wrapping_add(4096), 4096, 7));
    broken(&fabric, &["mr-alignment"]);
    assert!(!register(end.buffer, 4096, 2));
    broken(&fabric, &["access"]);
    assert!(!register(std::ptr::without_provenance_mut(1 << 44), 4096, 7));
    broken(&fabric, &["mr-unmapped"]);
    assert!(register(end.buffer, 4096, 1));
    let len = (4 << 30) + 32768;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, of pages that nobody touches.
    let large = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ, flags, -1, 0) };
    let start = large.cast::<u8>().map_addr(|at| at.next_multiple_of(16384));
    assert!(register(start, len - 16384, 7));
    // SAFETY: the mapping just made.
    unsafe { libc::munmap(large, len) };
    broken(&fabric, &["mr-too-large"]);
    end.end();
    let fabric = Fabric::apple(2).with("local_write_only_rejected", true);
    let end = mac(&fabric);
    // SAFETY: a live handle.
    assert!(unsafe { (end.verbs.ibv_reg_mr)(end.pd, end.buffer.cast(), 4096, 1) }.is_null());
    broken(&fabric, &["access"]);
    end.end();
}

#[test]
fn a_mac_connects_by_its_ipv4_gid() {
    let fabric = Fabric::apple(2).with_device("mac0.rdma_en2", "gid_index", 3);
    let (other, address) = peer(&fabric);
    let end = mac(&fabric);
    assert_eq!((end.gid_index, end.init()), (3, 0));
    let mut attr = end.rtr_attr(address);
    attr.ah_attr.grh.sgid_index = 1;
    assert_eq!(end.rtr(attr), 22);
    broken(&fabric, &["gid-index"]);
    attr.ah_attr.grh.sgid_index = 3;
    attr.ah_attr.is_global = 0;
    assert_eq!(end.rtr(attr), 22);
    broken(&fabric, &["no-grh"]);
    attr.ah_attr.is_global = 1;
    fabric.set_port("mac0.rdma_en2", false);
    assert_eq!(end.rtr(attr), 60);
    // SAFETY: integers all over.
    let mut port: PortAttr = unsafe { std::mem::zeroed() };
    // SAFETY: a live handle.
    unsafe { (end.verbs.ibv_query_port)(end.context, 1, &mut port) };
    assert_eq!((port.state, port.link_layer), (1, 100));
    fabric.set_port("mac0.rdma_en2", true);
    // an address at no end of the cable
    attr.ah_attr.grh.dgid.0[15] = 77;
    assert_eq!(end.rtr(attr), 60);
    assert_eq!(end.rtr(end.rtr_attr(address)), 0);
    broken(&fabric, &[]);
    end.end();
    other.end();
    let fabric = Fabric::apple(2).with_device("mac0.rdma_en2", "ipv4", serde_json::Value::Null);
    let (other, address) = peer(&fabric);
    let end = mac(&fabric);
    assert_eq!((end.init(), end.rtr(end.rtr_attr(address))), (0, 22));
    broken(&fabric, &["no-ipv4"]);
    end.end();
    other.end();
}

#[test]
fn a_cable_may_be_at_another_port() {
    let fabric = Fabric::apple(2).with_device("mac0.rdma_en2", "port_num", 2);
    fabric.act_as(Some("mac0"));
    let verbs = Verbs::open(&fabric.library());
    let context = open(verbs, "rdma_en2");
    let state = |port| {
        // SAFETY: integers all over.
        let mut attr: PortAttr = unsafe { std::mem::zeroed() };
        // SAFETY: a live handle.
        (unsafe { (verbs.ibv_query_port)(context, port, &mut attr) }, attr.state)
    };
    assert_eq!([state(1), state(2)], [(0, 1), (0, 4)]);
    broken(&fabric, &[]);
    assert_eq!(state(3).0, 22);
    broken(&fabric, &["argument"]);
    // SAFETY: a live handle, for the last time.
    assert_eq!(unsafe { (verbs.ibv_close_device)(context) }, 0);
}

#[test]
fn objects_of_two_devices_do_not_mix() {
    let fabric = Fabric::apple(3);
    fabric.act_as(Some("mac0"));
    let verbs = Verbs::open(&fabric.library());
    let [one, two] = ["rdma_en2", "rdma_en3"].map(|name| End::new(verbs, name, UC, 64));
    assert!(create(&one, |attr| attr.recv_cq = two.cq).is_null());
    broken(&fabric, &["argument"]);
    one.end();
    two.end();
}

#[test]
fn states_follow_in_order_with_their_attributes() {
    for fabric in [Fabric::apple(2), Fabric::rxe(2)] {
        let hosts = if fabric.index_of("mac0.rdma_en2").is_some() { ["mac0", "mac1"] } else { ["linux0", "linux1"] };
        fabric.act_as(Some(hosts[0]));
        let verbs = Verbs::open(&fabric.library());
        let end = End::new(verbs, &fabric.device(hosts[0], hosts[1]), UC, 8);
        assert_eq!(end.rts(), 22);
        broken(&fabric, &["modify"]);
        let attr = QpAttr { qp_state: state::INIT, port_num: 1, qp_access_flags: 7, ..QpAttr::default() };
        assert_eq!(end.modify(attr, mask::STATE | mask::PORT), 22);
        broken(&fabric, &["modify"]);
        assert_eq!(end.init(), 0);
        let attr = end.rtr_attr(end.address());
        let bits = mask::STATE | mask::AV | mask::PATH_MTU | mask::DEST_QPN | mask::RQ_PSN;
        assert_eq!(end.modify(attr, bits | mask::MIN_RNR_TIMER), 22);
        broken(&fabric, &["modify"]);
        end.end();
    }
}

#[test]
fn a_queue_pair_of_a_mac_needs_local_write() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    let attr = QpAttr { qp_state: state::INIT, port_num: 1, qp_access_flags: 6, ..QpAttr::default() };
    assert_eq!(end.modify(attr, mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS), 22);
    broken(&fabric, &["access"]);
    end.end();
}

#[test]
fn objects_end_in_order() {
    let fabric = Fabric::apple(2);
    let end = mac(&fabric);
    let verbs = end.verbs;
    // SAFETY: live handles.
    unsafe {
        assert_eq!((verbs.ibv_dealloc_pd)(end.pd), 16);
        broken(&fabric, &["order"]);
        assert_eq!((verbs.ibv_destroy_cq)(end.cq), 16);
        broken(&fabric, &["order"]);
        assert_eq!((verbs.ibv_close_device)(end.context), 16);
        broken(&fabric, &["order"]);
        // MLX's order: regions first, while the queue pair is connected
        assert_eq!((verbs.ibv_dereg_mr)(end.mr), 0);
        assert_eq!((verbs.ibv_dereg_mr)(end.mr), 22);
        broken(&fabric, &["use-after-destroy"]);
        assert_eq!((verbs.ibv_destroy_qp)(end.qp), 0);
        assert_eq!((verbs.ibv_destroy_cq)(end.cq), 0);
        assert_eq!((verbs.ibv_dealloc_pd)(end.pd), 0);
        assert_eq!((verbs.ibv_close_device)(end.context), 0);
        libc::free(end.buffer.cast());
    }
    broken(&fabric, &[]);
    assert_eq!(fabric.objects().len(), 0);
}

#[test]
fn an_error_state_spoils_a_macs_regions() {
    let fabric = Fabric::apple(2);
    let [one, two] = link(&fabric, UC, ["mac0", "mac1"]);
    assert_eq!(one.modify(QpAttr { qp_state: state::ERR, ..QpAttr::default() }, mask::STATE), 0);
    broken(&fabric, &["qp-to-err"]);
    // SAFETY: live handles.
    unsafe {
        assert_eq!((one.verbs.ibv_destroy_qp)(one.qp), 0);
        assert_eq!((one.verbs.ibv_dereg_mr)(one.mr), 22);
    }
    two.end();
}

/// A process that makes objects, and ends without destroying them or is killed.
#[test]
#[ignore = "the other process"]
fn leaker() {
    let end = End::new(Verbs::open(std::path::Path::new("libibverbs.so.1")), "rdma_en2", UC, 64);
    assert!(!end.qp.is_null());
    if std::env::args().any(|word| word == "killed") {
        // SAFETY: the end of this process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
}

fn leak(fabric: &Fabric, how: &str) {
    let exe = std::env::current_exe().unwrap();
    let words = ["setup::leaker", "--exact", "--ignored", "--skip", how];
    Command::new(exe).args(words).envs(fabric.env("mac0")).output().unwrap();
}

#[test]
fn what_a_process_leaves_is_told() {
    let fabric = Fabric::apple(2);
    leak(&fabric, "exits");
    broken(&fabric, &["leak-at-exit"]);
    assert_eq!(fabric.objects().len(), 0);
    // a kernel frees what a killed process had
    leak(&fabric, "killed");
    assert_eq!((fabric.objects().len(), fabric.objects()[0].alive), (5, false));
    mac(&fabric).end();
    assert_eq!(fabric.objects().len(), 0);
    // a Mac may not
    let fabric = Fabric::apple(2).with("leak", true);
    (0..10).for_each(|_| leak(&fabric, "killed"));
    assert_eq!(fabric.count("qp"), 10);
    fabric.act_as(Some("mac0"));
    let verbs = Verbs::open(&fabric.library());
    let context = open(verbs, "rdma_en2");
    // SAFETY: live handles.
    unsafe {
        let pd = (verbs.ibv_alloc_pd)(context);
        let cq = (verbs.ibv_create_cq)(context, 64, null_mut(), null_mut(), 0);
        assert!((verbs.ibv_create_qp)(pd, &mut init_attr(cq, UC, 64)).is_null());
        assert_eq!(errno(), 16);
        fabric.reboot();
        let qp = (verbs.ibv_create_qp)(pd, &mut init_attr(cq, UC, 64));
        assert!(!qp.is_null());
        assert_eq!((verbs.ibv_destroy_qp)(qp), 0);
        assert_eq!((verbs.ibv_destroy_cq)(cq), 0);
        assert_eq!((verbs.ibv_dealloc_pd)(pd), 0);
        assert_eq!((verbs.ibv_close_device)(context), 0);
    }
    broken(&fabric, &[]);
}

#[test]
fn a_thousand_starts_leave_nothing() {
    let fabric = Fabric::apple(2);
    for _ in 0..1000 {
        mac(&fabric).end();
    }
    assert_eq!(fabric.objects().len(), 0);
    assert_eq!(std::fs::read_dir(fabric.dir().join("qps")).unwrap().count(), 0);
    broken(&fabric, &[]);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    assert!(maps.lines().filter(|line| line.contains("/qps/")).count() < 100);
}

#[test]
fn a_status_has_a_name() {
    let fabric = Fabric::rxe(1);
    // SAFETY: a string that is never freed.
    let name = unsafe { CStr::from_ptr((Verbs::open(&fabric.library()).ibv_wc_status_str)(12)) };
    assert_eq!(name, c"transport retry counter exceeded");
}

#[test]
fn machines_see_their_own_devices() {
    let fabric = Fabric::apple(3);
    let verbs = Verbs::open(&fabric.library());
    let names = |host: Option<&str>| {
        fabric.act_as(host);
        let mut names = Vec::new();
        // SAFETY: a list is used before it is freed.
        unsafe {
            let mut count = 0;
            let list = (verbs.ibv_get_device_list)(&mut count);
            for at in 0..count as usize {
                let name = CStr::from_ptr((verbs.ibv_get_device_name)(*list.add(at)));
                names.push(name.to_str().unwrap().to_owned());
            }
            (verbs.ibv_free_device_list)(list);
        }
        names
    };
    assert_eq!(names(Some("mac2")), ["rdma_en2", "rdma_en3"]);
    assert_eq!(names(None)[..2], ["rdma_en2.mac0", "rdma_en2.mac1"]);
    assert_eq!(names(Some("nobody")), [""; 0]);
    let memory = aligned(16384);
    // SAFETY: just allocated.
    unsafe { libc::free(memory.cast()) };
}
