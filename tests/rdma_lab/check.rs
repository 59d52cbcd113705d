//! The lab itself: its devices talk, its cables lose what they are told to lose, and its machines die as they are told to.

use std::time::Duration;

use super::{Lab, Vm, Wiring, binary};

/// Sends over every cable, as `kind` of queue pair, and returns the devices that were used.
fn talk(lab: &Lab, kind: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, server) in lab.vms().iter().enumerate() {
        for client in &lab.vms()[at + 1..] {
            let devices = lab.run(server, "ibv_devices");
            let to = |vm: &Vm| match devices.contains("rxe_lan") {
                true => "rxe_lan".to_owned(),
                false => format!("rxe_{}", vm.name()),
            };
            if !devices.contains(&to(client)) {
                continue;
            }
            let pingpong = |to: &str| format!("ibv_{kind}_pingpong -g 1 -n 50 -s 20000 -m 4096 -c -d {to}");
            let serves = lab.start(server, &pingpong(&to(client)));
            lab.run(server, "until ss -ltn | grep -q :18515; do sleep 0.05; done");
            let out = lab.run(client, &format!("{} {}", pingpong(&to(server)), server.name()));
            assert!(out.contains("50 iters in"), "{out}");
            assert_eq!(serves.end(Duration::from_secs(10)).code, 0);
            used.push(format!("{} {}", server.name(), to(client)));
        }
    }
    used
}

#[test]
fn verbs_work_on_every_cable_of_a_mesh_a_ring_and_a_hub() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    assert_eq!(talk(&lab, "rc"), ["alpha rxe_bravo"]);
    assert_eq!(talk(&lab, "uc"), ["alpha rxe_bravo"]);
    drop(lab);
    let ring = talk(&Lab::new(4, Wiring::Ring).unwrap(), "uc");
    assert_eq!(ring, ["alpha rxe_bravo", "alpha rxe_delta", "bravo rxe_charlie", "charlie rxe_delta"]);
    assert_eq!(talk(&Lab::new(3, Wiring::Hub).unwrap(), "uc").len(), 3);
}

#[test]
fn cables_lose_and_machines_freeze_and_die() {
    let Some(lab) = Lab::new(3, Wiring::Mesh) else { return };
    let [alpha, bravo, charlie] = lab.vms() else { panic!("three VMs") };
    let answers = |vm: &Vm, count: usize| {
        let line = format!("busybox ping -i 0.1 -W 1 -c {count} -q {}", vm.name());
        let out = lab.try_run(alpha, &line).out;
        let word = out.lines().find_map(|line| line.split_once(" transmitted, ")).unwrap().1;
        word.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(answers(bravo, 10), 10);
    lab.spoil(alpha, "lan", "loss 50%");
    let answered = answers(bravo, 40);
    assert!((5..=35).contains(&answered), "{answered} of 40 with every second one lost");
    lab.mend(alpha, "lan");
    assert_eq!(answers(bravo, 10), 10);

    lab.freeze(bravo);
    assert_eq!((answers(bravo, 2), answers(charlie, 2)), (0, 2));
    lab.thaw(bravo);
    assert_eq!(answers(bravo, 5), 5);
    let before = lab.now(alpha);
    lab.kill(bravo);
    assert_eq!((answers(bravo, 2), answers(charlie, 2)), (0, 2));
    let passed = lab.now(alpha) - before;
    assert!((1.0..20.0).contains(&passed), "{passed} s by its own clock");
}

#[test]
fn ranks_start_by_ssh_and_answer_as_one_process_does() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    let first = &lab.vms()[0];
    let generate = format!("{} generate -q -n 12 --prompt Hi", binary());
    let alone = lab.run(first, &generate);
    for (tp, pp) in [(2, 1), (1, 2)] {
        let file = lab.cluster_yaml(&format!("transport: tcp\nparallel: {{tp: {tp}, pp: {pp}}}\n"));
        let together = lab.run(first, &format!("{generate} --hosts {}", file.display()));
        assert_eq!(together, alone, "tp {tp}, pp {pp}");
    }
}
