//! Collectives between ranks: what comes out is bit for bit what one rank would compute.
//!
//! # The tree
//!
//! A dot product is cut into leaves whose boundaries depend on the model alone, and the leaves are summed in a fixed binary
//! tree ([`crate::partition::Fold`]). A rank owns a run of leaves; it sends the sums of the maximal subtrees inside its run, and every rank
//! finishes the same tree in the same order. With eight leaves:
//!
//! ```text
//!                 ((0+1)+(2+3)) + ((4+5)+(6+7))
//!
//! N = 2   rank 0  [0 1 2 3]        rank 1  [4 5 6 7]            one vector each
//! N = 3   rank 0  [0 1 2]          rank 1  [3 4]    rank 2 [5 6 7]
//!                 (0+1), 2                 3, 4            5, (6+7)   two vectors each
//! N = 4   rank 0  [0 1]   rank 1  [2 3]   rank 2  [4 5]   rank 3  [6 7]   one vector each
//! N = 5   rank 0  [0 1]   rank 1  [2]   rank 2  [3 4]   rank 3  [5]   rank 4  [6 7]   rank 2 sends two
//! ```
//!
//! # Who sends what
//!
//! Small vectors go from everyone to everyone (`direct`): one hop. Large ones are cut into a slice a rank: everyone sends
//! slice p of its subtrees to rank p, which finishes the tree of that slice and sends the sum to everyone
//! (`reduce_scatter` + `all_gather`): two hops, and every vector crosses a link once or twice instead of N − 1 times.
//! Addition is element by element, so both give the same bits.
//!
//! # Copies
//!
//! A partial sum stays where it was computed until its sum is there: in memory that a GPU shares with the host, or in the
//! host's. To a peer over RDMA it is copied once, from there to the slot that the device sends; into a message before that only
//! if the peer has no room for all of it at once, or it is slices of several subtrees. What comes is copied once, from its slot
//! to a message, and added from there to where the sum is wanted, which a GPU shares, too. (By `--fence spin` the GPU itself
//! copies both once more.) Over TCP and shared memory there is a message on either side.

mod collectives;
mod communicator;
pub mod control;
mod hello;
mod ranks;
mod tree;
mod wire;

pub use crate::transport::MAX_MESSAGE;
pub use communicator::{Algorithm, Communicator};
pub use hello::{Hello, self_test};
pub use ranks::Ranks;
pub use wire::{AHEAD, Place, Stats, Watch};
