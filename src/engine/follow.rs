//! Ranks that follow rank 0, and what it tells them beside steps.

use super::Engine;
use super::command::{Command, MAX_BYTES};
use super::usage::Report;
use crate::error::Result;

impl Engine {
    /// Does what rank 0 says until it says that the run is over.
    ///
    /// # Errors
    /// If a rank is lost, or rank 0 sends what is no command.
    pub fn follow(&mut self) -> Result<()> {
        loop {
            match Command::decode(&self.ranks.world.broadcast_bytes(Vec::new(), MAX_BYTES)?)? {
                Command::Step(step) => {
                    let flight = self.run(step, None)?;
                    self.collect(flight)?;
                }
                Command::Report => {
                    self.reports()?;
                }
                Command::Stop => return Ok(()),
            }
        }
    }

    /// Tells the other ranks that the run is over.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn stop(&mut self) -> Result<()> {
        self.tell(|| Command::Stop.encode())?;
        if self.ranks.world.world_size() > 1 { self.ranks.world.flush() } else { Ok(()) }
    }

    /// Tells the others a command, if there are any.
    pub(super) fn tell(&self, command: impl FnOnce() -> Vec<u8>) -> Result<()> {
        if self.ranks.world.world_size() > 1 {
            self.ranks.world.broadcast_bytes(command(), MAX_BYTES)?;
        }
        Ok(())
    }

    /// What every rank did so far, on rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        if self.ranks.world.rank() == 0 {
            self.none_is_under_way()?;
            self.tell(|| Command::Report.encode())?;
        }
        let own = Report {
            bytes: self.model.share.bytes(),
            whole: self.model.whole,
            position: self.model.decoder.position_bytes(self.backend.kv_type()),
            usage: self.usage,
        };
        self.ranks.world.busy(true)?;
        let all = self.ranks.world.gather_bytes(&own.encode()?, MAX_BYTES)?;
        self.ranks.world.busy(false)?;
        all.iter().map(|bytes| Report::decode(bytes)).collect()
    }
}
