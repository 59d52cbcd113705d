//! What rank 0 tells the other ranks to do: they run the same steps in the same order, on tokens that it chose.

use super::Wanted;
use crate::error::{Error, Result};

/// Bytes of a command at most.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// One step of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Begin an empty sequence in this slot.
    Start(usize),
    /// Forget the sequence in this slot.
    End(usize),
    /// Append tokens to the sequences in these slots.
    Forward(Vec<(usize, Vec<u32>)>, Wanted),
    /// Say what was done so far.
    Report,
    /// The run is over.
    Stop,
}

impl Command {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut words: Vec<u32> = Vec::new();
        match self {
            Self::Start(slot) => words.extend([0, *slot as u32]),
            Self::End(slot) => words.extend([1, *slot as u32]),
            Self::Forward(runs, wanted) => {
                words.extend([2, *wanted as u32, runs.len() as u32]);
                for (slot, tokens) in runs {
                    words.extend([*slot as u32, tokens.len() as u32]);
                    words.extend(tokens);
                }
            }
            Self::Report => words.push(4),
            Self::Stop => words.push(3),
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    /// # Errors
    /// If the bytes are no command.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().map(|word| word as usize);
        let command = (|| {
            Some(match next()? {
                0 => Self::Start(next()?),
                1 => Self::End(next()?),
                2 => {
                    let wanted = [Wanted::Nothing, Wanted::Last, Wanted::All].into_iter().nth(next()?)?;
                    let mut runs = Vec::new();
                    for _ in 0..next()? {
                        let (slot, count) = (next()?, next()?);
                        let tokens: Option<Vec<u32>> = (0..count).map(|_| next().map(|token| token as u32)).collect();
                        runs.push((slot, tokens?));
                    }
                    Self::Forward(runs, wanted)
                }
                3 => Self::Stop,
                4 => Self::Report,
                _ => return None,
            })
        })();
        match command {
            Some(command) if words.next().is_none() && rest.is_empty() => Ok(command),
            _ => Err(Error::msg(format!("rank 0 sent {} bytes that are no command", bytes.len()))
                .hint("the ranks do not run the same program; update all of them")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_wire_and_garbage_does_not() {
        let commands = [
            Command::Start(3),
            Command::End(0),
            Command::Forward(vec![(1, vec![7, 8, 9]), (0, vec![u32::MAX])], Wanted::All),
            Command::Forward(Vec::new(), Wanted::Nothing),
            Command::Report,
            Command::Stop,
        ];
        for command in commands {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes).unwrap(), command);
            assert!(Command::decode(&bytes[..bytes.len() - 1]).is_err());
            assert!(Command::decode(&[&bytes[..], &[0; 4]].concat()).is_err());
        }
        assert!(Command::decode(&[9, 0, 0, 0]).is_err());
        assert!(Command::decode(&[]).is_err());
        assert!(Command::decode(&[2, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]).is_err());
    }
}
