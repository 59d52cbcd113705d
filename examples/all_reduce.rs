//! Four ranks as threads of one process: each has a partial vector, all get the sum, rank 0 gets everything.
//!
//!     cargo run --example all_reduce

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use tbshard::comm::Communicator;
use tbshard::error::Result;
use tbshard::transport::loopback;

const RANKS: usize = 4;

fn rank(comm: &Communicator) -> Result<()> {
    let rank = comm.rank();
    let partial: Vec<f32> = (0..4).map(|i| (rank * 10 + i) as f32).collect();
    println!("rank {rank}: partial  {partial:?}");

    let mut reduced = partial.clone();
    comm.all_reduce(&mut reduced)?;
    println!("rank {rank}: reduced  {reduced:?}");

    let gathered = comm.all_gather(&partial, &[4; RANKS])?;
    if rank == 0 {
        println!("rank 0: gathered {gathered:?}");
    }
    comm.barrier()
}

fn main() -> Result<()> {
    std::thread::scope(|scope| {
        let ranks = loopback::mesh(RANKS).into_iter().map(|endpoint| Communicator::new(Box::new(endpoint), None));
        let threads: Vec<_> = ranks.map(|comm| scope.spawn(move || rank(&comm))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
