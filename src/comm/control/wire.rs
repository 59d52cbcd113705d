//! The frames of the control channel as bytes: a kind, then fields of fixed or bounded length, little-endian.

use super::activity::{Activity, MAX_TEXT, Operation, one_line};
use super::cause::{Cause, CauseKind, Failure};
use crate::error::{Error, Result};

/// The longest frame, in bytes.
pub const MAX_FRAME: usize = 2048;

/// The rank number that stands for no rank.
const NOBODY: u16 = u16::MAX;

/// What one control thread says to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Still there, and how far the main thread is.
    Heartbeat {
        /// A counter that increases with the main thread's progress.
        progress: u64,
        /// Where the main thread is.
        activity: Option<Activity>,
    },
    /// To rank 0: something went wrong here.
    Report(Failure),
    /// To rank 0: this rank ends by its own view, because it cannot hear rank 0.
    Leave(Failure),
    /// To rank 0: this rank has finished in good order.
    Done,
    /// To rank 0: the decision or the end was heard.
    Ack,
    /// From rank 0: everybody ends with this cause.
    Decision(Cause),
    /// From rank 0: everybody ends in good order.
    End,
}

impl Frame {
    /// Returns the frame as bytes, at most [`MAX_FRAME`]; longer texts are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Heartbeat { progress, activity } => {
                out.push(1);
                out.extend(progress.to_le_bytes());
                put_activity(&mut out, activity.as_ref());
            }
            Self::Report(failure) => put_failure(&mut out, 2, failure),
            Self::Leave(failure) => put_failure(&mut out, 3, failure),
            Self::Done => out.push(4),
            Self::Ack => out.push(5),
            Self::Decision(cause) => {
                out.push(6);
                put_rank(&mut out, Some(cause.rank));
                out.push(CauseKind::ALL.iter().position(|kind| *kind == cause.kind).unwrap_or_default() as u8);
                put_rank(&mut out, Some(cause.observer));
                put_activity(&mut out, cause.activity.as_ref());
                put_text(&mut out, &cause.detail);
            }
            Self::End => out.push(7),
        }
        out
    }

    /// Reads a frame; `names` are those of all ranks, and no other rank can occur in it.
    ///
    /// # Errors
    /// If the bytes are not exactly one frame; the error names the field that is wrong.
    pub fn decode(bytes: &[u8], names: &[String]) -> Result<Self> {
        if bytes.len() > MAX_FRAME {
            return wrong(format_args!("{} bytes are longer than any control frame", bytes.len()));
        }
        let mut fields = Fields { rest: bytes, world_size: names.len() };
        let frame = match fields.byte("kind")? {
            1 => Self::Heartbeat { progress: fields.u64("progress")?, activity: fields.activity()? },
            2 => Self::Report(fields.failure()?),
            3 => Self::Leave(fields.failure()?),
            4 => Self::Done,
            5 => Self::Ack,
            6 => {
                let rank = fields.some_rank("rank at fault")?;
                let kind = fields.one_of("kind of cause", &CauseKind::ALL)?;
                let observer = fields.some_rank("observer")?;
                let (activity, detail) = (fields.activity()?, fields.text("detail")?);
                Self::Decision(Cause { activity, detail, ..Cause::new(rank, kind, observer, names) })
            }
            7 => Self::End,
            kind => return wrong(format_args!("no control frame is of kind {kind}")),
        };
        match fields.rest.len() {
            0 => Ok(frame),
            more => wrong(format_args!("a control frame is followed by {more} bytes")),
        }
    }
}

fn put_rank(out: &mut Vec<u8>, rank: Option<usize>) {
    out.extend(rank.and_then(|rank| u16::try_from(rank).ok()).unwrap_or(NOBODY).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = one_line(text);
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_activity(out: &mut Vec<u8>, activity: Option<&Activity>) {
    let Some(activity) = activity else { return out.push(0) };
    out.push(1);
    out.push(Operation::ALL.iter().position(|operation| *operation == activity.operation).unwrap_or_default() as u8);
    out.extend(activity.number.to_le_bytes());
    put_rank(out, activity.waiting_for);
    put_text(out, &activity.place);
}

fn put_failure(out: &mut Vec<u8>, kind: u8, failure: &Failure) {
    out.push(kind);
    put_rank(out, failure.peer);
    put_activity(out, failure.activity.as_ref());
    put_text(out, &failure.why);
}

fn wrong<T>(what: std::fmt::Arguments<'_>) -> Result<T> {
    Err(Error::msg(what).hint("check that every rank runs the same build"))
}

/// What is left of a frame.
struct Fields<'a> {
    rest: &'a [u8],
    world_size: usize,
}

impl Fields<'_> {
    fn take(&mut self, count: usize, what: &str) -> Result<&[u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return wrong(format_args!("a control frame ends in its {what}"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn byte(&mut self, what: &str) -> Result<u8> {
        Ok(self.array::<1>(what)?[0])
    }

    fn u16(&mut self, what: &str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn one_of<T: Copy>(&mut self, what: &str, all: &[T]) -> Result<T> {
        let number = self.byte(what)?;
        match all.get(usize::from(number)) {
            Some(one) => Ok(*one),
            None => wrong(format_args!("a control frame has the unknown {what} {number}")),
        }
    }

    fn rank(&mut self, what: &str) -> Result<Option<usize>> {
        match self.u16(what)? {
            NOBODY => Ok(None),
            rank if usize::from(rank) < self.world_size => Ok(Some(rank.into())),
            rank => wrong(format_args!("a control frame has rank {rank} of {} as its {what}", self.world_size)),
        }
    }

    fn some_rank(&mut self, what: &str) -> Result<usize> {
        self.rank(what)?.map_or_else(|| wrong(format_args!("a control frame has no rank as its {what}")), Ok)
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = usize::from(self.u16(what)?);
        if length > MAX_TEXT {
            return wrong(format_args!("the {what} of a control frame has {length} bytes of at most {MAX_TEXT}"));
        }
        match std::str::from_utf8(self.take(length, what)?) {
            // a peer's words end up on a terminal, which must not obey them
            Ok(text) if text.chars().any(char::is_control) => {
                wrong(format_args!("the {what} of a control frame has a control character"))
            }
            Ok(text) => Ok(text.to_owned()),
            Err(_) => wrong(format_args!("the {what} of a control frame is not UTF-8")),
        }
    }

    fn activity(&mut self) -> Result<Option<Activity>> {
        match self.byte("activity")? {
            0 => Ok(None),
            1 => Ok(Some(Activity {
                operation: self.one_of("operation", &Operation::ALL)?,
                number: self.u64("number")?,
                waiting_for: self.rank("awaited rank")?,
                place: self.text("place")?,
            })),
            flag => wrong(format_args!("a control frame has {flag} where an activity is or is not")),
        }
    }

    fn failure(&mut self) -> Result<Failure> {
        let peer = self.rank("peer")?;
        Ok(Failure { peer, activity: self.activity()?, why: self.text("error")? })
    }
}
