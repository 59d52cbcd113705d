//! What rank 0 tells the other ranks to do: they run the same steps in the same order, on tokens and in pages that it chose.

use super::Wanted;
use crate::error::{Error, Result};

/// Bytes of a command at most.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// What all ranks do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Change what slots hold, then run tokens.
    Step(Step),
    /// Say what was done so far.
    Report,
    /// The run is over.
    Stop,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) changes: Vec<Change>,
    pub(super) runs: Vec<Run>,
}

/// What happens to slots, pages and states, in this order, before tokens are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// A sequence of `len` positions begins in `slot`: these pages hold them, and its recurrent state is a copy of what the
    /// slot `state` holds, or empty.
    Begin { slot: usize, len: usize, state: Option<usize>, pages: Vec<u32> },
    /// The sequence in this slot is over.
    End(usize),
    /// A page becomes a copy of another.
    CopyPage { from: u32, to: u32 },
    /// The recurrent state of a slot becomes a copy of another's.
    CopyState { from: usize, to: usize },
}

/// Tokens that a sequence is extended by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) slot: usize,
    pub(super) wanted: Wanted,
    /// What its pages are extended by.
    pub(super) pages: Vec<u32>,
    pub(super) tokens: Vec<u32>,
}

impl Command {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Step(step) => step.encode(),
            Self::Report => bytes(vec![1]),
            Self::Stop => bytes(vec![2]),
        }
    }

    /// # Errors
    /// If the bytes are no command.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut words = Words(words.iter());
        match words.command() {
            Some(command) if words.0.as_slice().is_empty() && rest.is_empty() => Ok(command),
            _ => Err(Error::msg(format!("rank 0 sent {} bytes that are no command", bytes.len()))
                .hint("the ranks do not run the same program; update all of them")),
        }
    }
}

impl Step {
    /// As a command.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut words: Vec<u32> = Vec::new();
        words.extend([0, self.changes.len() as u32, self.runs.len() as u32]);
        for change in &self.changes {
            match change {
                Change::Begin { slot, len, state, pages } => {
                    let state = state.map_or(0, |state| state as u32 + 1);
                    words.extend([0, *slot as u32, *len as u32, state, pages.len() as u32]);
                    words.extend(pages);
                }
                Change::End(slot) => words.extend([1, *slot as u32]),
                Change::CopyPage { from, to } => words.extend([2, *from, *to]),
                Change::CopyState { from, to } => words.extend([3, *from as u32, *to as u32]),
            }
        }
        for Run { slot, wanted, pages, tokens } in &self.runs {
            words.extend([*slot as u32, *wanted as u32, pages.len() as u32, tokens.len() as u32]);
            words.extend(pages.iter().chain(tokens));
        }
        bytes(words)
    }
}

fn bytes(words: Vec<u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

struct Words<'a>(std::slice::Iter<'a, [u8; 4]>);

impl Words<'_> {
    fn word(&mut self) -> Option<u32> {
        self.0.next().map(|word| u32::from_le_bytes(*word))
    }

    fn number(&mut self) -> Option<usize> {
        self.word().map(|word| word as usize)
    }

    fn list(&mut self, len: usize) -> Option<Vec<u32>> {
        (0..len).map(|_| self.word()).collect()
    }

    fn command(&mut self) -> Option<Command> {
        Some(match self.word()? {
            0 => {
                let (changes, runs) = (self.number()?, self.number()?);
                let mut step = Step::default();
                for _ in 0..changes {
                    step.changes.push(self.change()?);
                }
                for _ in 0..runs {
                    step.runs.push(self.run()?);
                }
                Command::Step(step)
            }
            1 => Command::Report,
            2 => Command::Stop,
            _ => return None,
        })
    }

    fn change(&mut self) -> Option<Change> {
        Some(match self.word()? {
            0 => {
                let (slot, len, state, pages) = (self.number()?, self.number()?, self.number()?, self.number()?);
                Change::Begin { slot, len, state: state.checked_sub(1), pages: self.list(pages)? }
            }
            1 => Change::End(self.number()?),
            2 => Change::CopyPage { from: self.word()?, to: self.word()? },
            3 => Change::CopyState { from: self.number()?, to: self.number()? },
            _ => return None,
        })
    }

    fn run(&mut self) -> Option<Run> {
        let slot = self.number()?;
        let wanted = [Wanted::Nothing, Wanted::Last, Wanted::All, Wanted::Token].into_iter().nth(self.number()?)?;
        let (pages, tokens) = (self.number()?, self.number()?);
        Some(Run { slot, wanted, pages: self.list(pages)?, tokens: self.list(tokens)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_wire_and_garbage_does_not() {
        let changes = vec![
            Change::End(0),
            Change::CopyPage { from: 3, to: u32::MAX },
            Change::Begin { slot: 3, len: 70, state: Some(0), pages: vec![5, 3] },
            Change::Begin { slot: 0, len: 0, state: None, pages: Vec::new() },
            Change::CopyState { from: 2, to: 9 },
        ];
        let runs = vec![
            Run { slot: 1, wanted: Wanted::All, pages: vec![4], tokens: vec![7, 8, 9] },
            Run { slot: 0, wanted: Wanted::Nothing, pages: Vec::new(), tokens: vec![u32::MAX] },
            Run { slot: 2, wanted: Wanted::Token, pages: Vec::new(), tokens: vec![5] },
            Run { slot: 3, wanted: Wanted::Last, pages: Vec::new(), tokens: vec![6] },
        ];
        let commands =
            [Command::Step(Step { changes, runs }), Command::Step(Step::default()), Command::Report, Command::Stop];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes).unwrap(), command);
            assert!(Command::decode(&bytes[..bytes.len() - 1]).is_err());
            assert!(Command::decode(&[&bytes[..], &[0; 4]].concat()).is_err());
        }
        assert!(Command::decode(&[9, 0, 0, 0]).is_err());
        assert!(Command::decode(&[]).is_err());
        assert!(Command::decode(&[0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]).is_err());
    }
}
