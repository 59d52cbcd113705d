//! The header of a frame: which run, which message of its pipe, and how many bytes follow.

use super::MAX_MESSAGE;

/// Bytes of a header: the run (8), the sequence number (8) and the length (4), little-endian.
pub(super) const HEADER: usize = 20;

/// Returns the header of a message of `length` bytes, which is at most [`MAX_MESSAGE`].
pub(super) fn encode(run: u64, sequence: u64, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    header[..8].copy_from_slice(&run.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..].copy_from_slice(&length.to_le_bytes());
    header
}

/// Returns the length in a header, or what is wrong with it.
pub(super) fn decode(header: &[u8; HEADER], run: u64, sequence: u64) -> Result<usize, String> {
    let little = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
    let (theirs, number) = (little(&header[..8]), little(&header[8..16]));
    let length = usize::try_from(little(&header[16..])).unwrap_or(usize::MAX);
    if theirs != run {
        return Err(format!("sent a frame of run {theirs:016x} where this is run {run:016x}"));
    }
    if number != sequence {
        return Err(format!("sent message {number} where message {sequence} was due: lost, repeated or out of order"));
    }
    if length > MAX_MESSAGE {
        return Err(format!("announced a message of {length} bytes, over the limit of {MAX_MESSAGE}"));
    }
    Ok(length)
}
