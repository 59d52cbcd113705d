//! A chunk: what one send carries. A header, and a piece of a message or nothing.

/// Bytes of a header, all little-endian: the run (8), the number of the chunk in its lane (4), how many chunks of the other
/// direction have been taken (4), the number of the message (4), its length (4), where in it the piece begins (4), the
/// length of the piece (4), the kind (4), and a CRC-32C of all of that and the piece (4).
pub(super) const HEADER: usize = 40;

/// What a chunk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of a message.
    Piece,
    /// Only the header's counts: a credit, or a sign of life.
    Sign,
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) sequence: u32,
    pub(super) taken: u32,
    pub(super) kind: Kind,
    /// Modulo 2^32.
    pub(super) message: u32,
    /// Bytes of the message.
    pub(super) total: usize,
    /// Where in the message the piece begins.
    pub(super) offset: usize,
    /// Bytes of the piece.
    pub(super) piece: usize,
}

impl Chunk {
    /// Writes the chunk into `slot`; returns its length.
    pub(super) fn write(&self, run: u64, piece: &[u8], slot: &mut [u8]) -> usize {
        let length = HEADER + piece.len();
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let words = [
            self.sequence,
            self.taken,
            self.message,
            small(self.total),
            small(self.offset),
            small(piece.len()),
            self.kind as u32,
        ];
        slot[HEADER..length].copy_from_slice(piece);
        slot[..8].copy_from_slice(&run.to_le_bytes());
        for (at, word) in words.iter().enumerate() {
            slot[8 + 4 * at..12 + 4 * at].copy_from_slice(&word.to_le_bytes());
        }
        let sum = checksum(&slot[..length]);
        slot[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
        length
    }

    /// Reads a chunk of this run that came as `bytes`, which may go on behind it. Returns it with its piece, or what is
    /// wrong with it.
    pub(super) fn read(run: u64, bytes: &[u8]) -> Result<(Self, &[u8]), String> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(format!("sent {} bytes where a header has {HEADER}", bytes.len()));
        };
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let size = |at: usize| word(at) as usize;
        let theirs = u64::from(word(0)) | u64::from(word(4)) << 32;
        if theirs != run {
            return Err(format!("sent a chunk of run {theirs:016x} where this is run {run:016x}"));
        }
        let piece = size(28);
        let Some(piece_bytes) = rest.get(..piece) else {
            return Err(format!("sent a chunk of {piece} bytes, of which {} came", rest.len()));
        };
        if checksum(&bytes[..HEADER + piece]) != word(36) {
            return Err("sent a chunk whose checksum is wrong: it was damaged on the way".to_owned());
        }
        let kind = match word(32) {
            0 => Kind::Piece,
            1 => Kind::Sign,
            other => return Err(format!("sent a chunk of kind {other}")),
        };
        let chunk = Self {
            sequence: word(8),
            taken: word(12),
            kind,
            message: word(16),
            total: size(20),
            offset: size(24),
            piece,
        };
        if chunk.offset.checked_add(piece).is_none_or(|end| end > chunk.total) {
            return Err(format!(
                "sent bytes {} to {} of a message of {}",
                chunk.offset,
                chunk.offset + piece,
                chunk.total
            ));
        }
        Ok((chunk, piece_bytes))
    }
}

/// The checksum of a chunk, without the four bytes where it stands.
fn checksum(chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chunk[..HEADER - 4]), &chunk[HEADER..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Chunk {
        Chunk { sequence: 7, taken: u32::MAX, kind: Kind::Piece, message: 3, total: 900, offset: 800, piece: 100 }
    }

    #[test]
    fn a_chunk_comes_as_it_went() {
        let (mut slot, piece) = ([0xee; 256], [5; 100]);
        assert_eq!(chunk().write(1 << 60, &piece, &mut slot), 140);
        assert_eq!(Chunk::read(1 << 60, &slot), Ok((chunk(), &piece[..])), "what is behind it does not matter");
        assert!(Chunk::read(1, &slot).unwrap_err().contains("run 1000000000000000"));
        assert!(Chunk::read(1, &slot[..39]).unwrap_err().contains("39 bytes"));
        assert!(Chunk::read(1 << 60, &slot[..139]).unwrap_err().contains("of which 99 came"));
    }

    #[test]
    fn every_damaged_bit_is_noticed() {
        let mut slot = [0; 140];
        chunk().write(9, &[0x5a; 100], &mut slot);
        for bit in 0..slot.len() * 8 {
            slot[bit / 8] ^= 1 << (bit % 8);
            assert!(Chunk::read(9, &slot).is_err(), "bit {bit}");
            slot[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(Chunk::read(9, &slot).is_ok());
    }

    #[test]
    fn a_piece_stays_inside_its_message() {
        let mut slot = [0; 140];
        Chunk { offset: 801, ..chunk() }.write(9, &[0; 100], &mut slot);
        assert!(Chunk::read(9, &slot).unwrap_err().contains("801 to 901 of a message of 900"));
    }
}
