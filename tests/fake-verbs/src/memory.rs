//! Protection domains and the regions that are registered in them.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi::{self, Context, LOCAL_WRITE, Mr, Sge};
use crate::device::Opened;
use crate::handle::{self, Owned};
use crate::home::{Errno, Full, Home, Object, locked, raise};
use crate::rules::{self, Rule};
use crate::slip;

/// Apple Silicon's pages.
const PAGE: usize = 16384;

struct Region {
    lkey: u32,
    start: u64,
    end: u64,
}

/// What queue pairs know of a domain.
pub(crate) struct Domain {
    pub(crate) home: Arc<Home>,
    pub(crate) index: usize,
    regions: Mutex<Vec<Region>>,
    pub(crate) pairs: AtomicU32,
    /// A queue pair was moved to ERR, which on a Mac spoils the release of regions.
    pub(crate) spoilt: AtomicBool,
}

impl Domain {
    /// Whether a live region has all of it.
    pub(crate) fn covers(&self, part: &Sge) -> bool {
        let end = part.addr.checked_add(u64::from(part.length));
        let covers = |region: &Region| region.lkey == part.lkey && region.start <= part.addr && end <= Some(region.end);
        part.length == 0 || (end.is_some() && locked(&self.regions).iter().any(covers))
    }

    fn violation(&self, rule: Rule, detail: &str) {
        self.home.violation(rule, self.index, detail);
    }
}

/// A protection domain.
pub(crate) struct DomainHandle {
    pub(crate) domain: Arc<Domain>,
    object: Object,
}

impl Owned for DomainHandle {
    type Public = abi::Pd;
    const MAGIC: u64 = 0x646f_6d61_696e_0003;

    fn place(&self) -> (&Home, usize) {
        (&self.domain.home, self.domain.index)
    }
}

/// A region.
pub(crate) struct RegionHandle {
    domain: Arc<Domain>,
    lkey: u32,
    object: Object,
}

impl Owned for RegionHandle {
    type Public = Mr;
    const MAGIC: u64 = 0x7265_6769_6f6e_0004;

    fn place(&self) -> (&Home, usize) {
        (&self.domain.home, self.domain.index)
    }
}

/// A new domain.
///
/// # Safety
///
/// A context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_alloc_pd(context: *mut Context) -> *mut abi::Pd {
    // SAFETY: a handle, as the caller promises.
    let Some(opened) = (unsafe { handle::get::<Opened>(context) }) else {
        raise(libc::EINVAL);
        return std::ptr::null_mut();
    };
    slip::make(&opened.home.config, "too-many-pds", || allocate(context, opened))
}

fn allocate(context: *mut Context, opened: &Opened) -> *mut abi::Pd {
    if opened.spoilt() {
        return std::ptr::null_mut();
    }
    let object = match opened.home.record(opened.index, "pd", opened.device().limits.max_pd) {
        Ok(object) => object,
        Err(Full { own }) => {
            if own {
                opened.violation(rules::TOO_MANY_PDS, "alloc_pd");
            }
            opened.fail(Errno::Memory);
            return std::ptr::null_mut();
        }
    };
    opened.users.fetch_add(1, Ordering::AcqRel);
    let domain = Arc::new(Domain {
        home: opened.home.clone(),
        index: opened.index,
        regions: Mutex::default(),
        pairs: AtomicU32::new(0),
        spoilt: AtomicBool::new(false),
    });
    handle::make(abi::Pd { context, handle: object.number }, DomainHandle { domain, object })
}

/// Ends a domain.
///
/// # Safety
///
/// A domain.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dealloc_pd(pd: *mut abi::Pd) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<DomainHandle>(pd) }) else { return raise(libc::EINVAL) };
    let (regions, pairs) = (locked(&own.domain.regions).len(), own.domain.pairs.load(Ordering::Acquire));
    if regions != 0 || pairs != 0 {
        own.domain.violation(rules::ORDER, &format!("dealloc_pd with {regions} regions and {pairs} queue pairs"));
        return raise(own.domain.home.errno(Errno::Busy));
    }
    // SAFETY: a live handle; handles are never freed, so its context can be asked.
    unsafe {
        if handle::end::<DomainHandle>(pd) {
            own.object.release();
            if let Some(opened) = handle::get::<Opened>((*pd).context) {
                opened.users.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
    0
}

/// All of its pages are there.
fn mapped(addr: *mut c_void, len: usize) -> bool {
    // SAFETY: asks the kernel for the size of pages.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = addr as usize & !(page - 1);
    // SAFETY: msync reads no memory, and with MS_ASYNC it does nothing but find holes.
    unsafe { libc::msync(start as *mut c_void, addr as usize + len - start, libc::MS_ASYNC) == 0 }
}

/// Registers memory.
///
/// # Safety
///
/// A domain; the memory stays mapped until it is deregistered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr(pd: *mut abi::Pd, addr: *mut c_void, length: usize, access: c_int) -> *mut Mr {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<DomainHandle>(pd) }) else {
        raise(libc::EINVAL);
        return std::ptr::null_mut();
    };
    // SAFETY: a live handle.
    let context = unsafe { (*pd).context };
    slip::make(&own.domain.home.config, "too-many-mrs", || register(context, pd, &own.domain, addr, length, access))
}

fn register(
    context: *mut Context,
    pd: *mut abi::Pd,
    domain: &Arc<Domain>,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    let home = &domain.home;
    let (shifted, length, access) = slip::register(&home.config, addr as usize, length, access);
    let addr = addr.with_addr(shifted);
    if home.spoilt(domain.index).is_some() {
        return std::ptr::null_mut();
    }
    let refuse = |rule: Option<Rule>, detail: String, error: Errno| {
        if let Some(rule) = rule {
            domain.violation(rule, &detail);
        }
        raise(home.errno(error));
        std::ptr::null_mut()
    };
    if length == 0 || !mapped(addr, length) {
        return refuse(Some(rules::MR_UNMAPPED), format!("{length} bytes at {addr:p}"), Errno::Fault);
    }
    let needed = match home.config.local_write_only_rejected {
        true => 7,
        false => LOCAL_WRITE,
    };
    if home.apple() && access & needed != needed {
        return refuse(Some(rules::ACCESS), format!("reg_mr with access {access}"), Errno::Invalid);
    }
    if home.apple() && !(addr as usize).is_multiple_of(PAGE) {
        return refuse(Some(rules::MR_ALIGNMENT), format!("reg_mr at {addr:p}"), Errno::Invalid);
    }
    if home.apple() && length as u64 > 1 << 32 {
        domain.violation(rules::MR_TOO_LARGE, &format!("{length} bytes"));
    }
    let object = match home.record(domain.index, "mr", home.config.devices[domain.index].limits.max_mr) {
        Ok(object) => object,
        Err(Full { own }) => {
            return refuse(own.then_some(rules::TOO_MANY_MRS), String::from("reg_mr"), Errno::Memory);
        }
    };
    let lkey = object.number << 8 | 0x5a;
    let start = addr as u64;
    locked(&domain.regions).push(Region { lkey, start, end: start + length as u64 });
    let public = Mr { context, pd, addr, length, handle: object.number, lkey, rkey: lkey ^ 0xff };
    handle::make(public, RegionHandle { domain: domain.clone(), lkey, object })
}

/// Takes memory back.
///
/// # Safety
///
/// A region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dereg_mr(mr: *mut Mr) -> c_int {
    // SAFETY: a handle, as the caller promises.
    let Some(own) = (unsafe { handle::get::<RegionHandle>(mr) }) else { return raise(libc::EINVAL) };
    if own.domain.spoilt.load(Ordering::Acquire) {
        return raise(own.domain.home.errno(Errno::Invalid));
    }
    // SAFETY: as above.
    if unsafe { handle::end::<RegionHandle>(mr) } {
        locked(&own.domain.regions).retain(|region| region.lkey != own.lkey);
        own.object.release();
    }
    0
}
