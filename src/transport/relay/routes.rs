//! The way through ranks that are not all connected: to each destination, the neighbour that is nearer to it.

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// The next rank on the way from `rank` to every other; itself for itself. `neighbours` has the ranks that every rank has
/// a cable to. Of two ways of one length, the one over the rank that comes next in a ring is taken, so that no cable of
/// a ring carries more than the others.
///
/// # Errors
/// If a cable has one end only, or there is no way to some rank.
pub(super) fn routes(rank: usize, neighbours: &[Vec<usize>]) -> Result<Vec<usize>> {
    let size = neighbours.len();
    for (own, others) in neighbours.iter().enumerate() {
        let wrong = others.iter().find(|other| neighbours.get(**other).is_none_or(|back| !back.contains(&own)));
        if let Some(other) = wrong {
            return Err(Error::msg(format!("rank {own} has a cable to rank {other}, which has none back")));
        }
    }
    (0..size)
        .map(|to| {
            if to == rank {
                return Ok(rank);
            }
            let far = distances(to, neighbours);
            let after = |next: &usize| (next + size - rank) % size;
            let nearest = neighbours[rank].iter().copied().min_by_key(|next| (far[*next], after(next)));
            nearest.filter(|next| far[*next] < size).ok_or_else(|| {
                let error = Error::msg(format!("no cables lead from rank {rank} to rank {to}"));
                error.hint("every rank must be reached over some others; `tbshard doctor` draws the cabling")
            })
        })
        .collect()
}

/// How many cables every rank is from `to`; `usize::MAX` where there is no way.
fn distances(to: usize, neighbours: &[Vec<usize>]) -> Vec<usize> {
    let mut far = vec![usize::MAX; neighbours.len()];
    far[to] = 0;
    let mut queue = VecDeque::from([to]);
    while let Some(at) = queue.pop_front() {
        for next in &neighbours[at] {
            if far[*next] == usize::MAX {
                far[*next] = far[at] + 1;
                queue.push_back(*next);
            }
        }
    }
    far
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(size: usize) -> Vec<Vec<usize>> {
        (0..size).map(|rank| vec![(rank + size - 1) % size, (rank + 1) % size]).collect()
    }

    #[test]
    fn every_way_gets_there_by_the_fewest_cables() {
        for size in 3..9 {
            let all: Vec<Vec<usize>> = (0..size).map(|rank| routes(rank, &ring(size)).unwrap()).collect();
            for from in 0..size {
                for to in (0..size).filter(|to| *to != from) {
                    let (mut at, mut hops) = (from, 0);
                    while at != to {
                        (at, hops) = (all[at][to], hops + 1);
                    }
                    let around = (to + size - from) % size;
                    assert_eq!(hops, around.min(size - around), "{from} to {to} of {size}");
                }
            }
        }
    }

    #[test]
    fn no_cable_of_a_ring_carries_more_than_another() {
        let all: Vec<Vec<usize>> = (0..4).map(|rank| routes(rank, &ring(4)).unwrap()).collect();
        assert_eq!([all[0][2], all[1][3], all[2][0], all[3][1]], [1, 2, 3, 0]);
    }

    #[test]
    fn what_leads_nowhere_is_an_error() {
        let error = routes(0, &[vec![1], vec![0], vec![]]).unwrap_err().to_string();
        assert!(error.contains("from rank 0 to rank 2"), "{error}");
        let error = routes(0, &[vec![1], vec![]]).unwrap_err().to_string();
        assert!(error.contains("rank 0 has a cable to rank 1, which has none back"), "{error}");
    }
}
