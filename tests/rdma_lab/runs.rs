//! Runs over RDMA: the conformance suite, and models whose answers and logits are those of one process.

use super::{Lab, Wiring, binary};

/// Runs the conformance suite on all VMs, once for each of `kinds` of queue pairs.
fn suite(lab: &Lab, kinds: &[&str]) {
    let tests = std::env::current_exe().unwrap();
    let file = lab.cluster_yaml("transport: rdma\n");
    let first = &lab.vms()[0];
    for kind in kinds {
        let launch = format!("{} launch --hosts {} --rdma-qp {kind}", binary(), file.display());
        let out = lab.run(first, &format!("{launch} -- {} machines:: --ignored --nocapture", tests.display()));
        for rank in 0..lab.vms().len() {
            assert!(out.contains(&format!("rank {rank} of {}: the suite passed", lab.vms().len())), "{kind}: {out}");
        }
        assert!(out.contains("rxe_"), "{kind}: {out}");
    }
}

#[test]
fn the_suite_passes_between_two() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    suite(&lab, &["rc", "uc"]);
}

#[test]
fn the_suite_passes_in_a_mesh_of_four() {
    let Some(lab) = Lab::new(4, Wiring::Mesh) else { return };
    suite(&lab, &["rc", "uc"]);
}

#[test]
fn the_suite_passes_in_a_ring_of_four() {
    let Some(lab) = Lab::new(4, Wiring::Ring) else { return };
    suite(&lab, &["uc"]);
}

#[test]
fn the_suite_passes_on_one_segment() {
    let Some(lab) = Lab::new(3, Wiring::Hub) else { return };
    suite(&lab, &["rc"]);
}

/// Compares answers and logits of all `layouts` (tensor parallel, stages) with those of one process.
fn answers(lab: &Lab, layouts: &[(usize, usize)], kinds: &[&str]) {
    let first = &lab.vms()[0];
    let generate = format!("{} generate -q -n 24 --prompt Hi", binary());
    let score = format!("{} score --json --prompt-tokens 39,318,78,0,513,72,331,273 --logits", binary());
    let alone = lab.run(first, &generate);
    lab.run(first, &format!("{score} alone.safetensors"));
    for (tp, pp) in layouts {
        let file = lab.cluster_yaml(&format!("transport: rdma\nparallel: {{tp: {tp}, pp: {pp}}}\n"));
        for kind in kinds {
            let over = format!("--hosts {} --rdma-qp {kind}", file.display());
            let compare = "cmp alone.safetensors together.safetensors";
            lab.run(first, &format!("{score} together.safetensors {over} && {compare}"));
            // every command takes ten seconds on four emulated machines
            if (tp, pp) == (&layouts[0].0, &layouts[0].1) {
                assert_eq!(lab.run(first, &format!("{generate} {over}")), alone, "tp {tp}, pp {pp}, {kind}");
            }
        }
    }
    // nothing of it went over the network instead
    let sent = "cat /sys/class/infiniband/rxe_*/ports/1/hw_counters/sent_pkts";
    let packets: Vec<u64> = lab.run(first, sent).lines().map(|line| line.parse().unwrap()).collect();
    assert!(packets.iter().all(|packets| *packets > 100), "{packets:?}");
}

#[test]
fn two_answer_as_one() {
    let Some(lab) = Lab::new(2, Wiring::Mesh) else { return };
    answers(&lab, &[(2, 1), (1, 2)], &["rc", "uc"]);
}

#[test]
fn a_mesh_of_four_answers_as_one() {
    let Some(lab) = Lab::new(4, Wiring::Mesh) else { return };
    answers(&lab, &[(4, 1), (2, 2)], &["uc"]);
}

#[test]
fn a_ring_of_four_answers_as_one() {
    let Some(lab) = Lab::new(4, Wiring::Ring) else { return };
    answers(&lab, &[(4, 1), (2, 2)], &["uc"]);
}
