//! A list of commands as one concurrent compute pass, and how it went.

use std::any::Any;
use std::ffi::c_void;
use std::fmt::Display;
use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{
    MTLBarrierScope, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue,
    MTLComputeCommandEncoder, MTLDispatchType, MTLEvent, MTLSize,
};

use super::memory::Pages;
use super::{Compiled, Inner, SharedEvent, said};
use crate::error::{Error, Result};
use crate::gpu::{Argument, Buffer, Call, Commands, Event, Pending};

/// Buffers of a call: Metal has 31 indices, of which the last is for params.
const BUFFERS: usize = 30;

/// Bytes that can be handed over without a buffer.
const PARAMS: usize = 4096;

/// Bytes of the three counts of an indirect dispatch.
const COUNTS: usize = 12;

/// Kernels that an error names.
const NAMED: usize = 8;

/// Commands that are being written down.
pub(super) struct Encoding {
    device: Arc<Inner>,
    commands: Retained<ProtocolObject<dyn MTLCommandBuffer>>,
    encoder: Retained<ProtocolObject<dyn MTLComputeCommandEncoder>>,
    ended: bool,
    used: Used,
}

/// What has to live until the commands have run, because Metal is told not to retain it.
#[derive(Default)]
struct Used {
    buffers: Vec<Arc<Buffer>>,
    kernels: Vec<Compiled>,
}

// SAFETY: Metal's command buffers and encoders belong to no thread, and `&mut` lets one at a time at these
unsafe impl Send for Encoding {}

impl Encoding {
    pub(super) fn start(device: &Arc<Inner>) -> Result<Self> {
        let gone = || Error::msg("the GPU takes no more commands").hint("it was removed or reset; start again");
        let commands = device.queue.commandBufferWithUnretainedReferences().ok_or_else(gone)?;
        let encoder = commands.computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent).ok_or_else(gone)?;
        encoder.waitForFence(&device.fence);
        Ok(Self { device: device.clone(), commands, encoder, ended: false, used: Used::default() })
    }

    fn end(&mut self) {
        if !mem::replace(&mut self.ended, true) {
            self.encoder.updateFence(&self.device.fence);
            self.encoder.endEncoding();
        }
    }

    /// The pages of the buffer `what` of a call of `name`, which has the bytes that it is said to.
    fn pages<'b>(&self, argument: &'b Argument<'_>, name: &str, what: impl Display) -> Result<&'b Pages> {
        let pages = argument.buffer.handle::<Pages>().filter(|pages| pages.is_of(&self.device.residency));
        let pages = pages.ok_or_else(|| Error::msg(format_args!("`{name}`: buffer {what} is of another device")))?;
        let (bytes, len) = (&argument.bytes, argument.buffer.len());
        if bytes.start > bytes.end || bytes.end > len {
            return Err(Error::msg(format_args!("`{name}`: buffer {what} has {len} bytes, not {bytes:?}")));
        }
        Ok(pages)
    }

    fn bind(&self, call: &Call<'_>, name: &str) -> Result<()> {
        for (index, argument) in call.arguments.iter().enumerate() {
            let (pages, bytes) = (self.pages(argument, name, index)?, &argument.bytes);
            // SAFETY: the offset is inside the buffer; that the kernel stays in the range is its contract with the caller
            unsafe { self.encoder.setBuffer_offset_atIndex(Some(pages.buffer()), bytes.start, index) };
        }
        if !call.params.is_empty() {
            let params = NonNull::from(call.params).cast::<c_void>();
            // SAFETY: the bytes are there, and Metal copies them before it returns
            unsafe { self.encoder.setBytes_length_atIndex(params, call.params.len(), call.arguments.len()) };
        }
        Ok(())
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        // Metal aborts the process when an encoder goes that was not ended
        self.end();
    }
}

impl Commands for Encoding {
    fn dispatch(&mut self, call: &Call<'_>) -> Result<()> {
        let kernel = self.device.compiled(call.kernel)?;
        let threads = call.threads.iter().try_fold(1, |all: usize, &axis| all.checked_mul(axis as usize)).unwrap_or(0);
        let fault = match (call.arguments.len(), call.params.len()) {
            (buffers, _) if buffers > BUFFERS => Some(format!("{buffers} buffers, {BUFFERS} are possible")),
            (_, params) if params > PARAMS => Some(format!("{params} bytes of params, {PARAMS} are possible")),
            _ if threads == 0 || threads > kernel.threads => {
                Some(format!("{:?} threads a threadgroup, {} are possible", call.threads, kernel.threads))
            }
            _ => None,
        };
        if let Some(fault) = fault {
            return Err(Error::msg(format_args!("`{}`: {fault}", kernel.name)));
        }
        if call.groups.contains(&0) {
            return Ok(());
        }
        self.bind(call, &kernel.name)?;
        self.encoder.setComputePipelineState(&kernel.pipeline);
        match call.counts {
            None => self.encoder.dispatchThreadgroups_threadsPerThreadgroup(size(call.groups), size(call.threads)),
            Some(counts) => {
                let pages = self.pages(counts, &kernel.name, "of counts")?;
                let at = counts.bytes.start;
                if counts.bytes.len() != COUNTS || !at.is_multiple_of(4) {
                    return Err(Error::msg(format_args!("`{}`: bytes {:?} for counts", kernel.name, counts.bytes)));
                }
                // SAFETY: the three words are in the buffer, which lives as long as the commands
                unsafe {
                    self.encoder.dispatchThreadgroupsWithIndirectBuffer_indirectBufferOffset_threadsPerThreadgroup(
                        pages.buffer(),
                        at,
                        size(call.threads),
                    );
                }
            }
        }
        self.used.buffers.extend(call.arguments.iter().chain(call.counts).map(|argument| argument.buffer.clone()));
        self.used.kernels.push(kernel);
        Ok(())
    }

    fn barrier(&mut self) {
        self.encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
    }

    fn signal(&mut self, event: &Arc<dyn Event>, number: u64) -> Result<()> {
        let event = (&**event as &dyn Any).downcast_ref::<SharedEvent>();
        let event = event.ok_or_else(|| Error::msg("an event of another device"))?;
        self.end();
        let event: &ProtocolObject<dyn MTLEvent> = ProtocolObject::from_ref(event.metal());
        self.commands.encodeSignalEvent_value(event, number);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<Box<dyn Pending>> {
        autoreleasepool(|_| {
            self.end();
            self.device.residency.settle();
            self.commands.commit();
            let used = mem::take(&mut self.used);
            Ok(Box::new(Running { commands: self.commands.clone(), used, _device: self.device.clone() })
                as Box<dyn Pending>)
        })
    }
}

fn size([width, height, depth]: [u32; 3]) -> MTLSize {
    MTLSize { width: width as usize, height: height as usize, depth: depth as usize }
}

/// Commands that the GPU has.
struct Running {
    commands: Retained<ProtocolObject<dyn MTLCommandBuffer>>,
    used: Used,
    _device: Arc<Inner>,
}

// SAFETY: a committed command buffer may be asked how it is by any thread
unsafe impl Send for Running {}

impl Running {
    /// The kernels among which one has failed; Metal does not say which.
    fn suspects(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for kernel in &self.used.kernels {
            if !names.contains(&&*kernel.name) {
                names.push(&kernel.name);
            }
        }
        let more = if names.len() > NAMED { ", …" } else { "" };
        names.truncate(NAMED);
        format!("{}{more}", names.join(", "))
    }
}

impl Pending for Running {
    fn done(&self) -> bool {
        self.commands.status() >= MTLCommandBufferStatus::Completed
    }

    fn wait(&self) -> Result<()> {
        autoreleasepool(|_| {
            self.commands.waitUntilCompleted();
            match (self.commands.status(), self.commands.error()) {
                (MTLCommandBufferStatus::Completed, _) => Ok(()),
                (_, Some(error)) => Err(said(&format!("the GPU failed in {}", self.suspects()), &error)),
                (status, None) => Err(Error::msg(format_args!("the GPU failed in {}: {status:?}", self.suspects()))),
            }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // the buffers that the commands use go with this
        self.commands.waitUntilCompleted();
    }
}
