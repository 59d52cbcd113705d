//! A thin use of the loaded library: one end of a link with its objects.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_verbs::Fabric;
use fake_verbs::abi::*;

macro_rules! symbols {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Clone, Copy)]
        pub struct Verbs { $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Verbs {
            pub fn open(path: &Path) -> Self {
                let path = CString::new(path.to_str().unwrap()).unwrap();
                // SAFETY: the library runs nothing when it is loaded; the types are the header's.
                unsafe {
                    let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
                    assert!(!library.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
                    Self { $($name: {
                        let name = CString::new(stringify!($name)).unwrap();
                        let symbol = libc::dlsym(library, name.as_ptr());
                        assert!(!symbol.is_null(), "{name:?}");
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(symbol)
                    },)* }
                }
            }
        }
    };
}

symbols! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device);
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_query_gid: fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut c_void, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    ibv_wc_status_str: fn(u32) -> *const c_char;
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// What one end tells the other.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub qp_num: u32,
    pub gid: [u8; 16],
}

/// One end of a link: all that hangs on one open device, with a buffer of a megabyte.
pub struct End {
    pub verbs: Verbs,
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub cq: *mut Cq,
    pub mr: *mut Mr,
    pub qp: *mut Qp,
    pub buffer: *mut u8,
    pub kind: u32,
    pub gid_index: usize,
    pub done: VecDeque<Wc>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for End {}

pub const BUFFER: usize = 1 << 20;

pub fn aligned(len: usize) -> *mut u8 {
    let mut buffer = std::ptr::null_mut();
    // SAFETY: memory of the system's allocator.
    unsafe {
        assert_eq!(libc::posix_memalign(&mut buffer, 16384, len), 0);
        buffer.cast::<u8>().write_bytes(0, len);
    }
    buffer.cast()
}

pub fn open(verbs: Verbs, name: &str) -> *mut Context {
    // SAFETY: a list is used before it is freed.
    unsafe {
        let mut count = 0;
        let list = (verbs.ibv_get_device_list)(&mut count);
        assert!(!list.is_null(), "no devices: {}", errno());
        let devices = std::slice::from_raw_parts(list, count as usize);
        let named = |device: &&*mut Device| CStr::from_ptr((verbs.ibv_get_device_name)(**device)).to_str() == Ok(name);
        let context = (verbs.ibv_open_device)(*devices.iter().find(named).expect(name));
        (verbs.ibv_free_device_list)(list);
        assert!(!context.is_null());
        context
    }
}

pub fn init_attr(cq: *mut Cq, kind: u32, depth: u32) -> QpInitAttr {
    let cap = QpCap { max_send_wr: depth, max_recv_wr: depth, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
    let null = std::ptr::null_mut();
    QpInitAttr { qp_context: null, send_cq: cq, recv_cq: cq, srq: null, cap, qp_type: kind, sq_sig_all: 0 }
}

impl End {
    pub fn new(verbs: Verbs, device: &str, kind: u32, depth: u32) -> Self {
        let context = open(verbs, device);
        // SAFETY: live handles.
        unsafe {
            let pd = (verbs.ibv_alloc_pd)(context);
            let cq = (verbs.ibv_create_cq)(context, 8192, std::ptr::null_mut(), std::ptr::null_mut(), 0);
            assert!(!pd.is_null() && !cq.is_null());
            let buffer = aligned(BUFFER);
            let mr = (verbs.ibv_reg_mr)(pd, buffer.cast(), BUFFER, 7);
            let qp = (verbs.ibv_create_qp)(pd, &mut init_attr(cq, kind, depth));
            assert!(!mr.is_null() && !qp.is_null(), "{}", errno());
            let mut end = Self { verbs, context, pd, cq, mr, qp, buffer, kind, gid_index: 0, done: VecDeque::new() };
            end.gid_index =
                (0..8).find(|&at| end.gid(at)[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255]).unwrap_or(0);
            end
        }
    }

    pub fn gid(&self, index: usize) -> [u8; 16] {
        let mut gid = Gid::default();
        // SAFETY: a live handle.
        assert_eq!(unsafe { (self.verbs.ibv_query_gid)(self.context, 1, index as c_int, &mut gid) }, 0);
        gid.0
    }

    pub fn address(&self) -> Address {
        // SAFETY: a live handle.
        Address { qp_num: unsafe { (*self.qp).qp_num }, gid: self.gid(self.gid_index) }
    }

    pub fn modify(&self, attr: QpAttr, bits: u32) -> c_int {
        let mut attr = attr;
        // SAFETY: a live handle.
        unsafe { (self.verbs.ibv_modify_qp)(self.qp, &mut attr, bits as c_int) }
    }

    pub fn init(&self) -> c_int {
        let attr = QpAttr { qp_state: state::INIT, port_num: 1, qp_access_flags: 7, ..QpAttr::default() };
        self.modify(attr, mask::STATE | mask::PKEY_INDEX | mask::PORT | mask::ACCESS_FLAGS)
    }

    pub fn rtr_attr(&self, peer: Address) -> QpAttr {
        let mut attr = QpAttr { qp_state: state::RTR, path_mtu: 3, rq_psn: 7, ..QpAttr::default() };
        attr.dest_qp_num = peer.qp_num;
        attr.max_dest_rd_atomic = 1;
        attr.min_rnr_timer = 12;
        attr.ah_attr.is_global = 1;
        attr.ah_attr.port_num = 1;
        attr.ah_attr.grh.hop_limit = 1;
        attr.ah_attr.grh.sgid_index = self.gid_index as u8;
        attr.ah_attr.grh.dgid.0 = peer.gid;
        attr
    }

    pub fn rtr(&self, attr: QpAttr) -> c_int {
        let bits = mask::STATE | mask::AV | mask::PATH_MTU | mask::DEST_QPN | mask::RQ_PSN;
        self.modify(attr, bits | if self.kind == RC { mask::MAX_DEST_RD_ATOMIC | mask::MIN_RNR_TIMER } else { 0 })
    }

    pub fn rts(&self) -> c_int {
        let mut attr = QpAttr { qp_state: state::RTS, sq_psn: 7, ..QpAttr::default() };
        (attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.max_rd_atomic) = (18, 7, 7, 1);
        let rc = mask::TIMEOUT | mask::RETRY_CNT | mask::RNR_RETRY | mask::MAX_QP_RD_ATOMIC;
        self.modify(attr, mask::STATE | mask::SQ_PSN | if self.kind == RC { rc } else { 0 })
    }

    pub fn connect(&self, peer: Address) {
        assert_eq!(self.init(), 0);
        assert_eq!(self.rtr(self.rtr_attr(peer)), 0);
        assert_eq!(self.rts(), 0);
    }

    pub fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= BUFFER);
        // SAFETY: a part of the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.add(at), len) }
    }

    pub fn sge(&self, at: usize, len: usize) -> Sge {
        // SAFETY: a live handle.
        Sge { addr: self.buffer as u64 + at as u64, length: len as u32, lkey: unsafe { (*self.mr).lkey } }
    }

    pub fn post(&self, wr: &mut SendWr) -> c_int {
        let mut bad = std::ptr::null_mut();
        // SAFETY: live handles; the header's inline function does the same.
        unsafe { (*(*self.qp).context).ops.post_send.unwrap()(self.qp, wr, &mut bad) }
    }

    pub fn send(&self, id: u64, at: usize, len: usize) -> c_int {
        let mut sge = self.sge(at, len);
        self.post(&mut send_wr(id, &mut sge))
    }

    pub fn recv(&self, id: u64, at: usize, len: usize) -> c_int {
        let mut sge = self.sge(at, len);
        let mut wr = RecvWr { wr_id: id, next: std::ptr::null_mut(), sg_list: &mut sge, num_sge: 1 };
        let mut bad = std::ptr::null_mut();
        // SAFETY: live handles; the header's inline function does the same.
        unsafe { (*(*self.qp).context).ops.post_recv.unwrap()(self.qp, &mut wr, &mut bad) }
    }

    /// What `ibv_poll_cq` returns.
    pub fn poll(&mut self) -> c_int {
        let mut wc = [Wc::default(); 8];
        // SAFETY: live handles; the header's inline function does the same.
        let count = unsafe { (*(*self.cq).context).ops.poll_cq.unwrap()(self.cq, 8, wc.as_mut_ptr()) };
        self.done.extend(&wc[..count.max(0) as usize]);
        count
    }

    /// The completion of `id`, or none within a time.
    pub fn within(&mut self, id: u64, time: Duration) -> Option<Wc> {
        let start = Instant::now();
        for round in 1u64.. {
            if let Some(at) = self.done.iter().position(|wc| wc.wr_id == id) {
                return self.done.remove(at);
            }
            if self.poll() <= 0 && start.elapsed() > time {
                break;
            }
            if round.is_multiple_of(100) {
                // the other side may need this processor
                std::thread::yield_now();
            }
        }
        None
    }

    pub fn wait(&mut self, id: u64) -> Wc {
        self.within(id, Duration::from_secs(10)).unwrap_or_else(|| panic!("no completion of {id}"))
    }

    pub fn never(&mut self, id: u64) {
        assert_eq!(self.within(id, Duration::from_millis(50)), None);
    }

    /// Destroys all in the order that is right.
    pub fn end(self) {
        // SAFETY: live handles, for the last time.
        unsafe {
            assert_eq!((self.verbs.ibv_destroy_qp)(self.qp), 0);
            assert_eq!((self.verbs.ibv_destroy_cq)(self.cq), 0);
            assert_eq!((self.verbs.ibv_dereg_mr)(self.mr), 0);
            assert_eq!((self.verbs.ibv_dealloc_pd)(self.pd), 0);
            assert_eq!((self.verbs.ibv_close_device)(self.context), 0);
            libc::free(self.buffer.cast());
        }
    }
}

pub fn send_wr(id: u64, sge: &mut Sge) -> SendWr {
    SendWr {
        wr_id: id,
        next: std::ptr::null_mut(),
        sg_list: sge,
        num_sge: 1,
        opcode: SEND,
        send_flags: SIGNALED,
        imm_data: 0,
        rest: [0; 11],
    }
}

fn parse(line: &str) -> Address {
    let (number, gid) = line.split_once(" [").unwrap();
    let gid: Vec<u8> = gid.trim().trim_end_matches(']').split(", ").map(|byte| byte.parse().unwrap()).collect();
    Address { qp_num: number.parse().unwrap(), gid: gid.try_into().unwrap() }
}

/// In the other process: tells the address, hears the first one's, connects.
pub fn meet_other(end: End) -> End {
    let mine = end.address();
    // libtest may have begun the line
    println!("\n{} {:?}", mine.qp_num, mine.gid);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    end.connect(parse(&line));
    println!("connected");
    end
}

/// An ignored test of this program, in a process of its own.
pub struct Other {
    pub child: Child,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

type Lines = Box<dyn Iterator<Item = String>>;

impl Other {
    pub fn start(fabric: &Fabric, host: &str, test: &str, env: &[(&str, &str)]) -> (Self, Lines) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--ignored", "--nocapture"])
            .envs(fabric.env(host))
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        (Self { child }, Box::new(lines))
    }

    /// In the first process: connects to the other one.
    pub fn meet(&mut self, lines: &mut Lines, end: End) -> End {
        let address = lines.find(|line| line.ends_with(']') && line.contains(" [")).unwrap();
        end.connect(parse(&address));
        let mine = end.address();
        writeln!(self.child.stdin.take().unwrap(), "{} {:?}", mine.qp_num, mine.gid).unwrap();
        assert!(lines.any(|line| line == "connected"));
        end
    }
}
