//! `tbshard launch` with any program: whose output is whose, who gets standard input, and how it ends.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::{nothing_is_left, run, wait_until};
use crate::lab::{Host, Lab, binary};

fn launch(lab: &Lab, flags: &[&str], program: &[&str]) -> Command {
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let file = lab.cluster_yaml(&hosts, Some(binary()), "");
    let file = file.to_str().unwrap().to_owned();
    lab.command(&[&["launch", "--hosts", &file][..], flags, &["--"], program].concat())
}

#[test]
fn every_line_says_whose_it_is_and_only_rank_0_reads() {
    let Some(lab) = Lab::new(3) else { return };
    let input = lab.shared().join("input");
    std::fs::write(&input, "a line\n").unwrap();
    let script = "echo rank $TBSHARD_RANK of $TBSHARD_WORLD_SIZE on $(uname -n); echo oops >&2; cat";
    let mut command = launch(&lab, &[], &["sh", "-c", script]);
    command.stdin(Stdio::from(std::fs::File::open(&input).unwrap()));
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: BTreeSet<&str> = ended.out.lines().collect();
    let expected = [
        "[0 alpha  ] rank 0 of 3 on alpha",
        "[0 alpha  ] a line",
        "[1 bravo  ] rank 1 of 3 on bravo",
        "[2 charlie] rank 2 of 3 on charlie",
    ];
    assert_eq!(lines, BTreeSet::from(expected));
    assert_eq!(ended.err.matches("] oops\n").count(), 3, "{ended:?}");
    nothing_is_left(&lab);
}

#[test]
fn lines_stay_whole_when_all_ranks_print_at_once() {
    let Some(lab) = Lab::new(3) else { return };
    let script = "i=0; while [ $i -lt 3000 ]; do echo $TBSHARD_RANK-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-$i; i=$((i+1)); done";
    for flags in [&["--no-prefix"][..], &[]] {
        let ended = run(launch(&lab, flags, &["sh", "-c", script]));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let mut counts = [0; 3];
        for line in ended.out.lines() {
            let line = line.rsplit("] ").next().unwrap();
            let (rank, rest) = line.split_once("-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-").expect(line);
            let rank: usize = rank.parse().unwrap();
            assert_eq!(rest.parse::<usize>().unwrap(), counts[rank], "{line}");
            counts[rank] += 1;
        }
        assert_eq!(counts, [3000; 3]);
    }
}

#[test]
fn the_exit_code_is_that_of_the_rank_that_failed_first() {
    let Some(lab) = Lab::new(3) else { return };
    let script = "if [ $TBSHARD_RANK = 1 ]; then echo I give up >&2; exit 7; fi; sleep 600 & wait";
    let ended = run(launch(&lab, &[], &["sh", "-c", script]));
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let last: Vec<&str> = ended.err.lines().rev().take(2).collect();
    assert_eq!(last[1], "error: rank 1 (bravo) ended: exit code 7", "{ended:?}");
    assert!(last[0].starts_with("hint: "), "{ended:?}");
    assert!(ended.err.contains("[1 bravo  ] I give up"), "{ended:?}");
    assert!(ended.seconds < 15.0, "{ended:?}");
    // the sleep of the others, which has another parent by now, too
    nothing_is_left(&lab);
    let ended = run(launch(&lab, &[], &["/no/such/program"]));
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.err.contains("cannot start `/no/such/program`"), "{ended:?}");
}

#[test]
fn input_that_nobody_reads_does_not_disturb() {
    let Some(lab) = Lab::new(2) else { return };
    let mut command = launch(&lab, &[], &["sh", "-c", "sleep 8; echo done"]);
    let file = lab.shared().join("large");
    std::fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
    command.stdin(Stdio::from(std::fs::File::open(&file).unwrap()));
    let ended = run(command);
    assert_eq!((ended.code, ended.out.matches("] done\n").count()), (Some(0), 2), "{ended:?}");
    // all of it, where it is read
    let mut command = launch(&lab, &["--no-prefix"], &["sh", "-c", "wc -c"]);
    command.stdin(Stdio::from(std::fs::File::open(&file).unwrap()));
    let ended = run(command);
    let counts: BTreeSet<&str> = ended.out.lines().map(str::trim).collect();
    assert_eq!(counts, BTreeSet::from(["0", "5242880"]), "{ended:?}");
}

#[test]
fn tbshard_itself_is_launched_like_any_program() {
    let Some(lab) = Lab::new(2) else { return };
    let program = ["tbshard", "generate", "--prompt", "Tell me a story.", "-n", "10", "-q"];
    let ended = run(launch(&lab, &["--no-prefix"], &program));
    let alone = crate::support::program::command(&program[1..]).output().unwrap();
    assert_eq!(ended.out, String::from_utf8(alone.stdout).unwrap(), "{ended:?}");
    assert_eq!(ended.code, Some(0));
    wait_until("an end", super::CLEAN, || lab.hosts().iter().all(|host| host.processes().is_empty()));
}
