//! Stacks, and going from one to another.

use std::ptr::null_mut;

/// Bytes of a stack, with the guard page below it.
const STACK: usize = 128 << 10;

/// Leaves the stack that is used, noting it at `save`, for the one noted as `to`.
///
/// # Safety
/// `to` was noted by this function or comes from [`Stacks::begin`], and nobody else uses it.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    std::arch::naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rdi, rsi",
        "jmp {resume}",
        resume = sym resume,
    )
}

/// Goes on with the stack noted as `to`; what ran before does not.
///
/// # Safety
/// As for [`switch`].
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn resume(to: *mut u8) {
    std::arch::naked_asm!("mov rsp, rdi", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret",)
}

/// Leaves the stack that is used, noting it at `save`, for the one noted as `to`.
///
/// # Safety
/// `to` was noted by this function or comes from [`Stacks::begin`], and nobody else uses it.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    std::arch::naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov x0, x1",
        "b {resume}",
        resume = sym resume,
    )
}

/// Goes on with the stack noted as `to`; what ran before does not.
///
/// # Safety
/// As for [`switch`].
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn resume(to: *mut u8) {
    std::arch::naked_asm!(
        "mov sp, x0",
        "ldp x19, x20, [sp]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "ret",
    )
}

/// Stacks that are used again and again, made when they are first needed.
#[derive(Default)]
pub(crate) struct Stacks {
    all: Vec<*mut u8>,
    free: Vec<usize>,
}

impl Stacks {
    /// The number of a stack that nobody uses.
    pub(crate) fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.all.push(crate::memory::reserve_guarded(STACK));
            self.all.len() - 1
        })
    }

    /// It is not used any more, except by who leaves it next.
    pub(crate) fn give_back(&mut self, stack: usize) {
        self.free.push(stack);
    }

    /// None of them is used any more.
    pub(crate) fn reset(&mut self) {
        self.free = (0..self.all.len()).collect();
    }

    /// What to go on with so that `entry` starts on `stack`; it must not return.
    pub(crate) fn begin(&self, stack: usize, entry: extern "C" fn() -> !) -> *mut u8 {
        let top = self.all[stack].wrapping_add(STACK).cast::<*mut u8>();
        let entry = entry as *mut u8;
        // SAFETY: the words lie at the top of a stack that nobody uses
        unsafe {
            if cfg!(target_arch = "x86_64") {
                // where `entry` would return to, which leaves the stack aligned as after a call
                *top.sub(1) = null_mut();
                *top.sub(2) = entry;
                (3..=8).for_each(|word| *top.sub(word) = null_mut());
                top.sub(8).cast()
            } else {
                *top.sub(20 - 11) = entry;
                top.sub(20).cast()
            }
        }
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        self.all.iter().for_each(|stack| crate::memory::release_guarded(*stack, STACK));
    }
}
