//! What works when nothing is done wrong: threads and processes, both personalities.

use std::sync::mpsc;
use std::time::Instant;

use fake_verbs::Fabric;
use fake_verbs::abi::{RC, UC};

use crate::support::{End, Other, Verbs, meet_other};

/// Both ends of a link between two machines, in one thread.
pub(crate) fn link(fabric: &Fabric, kind: u32, hosts: [&str; 2]) -> [End; 2] {
    let verbs = Verbs::open(&fabric.library());
    let ends = [0, 1].map(|at| {
        fabric.act_as(Some(hosts[at]));
        End::new(verbs, &fabric.device(hosts[at], hosts[1 - at]), kind, 64)
    });
    ends[0].connect(ends[1].address());
    ends[1].connect(ends[0].address());
    ends
}

const LENGTHS: [usize; 6] = [0, 1, 8, 4096, 20480, 262_144];

fn exchange(end: &mut End, mine: u8, other: u8) {
    for (round, len) in LENGTHS.into_iter().enumerate() {
        let id = round as u64 * 2;
        end.recv(id, 1 << 19, len);
        end.bytes(0, len).fill(mine + round as u8);
        assert_eq!(end.send(id + 1, 0, len), 0);
        let got = end.wait(id);
        assert_eq!((got.status, got.opcode, got.byte_len), (0, 128, len as u32));
        assert!(end.bytes(1 << 19, len).iter().all(|byte| *byte == other + round as u8));
        assert_eq!(end.wait(id + 1).status, 0);
    }
}

/// Half of the median round trip in µs, which a busy machine spoils less than the mean.
fn ping_pong(end: &mut End, first: bool, reps: usize) -> f64 {
    let mut times = Vec::with_capacity(reps);
    end.recv(0, 0, 64);
    for round in 0..reps {
        let start = Instant::now();
        if first {
            end.send(1, 4096, 64);
            end.wait(1);
        }
        end.wait(0);
        times.push(start.elapsed());
        if round + 1 < reps || !first {
            end.recv(0, 0, 64);
        }
        if !first {
            end.send(1, 4096, 64);
            end.wait(1);
        }
    }
    times.sort_unstable();
    times[reps / 2].as_secs_f64() * 1e6 / 2.0
}

fn threads(fabric: &Fabric, kind: u32, hosts: [&str; 2]) {
    let [mut one, mut two] = link(fabric, kind, hosts);
    // a UC message that meets no receive is lost on Linux: both begin together
    let (told, hears) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        two.recv(99, 0, 1);
        told.send(()).unwrap();
        two.wait(99);
        if two.kind == RC {
            exchange(&mut two, 40, 70);
        }
        let time = ping_pong(&mut two, false, 2000);
        two.end();
        time
    });
    hears.recv().unwrap();
    assert_eq!(one.send(99, 0, 1), 0);
    one.wait(99);
    if one.kind == RC {
        exchange(&mut one, 70, 40);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    println!("one way between threads: {:.2} µs", ping_pong(&mut one, true, 2000));
    thread.join().unwrap();
    one.end();
    assert_eq!(fabric.broken(), [""; 0]);
    assert_eq!(fabric.objects().len(), 0);
}

#[test]
fn threads_of_macs() {
    threads(&Fabric::apple(2), UC, ["mac0", "mac1"]);
}

#[test]
fn threads_of_linux() {
    threads(&Fabric::rxe(2), UC, ["linux0", "linux1"]);
    threads(&Fabric::rxe(2), RC, ["linux0", "linux1"]);
}

#[test]
fn a_mac_exchanges_messages_of_all_lengths() {
    let fabric = Fabric::apple(3);
    let [mut one, mut two] = link(&fabric, UC, ["mac0", "mac2"]);
    let thread = std::thread::spawn(move || {
        exchange(&mut two, 40, 70);
        two.end();
    });
    exchange(&mut one, 70, 40);
    one.end();
    thread.join().unwrap();
    assert_eq!(fabric.broken(), [""; 0]);
}

/// The other process of [`processes`]: the same program, by the environment that programs have.
#[test]
#[ignore = "the other process"]
fn other() {
    let kind = if std::env::var("KIND").unwrap() == "rc" { RC } else { UC };
    let name = if kind == RC { "rxe0" } else { "rdma_en2" };
    let verbs = Verbs::open(std::path::Path::new("libibverbs.so.1"));
    let mut end = meet_other(End::new(verbs, name, kind, 64));
    exchange(&mut end, 40, 70);
    ping_pong(&mut end, false, 2000);
    end.end();
}

fn processes(fabric: &Fabric, kind: u32, hosts: [&str; 2]) {
    let verbs = Verbs::open(&fabric.library());
    fabric.act_as(Some(hosts[0]));
    let end = End::new(verbs, &fabric.device(hosts[0], hosts[1]), kind, 64);
    let word = if kind == RC { "rc" } else { "uc" };
    let (mut other, mut lines) = Other::start(fabric, hosts[1], "happy::other", &[("KIND", word)]);
    let mut end = other.meet(&mut lines, end);
    exchange(&mut end, 70, 40);
    println!("one way between processes: {:.2} µs", ping_pong(&mut end, true, 2000));
    end.end();
    assert!(other.child.wait().unwrap().success());
    assert_eq!(fabric.broken(), [""; 0]);
    assert_eq!(fabric.objects().len(), 0);
}

#[test]
fn processes_of_macs() {
    processes(&Fabric::apple(2), UC, ["mac0", "mac1"]);
}

#[test]
fn processes_of_linux() {
    processes(&Fabric::rxe(2), RC, ["linux0", "linux1"]);
}

/// Bytes that only this message of this side has.
fn pattern(id: u64, len: usize, salt: u64) -> impl Iterator<Item = u8> {
    let seed = (id * 31 + salt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len as u64).map(move |at| (seed.wrapping_add(at).wrapping_mul(0x5851_f42d_4c95_7f2d) >> 56) as u8)
}

fn length(id: u64, salt: u64) -> usize {
    let random = (id * 17 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (random >> 40) as usize % if random & 8 == 0 { 64 } else { SLOT + 1 }
}

const SLOT: usize = 16384;
const WINDOW: u64 = 24;

/// Both ways at once, many under way, each checked.
fn stream(end: &mut End, count: u64, mine: u64, other: u64) {
    let half = 1 << 19;
    let ready = 1 << 40;
    let slot = |id: u64| (id % WINDOW) as usize * SLOT;
    // of as many frames as what will come
    let post = |end: &End, id| assert_eq!(end.recv(ready + id, half + slot(id), length(id, other)), 0);
    (0..WINDOW).for_each(|id| post(end, id));
    let (mut sent, mut done, mut got) = (0, 0, 0);
    while done < count || got < count {
        while sent < count && sent - done < WINDOW {
            let len = length(sent, mine);
            end.bytes(slot(sent), len).iter_mut().zip(pattern(sent, len, mine)).for_each(|(to, byte)| *to = byte);
            assert_eq!(end.send(sent, slot(sent), len), 0);
            sent += 1;
        }
        if end.poll() == 0 {
            std::thread::yield_now();
        }
        while let Some(wc) = end.done.pop_front() {
            assert_eq!(wc.status, 0);
            if wc.wr_id < ready {
                assert_eq!(wc.wr_id, done);
                done += 1;
                continue;
            }
            let len = length(got, other);
            assert_eq!((wc.wr_id, wc.byte_len as usize), (ready + got, len));
            assert!(end.bytes(half + slot(got), len).iter().copied().eq(pattern(got, len, other)), "{got}");
            if got + WINDOW < count {
                post(end, got + WINDOW);
            }
            got += 1;
        }
    }
}

#[test]
fn many_messages_both_ways() {
    for (fabric, kind, hosts) in [(Fabric::apple(2), UC, ["mac0", "mac1"]), (Fabric::rxe(2), RC, ["linux0", "linux1"])]
    {
        let [mut one, mut two] = link(&fabric, kind, hosts);
        let thread = std::thread::spawn(move || {
            stream(&mut two, 5000, 2, 1);
            two.end();
        });
        stream(&mut one, 5000, 1, 2);
        thread.join().unwrap();
        one.end();
        assert_eq!(fabric.broken(), [""; 0]);
    }
}
