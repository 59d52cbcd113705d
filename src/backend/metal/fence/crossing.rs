//! Exchanges on a stream: how one is asked for, waited for and answered, and what is asked for again.

use std::slice;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::super::arena::{Region, Writer};
use super::super::list::Gate;
use super::super::memory::{Values, region_of, tensor};
use super::super::stream::{Asked, Load, Meeting, Stream, Work};
use super::super::{Metal, threads_for};
use super::Fence;
use super::ledger::{Flight, Look, word};
use super::words::Words;
use crate::backend::{Backend, Crossing, Exchange, Tensor};
use crate::error::{Error, Result};
use crate::gpu::Device;
use crate::gpu::params::{ShareParams, SignalParams};

/// How long a wait for an event goes on before it is asked whether the device still does anything.
const SLICE: Duration = Duration::from_millis(20);
/// So long a wait for a word only looks; then it lets other threads have the processor, too.
const EAGER: Duration = Duration::from_millis(1);
/// How long it sleeps between looks then.
const NAP: Duration = Duration::from_micros(50);

/// An exchange that was asked for.
#[derive(Debug)]
struct Posted {
    stream: Arc<Stream>,
    number: u64,
    partial: Region,
    sum: Region,
    answered: bool,
    // whose memory these are, as far as nobody else keeps it
    _keeps: [Option<Tensor>; 2],
}

/// [`Backend::post`] where the host is one list ahead.
pub(in crate::backend::metal) fn post(
    metal: &Metal,
    partial: Tensor,
    (rows, cols): (usize, usize),
) -> Result<Exchange> {
    let (stream, len) = (&metal.stream, rows * cols);
    let partial = metal.upload(partial);
    let partial_at = region_of(partial.memory()).ok_or_else(|| Error::msg("a partial sum is on no device"))?.clone();
    let answer = Values::taken(stream, len, Writer::Host)?;
    let answer_at = answer.region().clone();
    let Fence::Spin { looks } = stream.fence else {
        let number = stream.asked().post_event(stream)?;
        let sum = tensor(rows, cols, answer);
        let keeps = [Some(partial), None];
        return posted(stream, number, (partial_at, answer_at), keeps, sum);
    };
    let count = partial_at.bytes.len() / 4;
    let landing = Values::taken(stream, count, Writer::Landing)?;
    let landing_at = landing.region().clone();
    let number = stream.asked().post_words(stream, looks, (&partial_at, &landing_at))?;
    let sum = metal.scratch(len)?;
    let params = ShareParams { count: len as u32 };
    metal.run(("fence_take", ""), &[&answer_at], &[sum.region()], bytemuck::bytes_of(&params), threads_for(len));
    let keeps = [Some(tensor(1, count, landing)), Some(tensor(rows, cols, answer))];
    posted(stream, number, (landing_at, answer_at), keeps, tensor(rows, cols, sum))
}

fn posted(
    stream: &Arc<Stream>,
    number: u64,
    (partial, sum): (Region, Region),
    keeps: [Option<Tensor>; 2],
    result: Tensor,
) -> Result<Exchange> {
    let crossing = Posted { stream: stream.clone(), number, partial, sum, answered: false, _keeps: keeps };
    Ok(Exchange::Posted(result, Box::new(crossing)))
}

impl Crossing for Posted {
    fn arrive(&mut self) -> Result<(&[f32], &mut [f32])> {
        self.stream.arrive(self.number)?;
        let at = |region: &Region| region.buffer.start().as_ptr().wrapping_add(region.bytes.start).cast::<f32>();
        // SAFETY: so many values that the device has written; it writes them again after this exchange only
        let partial = unsafe { slice::from_raw_parts(at(&self.partial), self.partial.bytes.len() / 4) };
        // SAFETY: so many values that nobody reads or writes before this exchange has its answer
        let sum = unsafe { slice::from_raw_parts_mut(at(&self.sum), self.sum.bytes.len() / 4) };
        Ok((partial, sum))
    }

    fn answer(mut self: Box<Self>) -> Result<()> {
        self.answered = true;
        let mut asked = self.stream.asked();
        asked.answer(self.number).inspect_err(|error| asked.fail(error))
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if !self.answered {
            self.stream.asked().close();
        }
    }
}

impl Stream {
    fn arrive(&self, number: u64) -> Result<()> {
        let mut asked = self.asked();
        asked.arrive(self.device(), number).inspect_err(|error| asked.fail(error))?;
        self.arena().passed(number);
        Ok(())
    }
}

impl Asked {
    /// Asks for the signal of a new exchange by an event, at the end of what was asked for before.
    fn post_event(&mut self, stream: &Stream) -> Result<u64> {
        if self.meeting.is_none() {
            self.meeting = Some(Meeting::Event(stream.device().event()?));
        }
        let number = self.number(stream)?;
        self.sent()?;
        Ok(number)
    }

    /// Asks for the signal of a new exchange by a word, when `partial` has gone to where it lands.
    fn post_words(&mut self, stream: &Stream, looks: u32, (partial, landing): (&Region, &Region)) -> Result<u64> {
        let words = match &self.meeting {
            Some(Meeting::Words(words, _)) => words.region(),
            _ => {
                let (words, kernel) = (Words::new(stream.device())?, self.kernel(stream.device(), ("fence_wait", ""))?);
                let region = words.region();
                self.meeting = Some(Meeting::Words(words, Gate { kernel, words: region.clone(), looks }));
                region
            }
        };
        let count = landing.bytes.len() / 4;
        let params = ShareParams { count: count as u32 };
        let (groups, threads) = threads_for(count);
        self.run(
            stream.device(),
            &Work {
                name: ("fence_publish", ""),
                reads: &[partial],
                writes: &[landing],
                params: bytemuck::bytes_of(&params),
                groups,
                threads,
            },
        );
        let number = self.number(stream)?;
        self.run(
            stream.device(),
            &Work {
                name: ("fence_signal", ""),
                reads: &[landing],
                writes: &[&words],
                params: bytemuck::bytes_of(&SignalParams { number: word(number) }),
                groups: [1; 3],
                threads: 1,
            },
        );
        self.sent()?;
        Ok(number)
    }

    /// A new exchange, which the list that is open signals last: that one waits for the exchange before, if for any.
    fn number(&mut self, stream: &Stream) -> Result<u64> {
        self.sound()?;
        self.open(stream.device())?;
        let number = self.ledger.post().ok_or_else(|| Error::msg("two sums over ranks have no answer yet"))?;
        self.signal = Some(number);
        stream.arena().posted(number);
        Ok(number)
    }

    fn sent(&mut self) -> Result<()> {
        self.commit().inspect_err(|error| self.fail(error))?;
        self.sound()
    }

    /// Waits until the partial sums of an exchange are there.
    fn arrive(&mut self, device: &dyn Device, number: u64) -> Result<()> {
        self.sound()?;
        if !self.ledger.is_next(number) {
            return Err(Error::msg("sums over ranks are served in the order in which they were asked for"));
        }
        let (mut since, began) = (Instant::now(), Instant::now());
        while !self.look(device, number)? {
            if since.elapsed() < EAGER {
                thread::yield_now();
                continue;
            }
            since = Instant::now();
            if began.elapsed() > EAGER {
                thread::sleep(NAP);
            }
            self.reap()?;
            let ended = self.ledger.flying().all(|flight| flight.load.pending.done());
            if ended && !self.look(device, number)? && self.ledger.flying().all(|flight| flight.load.pending.done()) {
                return Err(Error::msg("the device has ended without saying that its partial sums are there"));
            }
        }
        let passed: Vec<Flight<Load>> = self.ledger.passed(number).collect();
        self.release(passed);
        Ok(())
    }

    /// Whether the partial sums of an exchange are there. If a wait has given up on the way to them, asks for the rest again.
    fn look(&mut self, device: &dyn Device, number: u64) -> Result<bool> {
        match &self.meeting {
            None => Ok(false),
            Some(Meeting::Event(event)) => Ok(event.wait(number, SLICE)),
            Some(Meeting::Words(words, _)) => {
                // in this order: a wait that gives up for an exchange that is not served yet comes after the signal
                let expired = words.expired();
                match self.ledger.look(number, words.signalled(), expired) {
                    Look::Arrived => Ok(true),
                    Look::Nothing => Ok(false),
                    Look::Again => self.again(device).map(|()| false),
                }
            }
        }
    }

    /// If a wait has given up, asks again for what has done nothing since.
    pub(in crate::backend::metal) fn again(&mut self, device: &dyn Device) -> Result<()> {
        let Some(Meeting::Words(words, gate)) = &self.meeting else { return Ok(()) };
        let (words, gate) = (words.clone(), gate.clone());
        let expired = words.expired();
        if expired == 0 {
            return Ok(());
        }
        self.rest()?;
        let lists = self.ledger.again(expired).ok_or_else(|| Error::msg("a wait gave up that was not asked for"))?;
        words.renew();
        self.resubmissions += 1;
        for Flight { gate: number, signal, load } in lists {
            // every list behind a wait begins with one
            let Some(gated) = load.gated else { continue };
            let mut commands = device.commands()?;
            gated.ask_again(&mut *commands, &gate)?;
            let load = Load { pending: commands.commit()?, gated: Some(gated) };
            self.ledger.fly(Flight { gate: number, signal, load });
        }
        Ok(())
    }

    fn answer(&mut self, number: u64) -> Result<()> {
        self.sound()?;
        if !self.ledger.answer(number) {
            return Err(Error::msg("a sum over ranks was answered before its turn"));
        }
        if let Some(Meeting::Words(words, _)) = &self.meeting {
            words.answer(number);
        }
        while let Some(held) = self.held.pop_front() {
            if held.0.after.is_some_and(|before| !self.ledger.has_answered(before)) {
                self.held.push_front(held);
                return Ok(());
            }
            self.submit(held.0, held.1)?;
        }
        Ok(())
    }

    /// Gives up: no sum will come, so waits leave, and what is behind them does nothing.
    pub(in crate::backend::metal) fn close(&mut self) {
        if let Some(Meeting::Words(words, _)) = &self.meeting {
            words.close();
        }
        self.held.clear();
        self.fail(&Error::msg("a sum over ranks was given up"));
    }
}
