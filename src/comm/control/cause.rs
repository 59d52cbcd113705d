//! Why a group of ranks ends: one line that names the rank, its address and the operation, and a hint.

use std::fmt::{self, Display};

use super::activity::{Activity, Operation, one_line};
use crate::error::Error;

/// The kinds of causes, from the vaguest to the most specific: a later one replaces an earlier one during the grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CauseKind {
    /// Its heartbeats come, but its main thread does not get on.
    Stuck,
    /// Nothing came from it.
    Silent,
    /// Another rank (the observer) lost its data link to it.
    Link,
    /// Its control stream closed or broke.
    Closed,
    /// Its control stream carried what no rank sends.
    Garbled,
    /// Its process ended, as seen by who started it.
    Exited,
    /// It said so itself.
    Failed,
}

impl CauseKind {
    /// All of them; the position is the number on the wire.
    pub const ALL: [Self; 7] =
        [Self::Stuck, Self::Silent, Self::Link, Self::Closed, Self::Garbled, Self::Exited, Self::Failed];
}

/// How a control stream was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The other end closed it.
    Closed,
    /// Reading or writing failed, with the system's words.
    Broken(String),
    /// What came cannot be trusted, for instance because it does not decrypt.
    Garbled(String),
    /// The process is known to have ended, e.g. `killed by signal 9`.
    Exited(String),
}

impl Loss {
    pub(super) fn into_parts(self) -> (CauseKind, String) {
        match self {
            Self::Closed => (CauseKind::Closed, String::new()),
            Self::Broken(why) => (CauseKind::Closed, why),
            Self::Garbled(why) => (CauseKind::Garbled, why),
            Self::Exited(why) => (CauseKind::Exited, why),
        }
    }
}

/// What went wrong in the main thread of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The rank at the other end of the link that broke; `None` if this rank itself failed or panicked.
    pub peer: Option<usize>,
    /// Where it happened; `None` stands for the last activity told.
    pub activity: Option<Activity>,
    /// The error in one line.
    pub why: String,
}

/// Why the group ends. Prints as one line, for instance
/// `rank 2 (127.0.0.1:50913) sent nothing for 5.0 s in all_reduce #8841 (layer 17 mlp)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The rank at fault.
    pub rank: usize,
    /// What is wrong with it.
    pub kind: CauseKind,
    /// Where it was, as far as known.
    pub activity: Option<Activity>,
    /// The error line, or for how long, e.g. `5.0 s`; may be empty.
    pub detail: String,
    /// The rank that saw it.
    pub observer: usize,
    /// Whether rank 0 decided it; else it is the view of the observer alone.
    pub agreed: bool,
    pub(super) names: [String; 2],
}

impl Cause {
    /// Returns a cause without place or detail; `names` are those of all ranks.
    pub fn new(rank: usize, kind: CauseKind, observer: usize, names: &[String]) -> Self {
        let name = |rank: usize| names.get(rank).map_or_else(|| format!("rank {rank}"), |name| one_line(name));
        let names = [name(rank), name(observer)];
        Self { rank, kind, activity: None, detail: String::new(), observer, agreed: true, names }
    }

    /// Returns what `failure`, told by rank `observer`, says about whom.
    pub(super) fn reported(failure: Failure, observer: usize, names: &[String]) -> Self {
        let (rank, kind) = failure.peer.map_or((observer, CauseKind::Failed), |peer| (peer, CauseKind::Link));
        Self { activity: failure.activity, detail: failure.why, ..Self::new(rank, kind, observer, names) }
    }

    /// Returns what to do about it.
    pub fn hint(&self) -> &'static str {
        match self.kind {
            CauseKind::Stuck => {
                "if that rank is only slow, raise the progress deadline; else see what its process does"
            }
            CauseKind::Silent => "check that this machine is up and awake and that the network to it works",
            CauseKind::Link => "check the cable or network between the two ranks",
            CauseKind::Closed | CauseKind::Exited => {
                "see that rank's own output; a process killed without a word often ran out of memory"
            }
            CauseKind::Garbled => "check that every rank runs the same build and that nothing else uses its ports",
            CauseKind::Failed => "the error is that rank's own: see its output for more",
        }
    }
}

impl Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [name, observer] = &self.names;
        match self.kind {
            CauseKind::Stuck => write!(f, "{name} made no progress for {}", self.detail)?,
            CauseKind::Silent => write!(f, "{name} sent nothing for {}", self.detail)?,
            CauseKind::Link => write!(f, "{observer} lost its link to {name}")?,
            CauseKind::Closed => write!(f, "{name} closed its connection")?,
            CauseKind::Garbled => write!(f, "{name} sent what is no control frame")?,
            CauseKind::Exited => write!(f, "{name} ended")?,
            CauseKind::Failed => write!(f, "{name} failed")?,
        }
        if let Some(activity) = &self.activity {
            let idle = activity.operation == Operation::Idle;
            if idle { f.write_str(" while idle")? } else { write!(f, " in {activity}")? }
        }
        let told = matches!(self.kind, CauseKind::Stuck | CauseKind::Silent) || self.detail.is_empty();
        if !told {
            write!(f, ": {}", self.detail)?;
        }
        if self.agreed { Ok(()) } else { write!(f, "; this is the view of {observer} alone") }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Self::cluster(&cause).hint(cause.hint())
    }
}
