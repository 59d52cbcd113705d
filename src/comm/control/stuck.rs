//! Which rank is stuck: of all whose main threads stand still, the one that the others wait for.

use std::time::Duration;

use super::activity::Operation;
use super::peer::Peer;

/// Returns the rank to blame if a main thread has stood still for `progress`, `None` if nobody is stuck.
///
/// A rank that waits for one that gets on is not stuck, however long it waits. Nor is one that has no work; but one of
/// which others want something has work that it did not notice, unless it is rank 0, which waits for a person.
pub(super) fn stuck(peers: &[Peer], now: Duration, progress: Duration) -> Option<usize> {
    let still = |rank: usize| !peers[rank].done && now.saturating_sub(peers[rank].moved_at) >= progress;
    let mut votes = vec![0_usize; peers.len()];
    for rank in (0..peers.len()).filter(|rank| still(*rank) && works(&peers[*rank])) {
        votes[awaited(peers, rank)] += 1;
    }
    let may = |rank: usize| works(&peers[rank]) || (rank > 0 && peers[rank].activity.is_some());
    let blamed = (0..peers.len()).filter(|rank| votes[*rank] > 0 && still(*rank) && may(*rank));
    blamed.max_by_key(|rank| (votes[*rank], std::cmp::Reverse((peers[*rank].moved_at, *rank))))
}

fn works(peer: &Peer) -> bool {
    peer.activity.as_ref().is_some_and(|activity| activity.operation != Operation::Idle)
}

/// Follows who waits for whom from `start` to a rank that waits for nobody in particular. In a circle, where everybody
/// is awaited, it is the lowest rank.
fn awaited(peers: &[Peer], start: usize) -> usize {
    let next = |rank: usize| {
        let activity = peers[rank].activity.as_ref().filter(|activity| activity.operation != Operation::Idle);
        let next = activity.and_then(|activity| activity.waiting_for).filter(|next| *next < peers.len());
        // who has finished keeps nobody waiting: then it is the one who waits that has lost its way
        next.filter(|next| !peers[*next].done)
    };
    let mut rank = start;
    for _ in 0..peers.len() {
        match next(rank) {
            Some(further) => rank = further,
            None => return rank,
        }
    }
    // after as many steps as there are ranks, `rank` lies on a circle
    let mut lowest = rank;
    for _ in 0..peers.len() {
        rank = next(rank).unwrap_or(rank);
        lowest = lowest.min(rank);
    }
    lowest
}
