//! An envelope: what ranks without a cable between them send each other over the ranks in between.

/// Bytes of a header, all little-endian: who sent it (2), to whom (2), the kind (4), the number of the envelope in its flow
/// (4), how many pieces of the other direction have been taken (4), the number of the message (4), its length (4) and where
/// in it the piece begins (4).
pub(super) const HEADER: usize = 28;

/// Bytes of a piece.
pub(super) const PIECE: usize = 32 << 10;

/// What an envelope is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of a message.
    Piece,
    /// Only the count of pieces taken.
    Taken,
    /// The sender has ended, after so many pieces.
    End,
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) kind: Kind,
    pub(super) sequence: u32,
    pub(super) taken: u32,
    pub(super) message: u32,
    pub(super) total: usize,
    pub(super) offset: usize,
}

impl Envelope {
    /// Writes the header to the beginning of `bytes`.
    pub(super) fn write(&self, bytes: &mut [u8]) {
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let ends = small(self.from) & 0xffff | small(self.to) << 16;
        let (total, offset) = (small(self.total), small(self.offset));
        let words = [ends, self.kind as u32, self.sequence, self.taken, self.message, total, offset];
        for (at, word) in words.iter().enumerate() {
            bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Reads what came between `world_size` ranks, or says what is wrong with it.
    pub(super) fn read(bytes: &[u8], world_size: usize) -> Result<(Self, &[u8]), String> {
        let Some((header, piece)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(format!("sent {} bytes where a header has {HEADER}", bytes.len()));
        };
        let word = |at: usize| {
            let at = 4 * at;
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let kind = match word(1) {
            0 => Kind::Piece,
            1 => Kind::Taken,
            2 => Kind::End,
            other => return Err(format!("sent an envelope of kind {other}")),
        };
        let (from, to) = ((word(0) & 0xffff) as usize, (word(0) >> 16) as usize);
        let (total, offset) = (word(5) as usize, word(6) as usize);
        if from >= world_size || to >= world_size || from == to {
            return Err(format!("sent an envelope from rank {from} to rank {to} of {world_size}"));
        }
        if offset.checked_add(piece.len()).is_none_or(|end| end > total) {
            return Err(format!("sent {} bytes at {offset} of a message of {total}", piece.len()));
        }
        Ok((Self { from, to, kind, sequence: word(2), taken: word(3), message: word(4), total, offset }, piece))
    }
}
