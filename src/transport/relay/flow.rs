//! What goes between this rank and one other, whatever the way: messages to pieces and back, within a window.

use std::collections::VecDeque;
use std::ops::Range;

use super::envelope::{Envelope, Kind, PIECE};
use crate::transport::Buffer;
use crate::transport::mail::Lost;
use crate::transport::pieces::{At, Pieces};

/// Pieces under way that the other end has not taken.
pub(super) const WINDOW: u32 = 8;

/// Both directions between two ranks.
#[derive(Default)]
pub(super) struct Flow {
    pub(super) lost: Option<Lost>,
    outbox: VecDeque<Buffer>,
    /// Bytes of the front message that are in envelopes, or `None` before its first piece.
    cut: Option<usize>,
    message: u32,
    sent: u32,
    acknowledged: u32,
    inbox: Pieces,
    /// Pieces that no receive is posted for.
    waiting: VecDeque<(Envelope, Vec<u8>)>,
    came: u32,
    taken: u32,
    told: u32,
    /// Pieces that the other end had sent when it ended.
    ended: Option<u32>,
}

impl Flow {
    pub(super) fn push(&mut self, message: Buffer) {
        self.outbox.push_back(message);
    }

    pub(super) fn is_sending(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether something is still to go or to come.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_sending() || !self.inbox.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    fn envelope(&mut self, kind: Kind) -> Envelope {
        self.told = self.taken;
        let (sequence, taken, message) = (self.sent, self.taken, self.message);
        Envelope { from: 0, to: 0, kind, sequence, taken, message, total: 0, offset: 0 }
    }

    /// The next piece of the front message, if the window has room.
    pub(super) fn next_piece(&mut self) -> Option<(Envelope, Range<usize>)> {
        let total = self.outbox.front()?.len();
        if self.cut == Some(total) || self.sent.wrapping_sub(self.acknowledged) >= WINDOW {
            return None;
        }
        let offset = self.cut.unwrap_or(0);
        let end = total.min(offset + PIECE);
        let envelope = Envelope { total, offset, ..self.envelope(Kind::Piece) };
        (self.cut, self.sent) = (Some(end), self.sent.wrapping_add(1));
        Some((envelope, offset..end))
    }

    /// Copies a range of the front message.
    pub(super) fn copy(&self, range: Range<usize>, to: &mut [u8]) {
        if let Some(front) = self.outbox.front() {
            to.copy_from_slice(&front.bytes()[range]);
        }
    }

    /// The front message, if all of it is in envelopes.
    pub(super) fn whole(&mut self) -> Option<Buffer> {
        if self.cut != Some(self.outbox.front()?.len()) {
            return None;
        }
        (self.cut, self.message) = (None, self.message.wrapping_add(1));
        self.outbox.pop_front()
    }

    /// Tells what was taken, if it is much.
    pub(super) fn news(&mut self) -> Option<Envelope> {
        (self.taken.wrapping_sub(self.told) >= WINDOW / 2).then(|| self.envelope(Kind::Taken))
    }

    /// What is said when this rank ends.
    pub(super) fn end(&mut self) -> Envelope {
        self.envelope(Kind::End)
    }

    /// Takes in an envelope of the other rank.
    pub(super) fn arrived(&mut self, envelope: &Envelope, piece: &[u8]) -> Result<(), Lost> {
        if envelope.taken.wrapping_sub(self.acknowledged) > self.sent.wrapping_sub(self.acknowledged) {
            return Err(Lost::garbage(format!("says it took {} pieces of {}", envelope.taken, self.sent)));
        }
        self.acknowledged = envelope.taken;
        if envelope.sequence != self.came {
            let (came, due) = (envelope.sequence, self.came);
            return Err(Lost::garbage(format!("sent piece {came} where {due} was due: lost or repeated on the way")));
        }
        match envelope.kind {
            Kind::Taken => Ok(()),
            Kind::End => {
                self.ended = Some(envelope.sequence);
                self.close();
                Ok(())
            }
            Kind::Piece => {
                self.came = self.came.wrapping_add(1);
                if !self.place(envelope, piece)? {
                    if self.waiting.len() >= WINDOW as usize {
                        return Err(Lost::garbage("sent more pieces than its window has"));
                    }
                    self.waiting.push_back((*envelope, piece.to_vec()));
                }
                Ok(())
            }
        }
    }

    /// Posts a receive, and gives it what waits for it.
    pub(super) fn post(&mut self, into: Buffer) -> Result<(), Lost> {
        self.inbox.post(into);
        while let Some((envelope, piece)) = self.waiting.pop_front() {
            if !self.place(&envelope, &piece)? {
                self.waiting.push_front((envelope, piece));
                break;
            }
        }
        self.close();
        Ok(())
    }

    /// Once the other end has ended and everything of it is taken, nothing more comes.
    fn close(&mut self) {
        if self.ended.is_some() && self.waiting.is_empty() {
            let how = if self.inbox.is_amid() {
                "closed its connection in the middle of a message"
            } else {
                "closed its connection"
            };
            self.lost.get_or_insert_with(|| Lost::gone(how));
        }
    }

    /// Copies a piece to where it belongs. Returns whether a receive for it is posted.
    fn place(&mut self, envelope: &Envelope, piece: &[u8]) -> Result<bool, Lost> {
        let Envelope { message, total, offset, .. } = *envelope;
        let placed = self.inbox.place(At { message, total, offset }, piece)?;
        self.taken = self.taken.wrapping_add(u32::from(placed));
        Ok(placed)
    }

    /// The next message that is whole.
    pub(super) fn delivered(&mut self) -> Option<Buffer> {
        self.inbox.whole()
    }
}
