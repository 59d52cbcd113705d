//! `--device` and `--fence`: what computes, and how it meets the other ranks.

use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::load::ModelArgs;
use super::numbers::Rounding;
use crate::backend::{Arithmetic, Backend, Cpu, Fence, KvType, Metal};
use crate::error::{Error, Result};
use crate::gpu::Device;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Computing {
    /// The GPU on a Mac, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of a Mac.
    Metal,
}

/// How a GPU and this rank meet where ranks sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Fencing {
    /// This rank waits until the GPU has done everything.
    Drain,
    /// The GPU raises an event, and is given what comes next when the sum is there.
    Event,
    /// The GPU waits for the sum in shared memory, as long as it may: for one rank a GPU.
    Spin,
}

impl From<Fencing> for Fence {
    fn from(fence: Fencing) -> Self {
        match fence {
            Fencing::Drain => Self::Drain,
            Fencing::Event => Self::Event,
            Fencing::Spin => Self::SPIN,
        }
    }
}

impl Computing {
    fn is_metal(self) -> bool {
        match self {
            Self::Auto => cfg!(target_os = "macos"),
            Self::Cpu => false,
            Self::Metal => true,
        }
    }

    /// What computes in this arithmetic; `threads` are the processor's.
    ///
    /// # Errors
    /// If there is no such device here, or it cannot round so.
    pub(super) fn open(self, rounding: Rounding, threads: usize) -> Result<Opened> {
        if !self.is_metal() {
            return Ok(Opened::Processor(rounding.into(), threads));
        }
        if rounding != Rounding::Exact {
            let error = Error::usage("--arithmetic fast is for processors; a GPU computes exactly");
            return Err(error.hint("leave --arithmetic out, or add --device cpu"));
        }
        Ok(Opened::Gpu(gpu()?))
    }
}

/// What computes, once it was found.
#[derive(Debug)]
pub(super) enum Opened {
    /// So many threads of the processor.
    Processor(Arithmetic, usize),
    /// A GPU.
    Gpu(Arc<dyn Device>),
}

impl Opened {
    /// A backend of its own, which meets other ranks by `fence` if it is a GPU's.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn backend(&self, fence: Fencing) -> Result<Box<dyn Backend>> {
        Ok(match self {
            Self::Processor(arithmetic, threads) => Box::new(Cpu::new(*threads)?.computing(*arithmetic)),
            Self::Gpu(device) => Box::new(Metal::with_fence(device.clone(), fence.into())),
        })
    }

    /// The GPU, if it is one.
    pub(super) fn gpu(&self) -> Option<&Arc<dyn Device>> {
        match self {
            Self::Processor(..) => None,
            Self::Gpu(device) => Some(device),
        }
    }
}

impl ModelArgs {
    /// How a GPU is met that so many ranks of this machine share.
    ///
    /// # Errors
    /// If `--fence` is said of a processor, or some of them would wait on the GPU for the others.
    pub(super) fn fencing(&self, ranks_here: usize) -> Result<Fencing> {
        let Some(fence) = self.fence else { return Ok(Fencing::Event) };
        if !self.device.is_metal() {
            let error = Error::usage("--fence is how a GPU meets other ranks, and here the processor computes");
            return Err(error.hint("leave --fence out, or add --device metal"));
        }
        if fence == Fencing::Spin && ranks_here > 1 {
            let error = format!(
                "--fence spin: {ranks_here} ranks share this machine's GPU, where each would keep it from the others"
            );
            return Err(Error::usage(error).hint("take --fence event or --fence drain, or one rank a machine"));
        }
        Ok(fence)
    }

    /// How ranks keep keys and values.
    pub(super) fn kv_type(&self) -> KvType {
        Arithmetic::from(self.arithmetic).kv_type()
    }

    /// The name of the arithmetic, which all ranks must share.
    pub(super) fn arithmetic_id(&self) -> &'static str {
        if self.device.is_metal() { Metal::ARITHMETIC } else { Arithmetic::from(self.arithmetic).id() }
    }
}

#[cfg(target_os = "macos")]
fn gpu() -> Result<Arc<dyn Device>> {
    let gpu = crate::gpu::apple::system().map_err(|error| match error.hint_text() {
        Some(_) => error,
        None => error.hint("--device cpu computes on the processor"),
    })?;
    Ok(Arc::new(gpu))
}

#[cfg(not(target_os = "macos"))]
fn gpu() -> Result<Arc<dyn Device>> {
    Err(Error::usage("--device metal is for Macs").hint("leave --device out: the processor computes"))
}
