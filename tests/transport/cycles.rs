//! Starting and ending RDMA again and again, while the kernel is asked what it holds.

use std::process::Command;
use std::time::Instant;

use tbshard::transport::rdma::{Cabling, Place, Rdma};
use tbshard::transport::{Buffer, Endpoint, Kind};

use super::fabric::{RUN, connect, join_of, message, next, on_all, soon};

/// Two ranks that have met, as threads, over the only device here.
fn pair(device: &str) -> Vec<Box<dyn Endpoint>> {
    let ends = connect(&join_of(2)).into_iter().map(|connected| connected.unwrap().data.unwrap());
    std::thread::scope(|scope| {
        let start = |(rank, tcp): (usize, _)| {
            let mut devices = vec![vec![Place::of(device)]; 2];
            devices[rank].clear();
            let cabling = Cabling { devices, ..Cabling::default() };
            scope.spawn(move || Rdma::connect(tcp, &cabling, RUN, soon()).unwrap())
        };
        let threads: Vec<_> = ends.enumerate().map(start).collect();
        threads.into_iter().map(|thread| Box::new(thread.join().unwrap()) as _).collect()
    })
}

/// What the kernel holds for processes.
fn held() -> Vec<String> {
    let kinds = ["pd", "qp", "cq", "mr", "ctx"].into_iter();
    let of = |kind| String::from_utf8(Command::new("rdma").args(["resource", "show", kind]).output().unwrap().stdout);
    kinds.flat_map(|kind| of(kind).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
#[ignore = "needs an RDMA device: tests/rdma-lab starts it where there is one"]
fn a_hundred_starts_and_ends_leave_nothing() {
    let names = std::fs::read_dir("/sys/class/infiniband").expect("an RDMA device").map(|entry| entry.unwrap());
    let device = names.map(|entry| entry.file_name().into_string().unwrap()).next().expect("an RDMA device");
    // what a process holds for good it has after its first
    let (mut before, start) = (None, Instant::now());
    for cycle in 0..=100 {
        let ends = pair(&device);
        // asking takes an emulated processor longer than a cycle does
        let asks = cycle % 10 == 0;
        if asks {
            assert!(held().len() > before.as_ref().map_or(0, Vec::len), "nothing is held, or this does not see it");
        }
        on_all(ends, move |mut end| {
            let peer = 1 - end.rank();
            end.post_recv(peer, Buffer::with_capacity(8)).unwrap();
            end.post_send(peer, message(&[cycle as u8; 8])).unwrap();
            let kinds = [next(&mut *end).kind, next(&mut *end).kind];
            assert!(kinds.contains(&Kind::Received), "{kinds:?}");
        });
        if asks {
            let held = held();
            assert_eq!(*before.get_or_insert_with(|| held.clone()), held, "cycle {cycle}");
            println!("cycle {cycle} after {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    println!("held all along: {before:?}");
}
