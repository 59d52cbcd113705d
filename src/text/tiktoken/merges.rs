//! The merges of a byte-pair encoding, recovered from the ranks of its tokens.
//!
//! tiktoken joins, again and again, the two neighbours that make the token of the lowest rank, the leftmost of several;
//! tokenizers wants to be told which pairs it may join, in order. One pair for every token is enough: as long as
//! nothing joins across the ends of a token, the same happens to its bytes in a text as happens to them alone, because
//! what is lowest and leftmost of all is so among its own neighbours too. So a token only ever comes about from the two
//! parts that it comes down to when it is encoded alone, whatever stands around it; and a token that gets stuck in more
//! than two never comes about at all, unless a whole word is that token.

use super::ranks::Ranks;

/// The rank of a pair that is no token.
const NONE: u32 = u32::MAX;

/// Returns the pair behind every token that has one, in the order of ranks.
pub(super) fn recover(ranks: &Ranks) -> Vec<(String, String)> {
    let mut parts = Parts::default();
    let split = |token: &String| {
        let (left, right) = token.split_at(parts.boundary(token, ranks)?);
        Some((left.to_owned(), right.to_owned()))
    };
    ranks.tokens.iter().filter_map(split).collect()
}

/// A token in the course of being encoded; kept for its memory.
#[derive(Default)]
struct Parts {
    starts: Vec<usize>,
    // of every part with the one after it
    pairs: Vec<u32>,
}

impl Parts {
    /// Returns where the last two parts of `token` meet.
    fn boundary(&mut self, token: &str, ranks: &Ranks) -> Option<usize> {
        self.starts.clear();
        self.starts.extend(token.char_indices().map(|(at, _)| at));
        self.pairs.clear();
        self.pairs.extend((0..self.starts.len()).map(|part| pair(token, &self.starts, part, ranks)));
        while self.starts.len() > 2 {
            let lowest = self.pairs.iter().copied().min().filter(|rank| *rank != NONE)?;
            let at = self.pairs.iter().position(|rank| *rank == lowest)?;
            self.starts.remove(at + 1);
            self.pairs.remove(at + 1);
            for part in at.saturating_sub(1)..=at {
                self.pairs[part] = pair(token, &self.starts, part, ranks);
            }
        }
        self.starts.get(1).copied()
    }
}

/// The rank of what a part and the one after it make together.
fn pair(token: &str, starts: &[usize], part: usize, ranks: &Ranks) -> u32 {
    let end = starts.get(part + 2).copied().unwrap_or(token.len());
    match starts.get(part + 1) {
        Some(_) => ranks.ids.get(&token[starts[part]..end]).copied().unwrap_or(NONE),
        None => NONE,
    }
}
