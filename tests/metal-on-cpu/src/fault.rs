//! What the processor stops kernels at, as an error of the call.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr::null_mut;
use std::sync::{Arc, Once};

use crate::commands::Recorded;
use crate::fiber;
use crate::group::{RUNNING, Runner};
use crate::memory::Memory;

static INSTALLED: Once = Once::new();
static mut BEFORE: MaybeUninit<[libc::sigaction; 2]> = MaybeUninit::uninit();
const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Installs the handler of this process.
pub(crate) fn catch() {
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero action is one; this runs once, and handlers read what was before only afterwards
        unsafe {
            let mut before: [libc::sigaction; 2] = zeroed();
            let mut action: libc::sigaction = zeroed();
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            action.sa_sigaction = stopped as *const () as usize;
            for (signal, old) in SIGNALS.into_iter().zip(&mut before) {
                libc::sigaction(signal, null_mut(), old);
            }
            (&raw mut BEFORE).write(MaybeUninit::new(before));
            for signal in SIGNALS {
                libc::sigaction(signal, &raw const action, null_mut());
            }
        }
    });
}

/// Leaves the kernel for what has called it; what happens elsewhere is for the handler before.
unsafe extern "C" fn stopped(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let runner = RUNNING.get();
    // SAFETY: the kernel hands over what it gives handlers; the kernel that ran is not gone on with, so that nobody sees
    // what it has left half done
    unsafe {
        if runner.is_null() {
            let at = usize::from(signal != SIGNALS[0]);
            libc::sigaction(signal, &(&raw const BEFORE).cast::<libc::sigaction>().add(at).read(), null_mut());
            return;
        }
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        (*runner).stop((*info).si_addr() as usize, registers);
    }
}

impl Runner {
    #[cfg(target_arch = "x86_64")]
    fn stop(&mut self, address: usize, registers: &mut libc::mcontext_t) {
        let [error, code, to, argument] =
            [libc::REG_ERR, libc::REG_RIP, libc::REG_RIP, libc::REG_RDI].map(|at| at as usize);
        self.fault = Some((address, registers.gregs[code] as usize, Some(registers.gregs[error] & 2 != 0)));
        registers.gregs[argument] = self.main() as i64;
        registers.gregs[to] = fiber::resume as *const () as i64;
    }

    #[cfg(target_arch = "aarch64")]
    fn stop(&mut self, address: usize, registers: &mut libc::mcontext_t) {
        self.fault = Some((address, registers.pc as usize, None));
        registers.regs[0] = self.main() as u64;
        registers.pc = fiber::resume as *const () as u64;
    }
}

/// What the last threadgroup was stopped at, if it was.
pub(crate) fn explain(runner: &mut Runner, call: &Recorded, memories: &[Arc<Memory>]) -> Option<String> {
    let (address, code, writes) = runner.fault.take()?;
    let verb = match writes {
        Some(true) => "writes",
        Some(false) => "reads",
        None => "touches",
    };
    let of = |memory: &Arc<Memory>| matches!(&**memory, Memory::Own(own) if own.around().contains(&address));
    let what = match memories.iter().find(|memory| of(memory)) {
        None => format!("address {address:#x}, where there is no buffer"),
        Some(memory) => {
            let index = call.arguments.iter().position(|bound| Arc::ptr_eq(&bound.memory, memory));
            let name = index.map_or("a buffer that it was not given".to_owned(), |index| format!("argument {index}"));
            let offset = address as i64 - memory.kernels() as i64;
            format!("byte {offset} of {name} (a buffer of {})", memory.len())
        }
    };
    Some(format!("thread {} {verb} {what}, at {}", runner.current(), place(code)))
}

/// File and line of code, if there is a tool that tells.
pub(crate) fn place(code: usize) -> String {
    // SAFETY: an all-zero answer is one, and it is written before it is read
    let found = unsafe {
        let mut info: libc::Dl_info = zeroed();
        (libc::dladdr(code as *const c_void, &raw mut info) != 0 && !info.dli_fname.is_null()).then(|| {
            let file = std::ffi::CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned();
            (file, code - info.dli_fbase as usize)
        })
    };
    let line = found.and_then(|(file, offset)| {
        let mut tool = std::process::Command::new("addr2line");
        let output = tool.args(["-e", &file]).arg(format!("{offset:#x}")).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !text.starts_with("??")).then_some(text)
    });
    // the file's name and its folder's
    let short =
        |line: String| line.rsplitn(3, '/').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("/");
    let line = line.map(short);
    line.unwrap_or_else(|| "an unknown line".to_owned())
}
