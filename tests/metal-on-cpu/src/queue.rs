//! Lists of commands one after the other, on a thread of their own or when somebody waits.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tbshard::error::{Error, Result};
use tbshard::gpu::{Buffer, Pending};

use crate::device::{Options, Order};
use crate::kernels::Compiled;
use crate::memory::Guarded;

/// Bytes of the process that a call touches.
#[derive(Debug, Clone)]
pub(crate) struct Touched {
    pub(crate) bytes: Range<usize>,
    pub(crate) writes: bool,
}

/// A call to be run.
pub(crate) struct Recorded {
    pub(crate) kernel: &'static Compiled,
    // kept until it has run
    #[allow(dead_code, reason = "holding them is what it is for")]
    pub(crate) buffers: Vec<Arc<Buffer>>,
    pub(crate) touched: Vec<Touched>,
    pub(crate) params: Vec<u8>,
    pub(crate) groups: [u32; 3],
    pub(crate) threads: [u32; 3],
}

/// Calls between barriers.
type List = Vec<Vec<Recorded>>;

/// What becomes of a list.
#[derive(Default)]
struct Outcome {
    result: Mutex<Option<std::result::Result<(), String>>>,
    ended: Condvar,
}

/// The lists of a device.
#[derive(Debug)]
pub(crate) struct Queue {
    options: Options,
    // where a thread takes them from, if there is one
    thread: Option<Sender<(List, Arc<Outcome>)>>,
    waiting: Mutex<Vec<(List, Arc<Outcome>)>>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kernel.name())
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outcome")
    }
}

impl Queue {
    pub(crate) fn new(options: Options) -> Self {
        let thread = (!options.late).then(|| {
            let (sender, receiver): (_, Receiver<(List, Arc<Outcome>)>) = channel();
            // it ends when the queue and all lists are gone
            std::thread::spawn(move || {
                receiver.into_iter().for_each(|(list, outcome)| finish(options, list, &outcome))
            });
            sender
        });
        Self { options, thread, waiting: Mutex::default() }
    }

    pub(crate) fn push(self: &Arc<Self>, list: List) -> OnItsWay {
        let outcome = Arc::new(Outcome::default());
        match &self.thread {
            Some(thread) => {
                if let Err(lost) = thread.send((list, outcome.clone())) {
                    drop(lost);
                    say(&outcome, Err("the emulator's thread is gone".to_owned()));
                }
            }
            None => self.waiting().push((list, outcome.clone())),
        }
        OnItsWay { queue: self.clone(), outcome }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<(List, Arc<Outcome>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what waits for somebody to wait.
    fn catch_up(&self) {
        let lists = std::mem::take(&mut *self.waiting());
        lists.into_iter().for_each(|(list, outcome)| finish(self.options, list, &outcome));
    }
}

fn say(outcome: &Outcome, result: std::result::Result<(), String>) {
    *outcome.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    outcome.ended.notify_all();
}

fn finish(options: Options, list: List, outcome: &Outcome) {
    let result = list.into_iter().enumerate().try_for_each(|(at, calls)| run_unordered(options, at, calls));
    say(outcome, result.map_err(|error| error.to_string()));
}

/// Runs calls between which there is no barrier.
fn run_unordered(options: Options, at: usize, mut calls: Vec<Recorded>) -> Result<()> {
    match options.order {
        Order::Forward => {}
        Order::Reverse => calls.reverse(),
        Order::Shuffled(seed) => {
            let mut state = u64::from(seed) ^ (at as u64) << 32 | 1;
            for i in (1..calls.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                calls.swap(i, (state >> 33) as usize % (i + 1));
            }
        }
    }
    calls.iter().try_for_each(|call| {
        let done = if options.isolated { call.run_isolated(options.order) } else { call.run(options.order) };
        done.map_err(|error| error.context(format_args!("kernel `{}`", call.kernel.name())))
    })
}

impl Recorded {
    /// Params at an address that any structure may have.
    fn params(&self) -> Vec<u64> {
        let mut words = vec![0u64; self.params.len().div_ceil(8)];
        for (at, byte) in self.params.iter().enumerate() {
            words[at / 8] |= u64::from(*byte) << (8 * (at % 8));
        }
        words
    }

    fn run(&self, order: Order) -> Result<()> {
        let params = self.params();
        let addresses = self.touched.iter().map(|touched| touched.bytes.start as *mut c_void);
        let mut buffers: Vec<*mut c_void> = addresses.chain([params.as_ptr().cast_mut().cast()]).collect();
        // SAFETY: the list has checked that the arguments lie in their buffers, which `self` keeps
        unsafe { self.kernel.run(&mut buffers, self.groups, self.threads, order.number()) }
    }

    /// Runs it on copies of its arguments.
    fn run_isolated(&self, order: Order) -> Result<()> {
        let params = self.params();
        let mut copies = Vec::with_capacity(self.touched.len());
        for Touched { bytes, .. } in &self.touched {
            let copy = Guarded::ending(bytes.len(), 4)?;
            // SAFETY: both have so many bytes; the device's earlier calls are done
            unsafe { copy.start().as_ptr().copy_from_nonoverlapping(bytes.start as *const u8, bytes.len()) };
            copies.push(copy);
        }
        let addresses = copies.iter().map(|copy| copy.start().as_ptr().cast::<c_void>());
        let mut buffers: Vec<*mut c_void> = addresses.chain([params.as_ptr().cast_mut().cast()]).collect();
        // SAFETY: every argument is as large as the call says, and ends at a page that faults
        unsafe { self.kernel.run(&mut buffers, self.groups, self.threads, order.number())? };
        for (at, (Touched { bytes, writes }, copy)) in self.touched.iter().zip(&copies).enumerate() {
            // SAFETY: as above
            let (original, copy) = unsafe {
                let original = std::slice::from_raw_parts_mut(bytes.start as *mut u8, bytes.len());
                (original, std::slice::from_raw_parts(copy.start().as_ptr(), bytes.len()))
            };
            if *writes {
                original.copy_from_slice(copy);
            } else if original != copy {
                return Err(Error::msg(format!("it wrote to buffer {at}, which it may only read")));
            }
        }
        Ok(())
    }
}

/// A list that was committed.
pub(crate) struct OnItsWay {
    queue: Arc<Queue>,
    outcome: Arc<Outcome>,
}

impl Pending for OnItsWay {
    fn done(&self) -> bool {
        self.outcome.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn wait(&self) -> Result<()> {
        if self.queue.thread.is_none() {
            self.queue.catch_up();
        }
        let mut result = self.outcome.result.lock().unwrap_or_else(PoisonError::into_inner);
        while result.is_none() {
            result = self.outcome.ended.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
        match &*result {
            Some(Err(error)) => Err(Error::msg(error)),
            _ => Ok(()),
        }
    }
}
