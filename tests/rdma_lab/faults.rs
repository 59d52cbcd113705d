//! Cables that lose and reorder, machines that die and freeze, and what is left in the kernel afterwards.

use std::time::{Duration, Instant};

use super::{Ended, Job, Lab, Vm, Wiring, binary};

/// Seconds from a machine's death to rank 0's end, by the clock of rank 0's machine. It knows after a heartbeat of 1.5 s; then it
/// waits until the dead host's agent has been silent for three seconds, and a second for what was sent to leave. The rest is
/// for an emulated processor that shares a busy one.
const ALLOWED: f64 = 8.0;

/// Starts a run over RDMA that goes on for longer than any test, and waits until it has decoded some. Every line of its
/// complaints comes after the time.
fn endless(lab: &Lab, args: &str) -> Job {
    let file = lab.cluster_yaml("transport: rdma\ntimeouts: {connect: 60s, start: 3min}\n");
    let length = "-n 200000 --ctx 210000 --ignore-eos --prompt 'Tell me a story.'";
    let generate = format!("{} generate --hosts {} -q {length} {args}", binary(), file.display());
    let stamp = "while read -r line; do echo \"$(cut -d' ' -f1 /proc/uptime) $line\" >&2; done";
    let job = lab.start(&lab.vms()[0], &format!("{{ {generate} 2>&1 >&3 | {stamp}; exit ${{PIPESTATUS[0]}}; }} 3>&1"));
    let start = Instant::now();
    while job.out().len() < 200 {
        assert!(!job.has_ended() && start.elapsed() < Duration::from_secs(60), "{}{}", job.out(), job.err());
        std::thread::sleep(Duration::from_millis(20));
    }
    job
}

/// Checks that a rank 0 that lost `vm` at `when` said so in time.
fn names_the_lost(ended: &Ended, vm: &Vm, rank: usize, when: f64) {
    let said: f64 = ended.err.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{ended:?}"));
    let (said, took) = (said - when, ended.end - when);
    println!("rank {rank} lost: rank 0 said so {said:.2} s and ended {took:.2} s later: {}", ended.err.trim());
    assert_eq!(ended.code, 3, "{}", ended.err);
    assert!(ended.err.contains(&format!("rank {rank}")) && ended.err.contains(vm.name()), "{}", ended.err);
    assert!(took < ALLOWED, "{took:.2} s");
}

fn nothing_of_ours_runs(lab: &Lab, vm: &Vm) {
    lab.run(vm, "for i in $(seq 100); do pgrep -x tbshard > /dev/null || exit 0; sleep 0.1; done; ps aux; exit 1");
    // queue pair 1 is the kernel's own
    let left = lab.run(vm, "rdma resource show qp | grep pid; rdma resource show mr; rdma resource show pd | grep -v '\\[ib_core\\]' || true");
    assert_eq!(left, "", "{}", vm.name());
}

#[test]
fn a_machine_that_dies_while_decoding_is_named_in_time() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    let [alpha, bravo] = lab.vms() else { panic!("two VMs") };
    let job = endless(&lab, "");
    let when = lab.now(alpha);
    lab.kill(bravo);
    names_the_lost(&job.end(Duration::from_secs(40)), bravo, 1, when);
    nothing_of_ours_runs(&lab, alpha);
}

#[test]
fn a_machine_that_freezes_while_decoding_is_named_in_time() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    let [alpha, bravo] = lab.vms() else { panic!("two VMs") };
    for kind in ["rc", "uc"] {
        let job = endless(&lab, &format!("--rdma-qp {kind}"));
        let when = lab.now(alpha);
        lab.freeze(bravo);
        names_the_lost(&job.end(Duration::from_secs(40)), bravo, 1, when);
        lab.thaw(bravo);
        // who was frozen finds out, too
        lab.vms().iter().for_each(|vm| nothing_of_ours_runs(&lab, vm));
    }
}

#[test]
fn one_of_four_that_dies_is_named_by_all() {
    let Some(lab) = Lab::new(4, Wiring::Mesh) else { return };
    let [alpha, bravo, charlie, delta] = lab.vms() else { panic!("four VMs") };
    let job = endless(&lab, "");
    let when = lab.now(alpha);
    lab.kill(charlie);
    names_the_lost(&job.end(Duration::from_secs(40)), charlie, 2, when);
    [alpha, bravo, delta].iter().for_each(|vm| nothing_of_ours_runs(&lab, vm));
}

/// What a device counts when it repeats something.
const REPEATS: &str = "completer_retry_err";

/// The sum of counters of a VM's devices.
fn counter(lab: &Lab, vm: &Vm, name: &str) -> u64 {
    let line = format!("cat /sys/class/infiniband/rxe_*/ports/1/hw_counters/{name}");
    lab.run(vm, &line).lines().map(|line| line.parse::<u64>().unwrap()).sum()
}

#[test]
fn reliable_pairs_repeat_what_is_lost_and_unreliable_ones_end_the_run() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    let [alpha, bravo] = lab.vms() else { panic!("two VMs") };
    let file = lab.cluster_yaml("transport: rdma\n");
    let generate = |kind: &str, count: usize| {
        let hosts = file.display();
        format!("{} generate -q -n {count} --ignore-eos --prompt Hi --hosts {hosts} --rdma-qp {kind}", binary())
    };
    let clean = lab.run(alpha, &generate("rc", 16));
    let before = counter(&lab, alpha, REPEATS) + counter(&lab, bravo, REPEATS);
    for netem in ["loss 2%", "delay 2ms reorder 75%"] {
        lab.spoil(alpha, "bravo", netem);
        lab.spoil(bravo, "alpha", netem);
        let ended = lab.start(alpha, &generate("rc", 16)).end(Duration::from_secs(100));
        assert_eq!((ended.code, &ended.out), (0, &clean), "{netem}: {}", ended.err);
    }
    let retries = counter(&lab, alpha, REPEATS) + counter(&lab, bravo, REPEATS) - before;
    assert!(retries > 0, "nothing was repeated");

    for netem in ["loss 5%", "delay 2ms reorder 75%"] {
        lab.spoil(alpha, "bravo", netem);
        lab.spoil(bravo, "alpha", netem);
        let ended = lab.start(alpha, &generate("uc", 4000)).end(Duration::from_secs(100));
        println!("{netem}: {}", ended.err);
        assert_ne!(ended.code, 0, "{netem}");
        assert!(ended.err.contains("error: ") && ended.err.contains("rank "), "{netem}: {}", ended.err);
        lab.vms().iter().for_each(|vm| nothing_of_ours_runs(&lab, vm));
    }
}

#[test]
fn a_hundred_starts_leave_nothing() {
    let Some(lab) = Lab::new(1, Wiring::Hub) else { return };
    let [alpha] = lab.vms() else { panic!("one VM") };
    let tests = std::env::current_exe().unwrap();
    let job = lab.start(alpha, &format!("{} transport::cycles:: --ignored --nocapture", tests.display()));
    let ended = job.end(Duration::from_secs(200));
    assert!(ended.code == 0 && ended.out.contains("1 passed"), "{ended:?}");
    nothing_of_ours_runs(&lab, alpha);
}
