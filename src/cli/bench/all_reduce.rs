//! `tbshard bench all-reduce`: how long ranks take to sum a vector, in the columns of nccl-tests.

use std::time::Instant;

use serde::Serialize;

use super::output::{Format, Writer};
use super::statistics::{mean_and_sd, quantile};
use crate::cli::ranks::{FabricArg, RankArgs};
use crate::cli::rdma::RdmaArgs;
use crate::cli::task::Task;
use crate::cli::{Outcome, interrupt, table};
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::partition::MAX_RANKS;

/// Bytes of a count of wrong values.
const COUNT_BYTES: usize = 8;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Every value of every sum is compared with what it must be; one that is not is an error. The columns are those of nccl-tests: \
algbw is size by time, busbw is that times 2(n - 1)/n for n ranks, which compares with the speed of a link; both from the \
median. A barrier comes before every repetition, times are rank 0's, and a tenth as many repetitions come before that are \
not counted.

Keys of a row in json, jsonl and csv (which leaves the samples out): bench, size (bytes), count (values), type, ranks, \
transport, reps, samples_us, time_us (the median), avg_us, p99_us, algbw and busbw (GB/s), wrong.")]
pub(super) struct Args {
    /// Ranks
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Ranks")]
    local: usize,
    /// What carries the vectors [default: shm]
    #[arg(long, value_enum, help_heading = "Ranks")]
    transport: Option<FabricArg>,
    #[command(flatten)]
    rdma: RdmaArgs,
    /// Do not encrypt TCP, to see what encryption costs
    #[arg(long, conflicts_with = "transport", help_heading = "Ranks")]
    plain: bool,
    /// KiB of f32 a vector
    #[arg(long, value_name = "KIB,…", value_delimiter = ',', default_value = "4,20,64", help_heading = "Bench")]
    sizes: Vec<usize>,
    /// Repetitions
    #[arg(long, value_name = "N", default_value_t = 2000, help_heading = "Bench")]
    reps: usize,
    /// How the result is written
    #[arg(long, short, value_enum, default_value_t = Format::Md, help_heading = "Bench")]
    output: Format,
}

/// One size.
#[derive(Debug, Clone, Serialize)]
struct Row {
    bench: &'static str,
    size: usize,
    count: usize,
    #[serde(rename = "type")]
    kind: &'static str,
    ranks: usize,
    transport: &'static str,
    reps: usize,
    samples_us: Vec<f64>,
    time_us: f64,
    avg_us: f64,
    p99_us: f64,
    algbw: f64,
    busbw: f64,
    wrong: u64,
}

/// How the sums of one size went, on rank 0.
pub(in crate::cli) struct Sums {
    /// Of every repetition.
    seconds: Vec<f64>,
    /// Values that were not what they must be, on all ranks.
    wrong: u64,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    if args.reps == 0 || args.sizes.iter().any(|kib| !(1..=65_536).contains(kib)) {
        let error = Error::usage("bench all-reduce needs --reps above 0 and --sizes of 1 to 65536 KiB");
        return Err(error.hint("without them 4, 20 and 64 KiB are reduced 2000 times"));
    }
    if !(2..=MAX_RANKS).contains(&args.local) {
        let error = Error::usage(format!("--local {} is not one of 2..={MAX_RANKS}", args.local));
        return Err(error.hint("one rank alone has nothing to reduce"));
    }
    let (fabric, transport) = match (args.plain, args.transport) {
        (true, _) | (_, Some(FabricArg::Plain)) => (FabricArg::Plain, "tcp in clear"),
        (_, Some(FabricArg::Tcp)) => (FabricArg::Tcp, "tcp"),
        (_, Some(FabricArg::Rdma)) => (FabricArg::Rdma, "rdma"),
        (_, None | Some(FabricArg::Shm)) => (FabricArg::Shm, "shm"),
    };
    let sizes: Vec<usize> = args.sizes.iter().map(|kib| kib * 1024 / size_of::<f32>()).collect();
    interrupt::listen()?;
    let ranks = RankArgs { transport: Some(fabric), rdma: args.rdma.clone(), ..RankArgs::default() };
    let task = Task::AllReduce { sizes: sizes.clone(), reps: args.reps };
    let all = ranks.run(args.local, &task, |world| time_all_reduce(world, &sizes, args.reps))?;
    let mut writer = Writer::new(args.output);
    for (count, sums) in sizes.into_iter().zip(all) {
        writer.push(row(count, sums, args.local, transport))?;
    }
    let rows = writer.finish(markdown)?;
    let wrong: Vec<String> = rows.iter().filter(|row| row.wrong > 0).map(|row| row.size.to_string()).collect();
    if wrong.is_empty() {
        return Ok(Outcome::Done);
    }
    let error = format!("sums over {transport} are wrong in vectors of {} bytes: no time counts", wrong.join(", "));
    Err(Error::msg(error).hint("this is a bug or a broken machine; if it happens again, report it with this command"))
}

fn row(count: usize, sums: Sums, ranks: usize, transport: &'static str) -> Row {
    let samples_us: Vec<f64> = sums.seconds.iter().map(|seconds| seconds * 1e6).collect();
    let mut sorted = samples_us.clone();
    sorted.sort_by(f64::total_cmp);
    let (size, time_us) = (count * size_of::<f32>(), quantile(&sorted, 0.5));
    let algbw = size as f64 / time_us / 1e3;
    Row {
        bench: "all-reduce",
        size,
        count,
        kind: "f32",
        ranks,
        transport,
        reps: samples_us.len(),
        time_us,
        avg_us: mean_and_sd(&samples_us).0,
        p99_us: quantile(&sorted, 0.99),
        algbw,
        // what every link carries at least: nccl-tests, doc/PERFORMANCE.md
        busbw: algbw * 2.0 * (ranks as f64 - 1.0) / ranks as f64,
        wrong: sums.wrong,
        samples_us,
    }
}

fn markdown(rows: &[Row]) -> String {
    let heading =
        ["all_reduce", "size B", "count", "type", "ranks", "median", "p99", "algbw GB/s", "busbw GB/s", "#wrong"];
    let mut lines = vec![heading.map(str::to_owned)];
    for row in rows {
        lines.push([
            row.transport.to_owned(),
            row.size.to_string(),
            row.count.to_string(),
            row.kind.to_owned(),
            row.ranks.to_string(),
            format!("{:.1} µs", row.time_us),
            format!("{:.1} µs", row.p99_us),
            format!("{:.2}", row.algbw),
            format!("{:.2}", row.busbw),
            row.wrong.to_string(),
        ]);
    }
    table::markdown(&lines, &[1, 2, 4, 5, 6, 7, 8, 9])
}

/// Sums vectors of each of `sizes` values `reps` times, after a tenth as many that are not timed; before each, a barrier.
/// All ranks call it; what it returns is rank 0's.
pub(in crate::cli) fn time_all_reduce(world: &Communicator, sizes: &[usize], reps: usize) -> Result<Vec<Sums>> {
    let mut all = Vec::new();
    for size in sizes {
        let own: Vec<f32> = (0..*size).map(|at| term(world.rank(), at)).collect();
        let sum: Vec<f32> = (0..*size).map(|at| (0..world.world_size()).map(|rank| term(rank, at)).sum()).collect();
        let (mut values, mut seconds, mut wrong) = (own.clone(), Vec::new(), 0);
        for rep in 0..reps + reps / 10 {
            world.barrier()?;
            let start = Instant::now();
            world.all_reduce(&mut values)?;
            if rep >= reps / 10 {
                seconds.push(start.elapsed().as_secs_f64());
            }
            wrong += differing(&values, &sum);
            values.copy_from_slice(&own);
        }
        let counts = world.gather_bytes(&wrong.to_le_bytes(), COUNT_BYTES)?;
        let count = |bytes: &Vec<u8>| bytes[..].try_into().map_or(1, u64::from_le_bytes);
        all.push(Sums { seconds, wrong: counts.iter().map(count).sum() });
    }
    Ok(all)
}

/// What a rank adds at a place: whole numbers, so small that their sum over all ranks is exact in any order.
fn term(rank: usize, at: usize) -> f32 {
    ((rank * 31 + at * 7) % 251) as f32
}

fn differing(values: &[f32], expected: &[f32]) -> u64 {
    values.iter().zip(expected).filter(|(value, expected)| value.to_bits() != expected.to_bits()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_nccl_tests() {
        // 1 MiB in 100 µs is 10.49 GB/s; of 4 ranks every link carries 2 · 3/4 of it
        let sums = Sums { seconds: [100e-6; 5].to_vec(), wrong: 0 };
        let row = row(262_144, sums, 4, "shm");
        assert_eq!((row.size, row.count, row.reps, row.wrong), (1 << 20, 262_144, 5, 0));
        assert!((row.algbw - 10.485_76).abs() < 1e-9 && (row.busbw - 15.728_64).abs() < 1e-9, "{row:?}");
        assert!((row.time_us - 100.0).abs() < 1e-9 && (row.p99_us - 100.0).abs() < 1e-9);
    }

    #[test]
    fn sums_are_exact_and_a_wrong_value_is_counted() {
        let most: f32 = (0..MAX_RANKS).map(|_| 250.0).sum();
        assert_eq!(most as usize, 250 * MAX_RANKS);
        let right: Vec<f32> = (0..8).map(|at| term(1, at)).collect();
        let mut values = right.clone();
        assert_eq!(differing(&values, &right), 0);
        (values[3], values[5]) = (f32::NAN, values[5] + 1.0);
        assert_eq!(differing(&values, &right), 2);
    }
}
