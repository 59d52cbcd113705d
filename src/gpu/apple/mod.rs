//! A Mac's GPU, by objc2-metal alone: candle-metal-kernels' encoders order what they run by themselves, and its buffers are
//! Metal's own memory.

mod commands;
mod event;
mod memory;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSError, NSProcessInfo, NSString};
use objc2_metal::{
    MTLCommandQueue, MTLCompileOptions, MTLComputePipelineState, MTLCreateSystemDefaultDevice, MTLDevice, MTLFence,
    MTLGPUFamily, MTLLanguageVersion, MTLLibrary, MTLMathFloatingPointFunctions, MTLMathMode,
};

use self::event::SharedEvent;
use self::memory::Residency;
use super::{Buffer, Commands, Device, Event, FENCES, Kernel, SOURCE};
use crate::error::{Error, Result};

// without it a command-line program has no default device
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

/// The first macOS with residency sets and version 3.2 of Metal's language.
const MACOS: isize = 15;

/// Threads of a SIMD-group, which kernels rely on.
const LANES: usize = 32;

/// The GPU of this Mac, with a queue of its own.
pub struct Apple(Arc<Inner>);

struct Inner {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    /// Passed on from each list of commands to the next, because nothing else orders untracked buffers.
    fence: Retained<ProtocolObject<dyn MTLFence>>,
    library: Retained<ProtocolObject<dyn MTLLibrary>>,
    /// [`FENCES`], or what Metal says against them.
    fences: std::result::Result<Retained<ProtocolObject<dyn MTLLibrary>>, String>,
    residency: Arc<Residency>,
    kernels: RwLock<Vec<Compiled>>,
}

#[derive(Clone)]
struct Compiled {
    name: Arc<str>,
    pipeline: Retained<ProtocolObject<dyn MTLComputePipelineState>>,
    threads: usize,
}

/// Opens the GPU of this Mac and compiles [`SOURCE`] for it.
///
/// # Errors
/// If there is none that can run the kernels, or they do not compile.
pub fn system() -> Result<Apple> {
    autoreleasepool(|_| {
        let version = NSProcessInfo::processInfo().operatingSystemVersion();
        if version.majorVersion < MACOS {
            let (major, minor) = (version.majorVersion, version.minorVersion);
            let error =
                Error::msg(format_args!("this is macOS {major}.{minor}, and Metal is used from macOS {MACOS} on"));
            return Err(error.hint("update macOS, or compute on the CPU"));
        }
        let device = MTLCreateSystemDefaultDevice().ok_or_else(|| {
            Error::msg("macOS shows this process no GPU")
                .hint("a virtual machine may have none; on a Mac log in once at its screen, or compute on the CPU")
        })?;
        if !device.supportsFamily(MTLGPUFamily::Apple7) || !device.supportsFamily(MTLGPUFamily::Metal3) {
            let error = Error::msg(format_args!("the GPU `{}` is not one of Apple silicon", device.name()));
            return Err(error.hint("compute on the CPU"));
        }
        let gone = |what: &str| Error::msg(format_args!("the GPU `{}` gives no {what}", device.name()));
        let queue = device.newCommandQueue().ok_or_else(|| gone("command queue"))?;
        let fence = device.newFence().ok_or_else(|| gone("fence"))?;
        let residency = Arc::new(Residency::new(&device, &queue)?);
        let library = |source| {
            let library = device.newLibraryWithSource_options_error(&NSString::from_str(source), Some(&options()));
            library.map_err(|error| said("Metal does not compile the kernels", &error))
        };
        let fences = library(FENCES).map_err(|error| error.to_string());
        let library = library(SOURCE)?;
        Ok(Apple(Arc::new(Inner { device, queue, fence, library, fences, residency, kernels: RwLock::default() })))
    })
}

/// No shortcut in the arithmetic that the same kernel on another device would not take.
fn options() -> Retained<MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    options.setLanguageVersion(MTLLanguageVersion::Version3_2);
    options.setMathMode(MTLMathMode::Safe);
    options.setMathFloatingPointFunctions(MTLMathFloatingPointFunctions::Precise);
    options.setPreserveInvariance(true);
    options
}

/// What Metal says, whole.
fn said(what: &str, error: &NSError) -> Error {
    Error::msg(format_args!("{what}: {} (code {})", error.localizedDescription(), error.code()))
}

impl Apple {
    /// Bytes that buffers may have together before macOS makes room by evicting some.
    pub fn working_set(&self) -> u64 {
        self.0.device.recommendedMaxWorkingSetSize()
    }
}

impl fmt::Debug for Apple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apple").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Device for Apple {
    fn name(&self) -> String {
        autoreleasepool(|_| self.0.device.name().to_string())
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        autoreleasepool(|_| memory::allocate(&self.0.device, &self.0.residency, bytes))
    }

    fn adopt(&self, bytes: &Bytes) -> Result<(Buffer, usize)> {
        autoreleasepool(|_| memory::adopt(&self.0.device, &self.0.residency, bytes))
    }

    fn constant(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<Buffer> {
        let buffer = self.allocate(bytes)?;
        // SAFETY: so many bytes, zeroed, that nobody else knows of yet
        fill(unsafe { std::slice::from_raw_parts_mut(buffer.start().as_ptr(), bytes) });
        Ok(buffer)
    }

    fn kernels(&self) -> Vec<String> {
        autoreleasepool(|_| {
            let libraries = [Some(&self.0.library), self.0.fences.as_ref().ok()];
            let names = libraries.into_iter().flatten().map(|library| library.functionNames());
            names.flat_map(|names| names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).collect()
        })
    }

    fn kernel(&self, name: &str) -> Result<Kernel> {
        let mut kernels = self.0.kernels.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kernels.iter().position(|kernel| &*kernel.name == name) {
            return Ok(Kernel(known));
        }
        kernels.push(autoreleasepool(|_| self.0.compile(name))?);
        Ok(Kernel(kernels.len() - 1))
    }

    fn commands(&self) -> Result<Box<dyn Commands>> {
        autoreleasepool(|_| Ok(Box::new(commands::Encoding::start(&self.0)?) as Box<dyn Commands>))
    }

    fn event(&self) -> Result<Arc<dyn Event>> {
        autoreleasepool(|_| Ok(Arc::new(SharedEvent::new(&self.0.device)?) as Arc<dyn Event>))
    }
}

impl Inner {
    fn compile(&self, name: &str) -> Result<Compiled> {
        let absent = || Error::msg(format_args!("there is no kernel `{name}`"));
        let library = match name.starts_with("fence_") {
            false => &self.library,
            true => self.fences.as_ref().map_err(|why| absent().context(why))?,
        };
        let function = library.newFunctionWithName(&NSString::from_str(name)).ok_or_else(absent)?;
        let pipeline = self
            .device
            .newComputePipelineStateWithFunction_error(&function)
            .map_err(|error| said(&format!("Metal does not compile the kernel `{name}`"), &error))?;
        let (lanes, threads) = (pipeline.threadExecutionWidth(), pipeline.maxTotalThreadsPerThreadgroup());
        if lanes != LANES {
            let error = format_args!("kernel `{name}`: SIMD-groups of this GPU have {lanes} threads, not {LANES}");
            return Err(Error::msg(error));
        }
        Ok(Compiled { name: name.into(), pipeline, threads })
    }

    fn compiled(&self, kernel: Kernel) -> Result<Compiled> {
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        kernels.get(kernel.0).cloned().ok_or_else(|| Error::msg("a kernel of another device"))
    }
}
