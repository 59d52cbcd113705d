//! Jobs that belong together: the answers to one request.

use std::collections::BTreeMap;

use super::{Counts, Limits, Scheduler};
use crate::engine::{Engine, Job, Update};
use crate::error::{Error, Result};

/// Runs groups of jobs; `T` is what their owner keeps of each.
///
/// Jobs get numbers of their own. A job's place in its group is its choice.
#[derive(Debug)]
pub struct Groups<T> {
    scheduler: Scheduler,
    groups: BTreeMap<u64, Group<T>>,
    // by number: the group's key, and the choice
    jobs: BTreeMap<u64, (u64, usize)>,
    next: u64,
}

#[derive(Debug)]
struct Group<T> {
    owner: T,
    // by choice: the job's number, until it is ended
    jobs: BTreeMap<usize, u64>,
}

impl<T> Groups<T> {
    /// No groups yet.
    pub fn new(limits: Limits) -> Self {
        Self { scheduler: Scheduler::new(limits), groups: BTreeMap::new(), jobs: BTreeMap::new(), next: 0 }
    }

    /// Adds a group, whose key no other has; returns which of its jobs could never run, and why. Those have to be ended too.
    pub fn begin(&mut self, engine: &Engine, key: u64, owner: T, jobs: Vec<Job>) -> Vec<(usize, Error)> {
        let mut group = Group { owner, jobs: BTreeMap::new() };
        let mut refused = Vec::new();
        for (choice, mut job) in jobs.into_iter().enumerate() {
            job.id = self.next;
            self.next += 1;
            group.jobs.insert(choice, job.id);
            self.jobs.insert(job.id, (key, choice));
            if let Err(error) = self.scheduler.submit(engine, job) {
                refused.push((choice, error));
            }
        }
        self.groups.insert(key, group);
        refused
    }

    /// As [`Scheduler::step`].
    ///
    /// # Errors
    /// If a rank is lost: the run is over.
    pub fn step(&mut self, engine: &mut Engine) -> Result<Vec<Update>> {
        self.scheduler.step(engine)
    }

    /// Whose an update is: key, choice and owner. `None` if the job was ended: it may have had a word left.
    pub fn find(&mut self, update: &Update) -> Option<(u64, usize, &mut T)> {
        let (key, choice) = *self.jobs.get(&update.id())?;
        self.groups.get_mut(&key).map(|group| (key, choice, &mut group.owner))
    }

    /// Ends a choice that needs no more tokens or has had its last word; returns whether it was there, and the owner if it was
    /// the last of its group.
    pub fn end(&mut self, key: u64, choice: usize) -> (bool, Option<T>) {
        let Some(group) = self.groups.get_mut(&key) else { return (false, None) };
        let Some(id) = group.jobs.remove(&choice) else { return (false, None) };
        self.scheduler.end(id);
        self.jobs.remove(&id);
        let last = group.jobs.is_empty();
        (true, if last { self.groups.remove(&key).map(|group| group.owner) } else { None })
    }

    /// Ends all of a group; returns its owner and how many choices were left.
    pub fn leave(&mut self, key: u64) -> Option<(T, usize)> {
        let Group { owner, jobs } = self.groups.remove(&key)?;
        for id in jobs.values() {
            self.scheduler.end(*id);
            self.jobs.remove(id);
        }
        Some((owner, jobs.len()))
    }

    /// As [`Scheduler::end_all`].
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn end_all(&mut self, engine: &mut Engine) -> Result<()> {
        self.scheduler.end_all(engine)
    }

    /// The owners of the groups that have not ended.
    pub fn into_owners(self) -> impl Iterator<Item = T> {
        self.groups.into_values().map(|group| group.owner)
    }

    /// Jobs that have not ended.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there is nothing to do: no step runs, no job waits.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What the scheduler has and did.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }
}
