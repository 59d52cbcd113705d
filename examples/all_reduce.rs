//! Ranks with a partial vector each: all get the sum, rank 0 gets everything.
//!
//!     cargo run --example all_reduce                                            four threads of one process
//!     tbshard launch --hosts cluster.yaml -- target/release/examples/all_reduce  a rank on every host

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use tbshard::cluster::run::Run;
use tbshard::comm::Communicator;
use tbshard::error::Result;
use tbshard::transport::loopback;

fn rank(comm: &Communicator) -> Result<()> {
    let rank = comm.rank();
    let partial: Vec<f32> = (0..4).map(|i| (rank * 10 + i) as f32).collect();
    println!("rank {rank}: partial  {partial:?}");

    let mut reduced = partial.clone();
    comm.all_reduce(&mut reduced)?;
    println!("rank {rank}: reduced  {reduced:?}");

    let gathered = comm.all_gather(&partial, &vec![4; comm.world_size()])?;
    if rank == 0 {
        println!("rank 0: gathered {gathered:?}");
    }
    comm.barrier()
}

fn main() -> Result<()> {
    // what `tbshard launch` has started knows its rank and the others
    if let Some(run) = Run::inherited()? {
        let joined = run.join(|| ())?;
        rank(&joined.world)?;
        return joined.monitor.finish();
    }
    std::thread::scope(|scope| {
        let ranks = loopback::mesh(4).into_iter().map(|endpoint| Communicator::new(Box::new(endpoint), None));
        let threads: Vec<_> = ranks.map(|comm| scope.spawn(move || rank(&comm))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
