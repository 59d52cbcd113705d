//! Hands a rank's weights to what computes, and reads what it owns of mapped files before it is needed.

use super::Model;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::weights::{HOLE, Mapped, Piece, joined, let_go, read_mapped};

impl Model {
    /// Hands all weights to `backend`, once, and gives the memory of mapped files back that it has copied. `progress` is told
    /// how many bytes are copied of how many there are of all weights, and says whether to go on.
    ///
    /// # Errors
    /// If the device has no room for them.
    pub fn keep(&mut self, backend: &dyn Backend, progress: &dyn Fn(u64, u64) -> bool) -> Result<()> {
        let (mapped, all) = (!self.source.kind().is_in_memory(), self.share.bytes());
        for matrix in std::mem::take(&mut self.weights) {
            let copied = backend.keep(&matrix)?;
            if copied.is_empty() {
                continue;
            }
            self.copied += copied.iter().map(|runs| runs.bytes() as u64).sum::<u64>();
            copied.iter().filter(|_| mapped).for_each(|runs| let_go(runs.span()));
            if !progress(self.copied, all) {
                break;
            }
        }
        Ok(())
    }

    /// The parts of mapped files that this rank needs in memory.
    ///
    /// # Errors
    /// If a tensor is missing, which would be a bug.
    fn mapped(&self) -> Result<Vec<Mapped>> {
        let mut parts = Vec::new();
        for (name, pieces) in self.share.tensors() {
            let needed = |piece: &&Piece| !piece.looked_up && (self.copied == 0 || piece.has_all_columns());
            let mut ranges: Vec<_> = pieces.iter().filter(needed).flat_map(spans).collect();
            ranges.sort_by_key(|range| range.start);
            if ranges.is_empty() {
                continue;
            }
            let bytes = self.source.get(name, &[])?.bytes;
            for range in joined(ranges) {
                let bytes = bytes.slice(range.start as usize..range.end as usize);
                parts.push(Mapped { name: name.to_owned(), bytes });
            }
        }
        Ok(parts)
    }

    /// Reads all weights that lie in files, but for what was copied, if all are no more than `room` bytes; `progress` is told
    /// how many bytes of how many are there, and says whether to go on. Returns how many they are if there is no room.
    ///
    /// # Errors
    /// Naming the tensor that cannot be read.
    pub fn read_ahead(&self, room: u64, progress: &dyn Fn(u64, u64) -> bool) -> Result<Option<u64>> {
        if self.source.kind().is_in_memory() {
            return Ok(None);
        }
        let parts = self.mapped()?;
        let total = self.copied + parts.iter().map(|part| part.bytes.len() as u64).sum::<u64>();
        if total > room {
            return Ok(Some(total));
        }
        read_mapped(parts, &|done| progress(self.copied + done, total)).map_err(|(name, error)| {
            let place = self.source.info(&name, &[]).map_or(name, |info| info.place());
            Error::from_std(error).context(place).hint("look at the disk, or fetch the file again")
        })?;
        Ok(None)
    }
}

/// The bytes of a piece, and what lies between those of its rows where that is no more than a hole.
fn spans(piece: &Piece) -> Vec<std::ops::Range<u64>> {
    let bytes = |columns: usize| columns as u64 * piece.dtype.width() as u64;
    if bytes(piece.stride) > HOLE || piece.bytes() == 0 {
        return piece.byte_ranges().collect();
    }
    let whole = Piece { columns: 0..piece.stride, ..piece.clone() };
    let (before, after) = (bytes(piece.columns.start), bytes(piece.stride - piece.columns.end));
    whole.byte_ranges().map(|rows| rows.start + before..rows.end - after).collect()
}
