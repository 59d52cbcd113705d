//! Sums over ranks as a device sees them, with this program in the place of the ranks: what comes of them, and how long each
//! takes.

use std::time::{Duration, Instant};

use crate::backend::{Backend, Crossing, Exchange, Fence, Metal, Tensor};
use crate::error::{Error, Result};

/// Values of a partial sum: a hidden state of a large model.
const VALUES: usize = 5120;
/// Exchanges that are timed, after some that are not.
const TIMED: usize = 200;
const WARM: usize = 20;
/// Calls that are too many for one list of commands.
const LISTS: usize = 150;
/// Longer than any wait may be, and far less than macOS lets a list of commands run.
const LONG: Duration = Duration::from_secs(2);

/// What came of a device's sums over ranks.
#[derive(Debug, Clone, Copy)]
pub struct Crossings {
    /// From one exchange to the next, the device's part and the host's, without any rank: the median.
    pub seconds: f64,
    /// Waits that gave up and were asked for again.
    pub resubmissions: u64,
}

/// Exchanges with `metal`, whose sums must be right: many at once, then some that are answered late. A kernel that waits must
/// have given up then, because nothing may wait for long on a device.
///
/// # Errors
/// If the device fails, a sum is wrong, or a wait has no end.
pub fn crossings(metal: &Metal) -> Result<Crossings> {
    let times = exchanges(metal, WARM + TIMED, 0, &mut |_| {})?;
    let mut times = times[WARM..].to_vec();
    times.sort_by(f64::total_cmp);
    let before = metal.resubmissions();
    let late = &mut |exchange| std::thread::sleep(if exchange == 1 { LONG } else { Duration::ZERO });
    exchanges(metal, 4, LISTS, late)?;
    let resubmissions = metal.resubmissions() - before;
    if matches!(metal.fence(), Fence::Spin { .. }) && resubmissions == 0 {
        return Err(Error::msg(format_args!("a wait of the GPU did not end within {} s", LONG.as_secs())));
    }
    Ok(Crossings { seconds: times[times.len() / 2], resubmissions })
}

/// `count` exchanges one after the other, each of what the device made of the one before, with `calls` that change nothing in
/// between; `pause` is called before a sum is made. The seconds from each to the next.
///
/// # Errors
/// If the device fails, or what it has is not what it should be.
pub fn exchanges(metal: &Metal, count: usize, calls: usize, pause: &mut dyn FnMut(usize)) -> Result<Vec<f64>> {
    let start: Vec<f32> = (0..VALUES).map(|i| (i % 251) as f32 / 16.0).collect();
    let mut state = metal.upload(Tensor::from_vec(1, VALUES, start.clone())?);
    let mut ranks = Ranks { wanted: start, times: Vec::with_capacity(count), since: Instant::now(), pause };
    let nothing = metal.upload(Tensor::zeros(1, VALUES));
    let mut promised: Option<Box<dyn Crossing>> = None;
    for _ in 0..count {
        let partial = Tensor::beside(metal, 1, &[&state]);
        let sum = match metal.post(partial, (1, VALUES))? {
            Exchange::Here(partial) => {
                let mut sum = Tensor::zeros(1, VALUES);
                ranks.sum(partial.data(), sum.data_mut())?;
                metal.upload(sum)
            }
            Exchange::Posted(sum, crossing) => {
                promised.replace(crossing).map_or(Ok(()), |before| ranks.serve(before))?;
                sum
            }
        };
        metal.add(&mut state, &sum);
        (0..calls).for_each(|_| metal.add(&mut state, &nothing));
    }
    promised.map_or(Ok(()), |last| ranks.serve(last))?;
    metal.finish()?;
    ranks.compare(state.data())?;
    Ok(ranks.times)
}

/// What stands in the ranks' place.
struct Ranks<'a> {
    // what the device has
    wanted: Vec<f32>,
    times: Vec<f64>,
    since: Instant,
    pause: &'a mut dyn FnMut(usize),
}

impl Ranks<'_> {
    fn serve(&mut self, mut crossing: Box<dyn Crossing>) -> Result<()> {
        let (partial, sum) = crossing.arrive()?;
        self.sum(partial, sum)?;
        crossing.answer()
    }

    /// Some sum of partial sums; the device adds it to what it has.
    fn sum(&mut self, partial: &[f32], sum: &mut [f32]) -> Result<()> {
        let exchange = self.times.len();
        self.times.push(std::mem::replace(&mut self.since, Instant::now()).elapsed().as_secs_f64());
        self.compare(partial)?;
        // ahead of the sum: a device that does not wait would find it if it were there already
        (self.pause)(exchange);
        for ((sum, partial), wanted) in sum.iter_mut().zip(partial).zip(&mut self.wanted) {
            *sum = partial * -0.5 + (exchange % 7) as f32;
            *wanted += *sum;
        }
        Ok(())
    }

    fn compare(&self, got: &[f32]) -> Result<()> {
        match got.iter().zip(&self.wanted).position(|(got, wanted)| got != wanted) {
            None => Ok(()),
            Some(at) => {
                let (count, got, wanted) = (self.times.len(), got[at], self.wanted[at]);
                Err(Error::msg(format_args!("after {count} sums value {at} is {got} where it should be {wanted}")))
            }
        }
    }
}
