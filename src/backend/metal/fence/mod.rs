//! The fence at an all_reduce: partial sums go to the host and the sum comes back while later calls are queued already.
//!
//! ```text
//!  device   list 1: … publish 1, signal 1 ▏list 2: wait 1, take 1, …, publish 2, signal 2 ▏list 3: wait 2, take 2, …
//!  host     commits 1, then 2             ▏sums 1 with the peers, answers 1, commits 3     ▏sums 2 …
//! ```
//!
//! A list ends with a signal, so it has one wait at most, and what a list may cost before macOS ends it (about 5 s) is one
//! bounded wait and its own work. The host is one list ahead: it asks for what comes after exchange k before it serves k − 1.
//!
//! A wait is bounded by a number of looks, because kernels have no clock. When it gives up it stores which exchange it was for
//! and zeroes the counts of threadgroups that the calls after it are dispatched with: they do nothing, and neither does any list
//! behind them, whose wait finds that one has given up. That was chosen over a word that each kernel looks at since it leaves
//! the kernels alone and costs a call nothing that reads or writes. The calls must not run, because caches and recurrent states
//! are changed in place. Once the host has the sum it answers, lets the queue run empty, and asks for the same lists again: a
//! peer that is slow costs that, once an exchange. A peer that is dead is never answered for: the host closes the fence, the
//! wait leaves, and the queue is empty.
//!
//! [`ledger`] has the host's decisions as pure arithmetic, which the tests of `model` take through every interleaving with
//! the kernels and the peers. `kernels/fence.metal` is the other side.

pub(super) mod crossing;
pub(super) mod ledger;
#[cfg(test)]
mod model;
pub(super) mod words;

/// How a device and the host meet at an all_reduce.
///
/// The default is an event: it asks nothing of a device that Apple does not document, lets nothing wait there, and the host's
/// own wait has a deadline, which draining has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fence {
    /// The host waits until the device has done everything, and asks for more afterwards.
    Drain,
    /// The device raises an event, and the host, which has asked for what comes next meanwhile, hands that over when the sum
    /// is there. So the device waits for nothing, ever: a command that waits for an event on the device cannot be taken back,
    /// and is ended with all that follow when a peer takes longer than macOS has patience.
    #[default]
    Event,
    /// A kernel of the device waits in memory that it shares with the host, for `looks` looks at most.
    Spin {
        /// How often a wait looks again before it gives up.
        looks: u32,
    },
}

impl Fence {
    /// Waits with as many looks as no device should need seconds for: each goes to memory and back, which takes some tenths
    /// of a microsecond to some microseconds.
    pub const SPIN: Self = Self::Spin { looks: 1 << 16 };
}
