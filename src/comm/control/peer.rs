//! What one control thread knows of a rank: when it was heard, how far it is, and whether it is still there.

use std::time::Duration;

use super::activity::Activity;
use super::wire::Frame;

/// How many deadlines for silence in a row a peer is excused because this rank itself slept.
const EXCUSES: u32 = 3;

#[derive(Debug)]
pub(super) struct Peer {
    /// When it was last heard, or excused.
    pub(super) heard_at: Duration,
    /// When its progress counter last moved.
    pub(super) moved_at: Duration,
    pub(super) activity: Option<Activity>,
    /// Its frames are still believed.
    pub(super) hears: bool,
    /// Its stream still takes frames.
    pub(super) sends: bool,
    /// It has nothing left to do, so that its silence or its closing is no trouble.
    pub(super) done: bool,
    /// It waits for no further word: it has acknowledged the last one or ended by its own view.
    pub(super) told: bool,
    progress: u64,
    /// For how much sleep of this rank it was excused since it was heard.
    excused: Duration,
}

impl Peer {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            heard_at: now,
            moved_at: now,
            activity: None,
            hears: true,
            sends: true,
            done: false,
            told: false,
            progress: 0,
            excused: Duration::ZERO,
        }
    }

    /// Notes that a frame came from it.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard_at = now;
        self.excused = Duration::ZERO;
    }

    /// Notes how far its main thread is.
    pub(super) fn moved(&mut self, activity: Option<Activity>, progress: u64, now: Duration) {
        if progress > self.progress {
            self.progress = progress;
            self.moved_at = now;
        }
        self.activity = activity;
    }

    /// Returns what tells the others that it is there and how far it is.
    pub(super) fn heartbeat(&self) -> Frame {
        Frame::Heartbeat { progress: self.progress, activity: self.activity.clone() }
    }

    /// Puts its deadlines off because this rank slept for `slept`: what it said meanwhile may still wait to be read.
    /// Bounded, so that a machine that sleeps again and again still finds the dead.
    pub(super) fn excuse(&mut self, now: Duration, slept: Duration, silent: Duration) {
        self.excused = self.excused.saturating_add(slept.min(silent));
        if self.excused <= silent.saturating_mul(EXCUSES) {
            self.heard_at = now.min(self.heard_at.saturating_add(slept));
            self.moved_at = now.min(self.moved_at.saturating_add(slept));
        }
    }

    /// Returns for how long nothing came from it, if that would be trouble.
    pub(super) fn silence(&self, now: Duration) -> Option<Duration> {
        (self.hears && !self.done).then(|| now.saturating_sub(self.heard_at))
    }
}
