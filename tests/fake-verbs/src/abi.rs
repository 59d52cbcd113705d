//! The structures of `infiniband/verbs.h`, spelt from the header itself so that they check the product's own spelling.

use std::ffi::{c_char, c_int, c_void};

/// `enum ibv_qp_type`.
pub const RC: u32 = 2;
/// `enum ibv_qp_type`.
pub const UC: u32 = 3;
/// `enum ibv_access_flags`.
pub const LOCAL_WRITE: c_int = 1;
/// `enum ibv_wr_opcode`.
pub const SEND: u32 = 2;
/// `enum ibv_wr_opcode`.
pub const SEND_WITH_IMM: u32 = 3;
/// `enum ibv_send_flags`.
pub const SIGNALED: u32 = 2;
/// `enum ibv_send_flags`.
pub const INLINE: u32 = 8;
/// `enum ibv_wc_opcode`: of a receive.
pub const WC_RECV: u32 = 128;
/// `enum ibv_wc_flags`.
pub const WC_WITH_IMM: u32 = 2;

/// `enum ibv_wc_status`, those that are given.
#[allow(missing_docs, reason = "the header's names")]
pub mod status {
    pub const SUCCESS: u32 = 0;
    pub const LOC_LEN_ERR: u32 = 1;
    pub const LOC_PROT_ERR: u32 = 4;
    pub const WR_FLUSH_ERR: u32 = 5;
    pub const REM_INV_REQ_ERR: u32 = 9;
    pub const RETRY_EXC_ERR: u32 = 12;
    pub const GENERAL_ERR: u32 = 21;
}

/// `enum ibv_qp_state`.
#[allow(missing_docs, reason = "the header's names")]
pub mod state {
    pub const RESET: u32 = 0;
    pub const INIT: u32 = 1;
    pub const RTR: u32 = 2;
    pub const RTS: u32 = 3;
    pub const SQD: u32 = 4;
    pub const SQE: u32 = 5;
    pub const ERR: u32 = 6;
}

/// `enum ibv_qp_attr_mask`.
#[allow(missing_docs, reason = "the header's names")]
pub mod mask {
    pub const STATE: u32 = 1;
    pub const CUR_STATE: u32 = 1 << 1;
    pub const ACCESS_FLAGS: u32 = 1 << 3;
    pub const PKEY_INDEX: u32 = 1 << 4;
    pub const PORT: u32 = 1 << 5;
    pub const AV: u32 = 1 << 7;
    pub const PATH_MTU: u32 = 1 << 8;
    pub const TIMEOUT: u32 = 1 << 9;
    pub const RETRY_CNT: u32 = 1 << 10;
    pub const RNR_RETRY: u32 = 1 << 11;
    pub const RQ_PSN: u32 = 1 << 12;
    pub const MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    pub const ALT_PATH: u32 = 1 << 14;
    pub const MIN_RNR_TIMER: u32 = 1 << 15;
    pub const SQ_PSN: u32 = 1 << 16;
    pub const MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    pub const PATH_MIG_STATE: u32 = 1 << 18;
    pub const DEST_QPN: u32 = 1 << 20;
}

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[allow(missing_docs, reason = "the header's names")]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

/// A slot of the table that nobody calls.
pub type Unused = Option<unsafe extern "C" fn()>;
/// `ibv_poll_cq`.
pub type PollCq = unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int;
/// `ibv_post_send`.
pub type PostSend = unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int;
/// `ibv_post_recv`.
pub type PostRecv = unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int;

structs! {
    /// `struct ibv_device`
    Device {
        ops: [*const c_void; 2], node_type: c_int, transport_type: c_int,
        name: [c_char; 64], dev_name: [c_char; 64], dev_path: [c_char; 256], ibdev_path: [c_char; 256],
    }
    /// `struct ibv_context_ops`: 32 pointers, of which the header's inline functions call these
    Ops {
        before: [Unused; 11], poll_cq: Option<PollCq>, between: [Unused; 13],
        post_send: Option<PostSend>, post_recv: Option<PostRecv>, after: [Unused; 5],
    }
    /// `struct ibv_context`
    Context {
        device: *mut Device, ops: Ops, cmd_fd: c_int, async_fd: c_int, num_comp_vectors: c_int,
        mutex: libc::pthread_mutex_t, abi_compat: *mut c_void,
    }
    /// `struct ibv_pd`
    Pd { context: *mut Context, handle: u32, }
    /// `struct ibv_mr`
    Mr { context: *mut Context, pd: *mut Pd, addr: *mut c_void, length: usize, handle: u32, lkey: u32, rkey: u32, }
    /// `struct ibv_cq`
    Cq {
        context: *mut Context, channel: *mut c_void, cq_context: *mut c_void, handle: u32, cqe: c_int,
        mutex: libc::pthread_mutex_t, cond: libc::pthread_cond_t,
        comp_events_completed: u32, async_events_completed: u32,
    }
    /// `struct ibv_qp`
    Qp {
        context: *mut Context, qp_context: *mut c_void, pd: *mut Pd, send_cq: *mut Cq, recv_cq: *mut Cq,
        srq: *mut c_void, handle: u32, qp_num: u32, state: u32, qp_type: u32,
        mutex: libc::pthread_mutex_t, cond: libc::pthread_cond_t, events_completed: u32,
    }
    /// `struct ibv_send_wr`, all 128 bytes: what follows `imm_data` is of remote, atomic and datagram operations,
    /// of memory windows and of segmentation, none of which a SEND may set
    SendWr {
        wr_id: u64, next: *mut SendWr, sg_list: *mut Sge, num_sge: c_int, opcode: u32, send_flags: u32,
        imm_data: u32, rest: [u64; 11],
    }
    /// `struct ibv_recv_wr`
    RecvWr { wr_id: u64, next: *mut RecvWr, sg_list: *mut Sge, num_sge: c_int, }
    /// `struct ibv_qp_init_attr`
    QpInitAttr {
        qp_context: *mut c_void, send_cq: *mut Cq, recv_cq: *mut Cq, srq: *mut c_void, cap: QpCap, qp_type: u32,
        sq_sig_all: c_int,
    }
    /// `struct ibv_device_attr`
    DeviceAttr {
        fw_ver: [c_char; 64], node_guid: u64, sys_image_guid: u64, max_mr_size: u64, page_size_cap: u64,
        vendor_id: u32, vendor_part_id: u32, hw_ver: u32, max_qp: c_int, max_qp_wr: c_int, device_cap_flags: u32,
        max_sge: c_int, max_sge_rd: c_int, max_cq: c_int, max_cqe: c_int, max_mr: c_int, max_pd: c_int,
        max_qp_rd_atom: c_int, max_ee_rd_atom: c_int, max_res_rd_atom: c_int, max_qp_init_rd_atom: c_int,
        max_ee_init_rd_atom: c_int, atomic_cap: c_int, max_ee: c_int, max_rdd: c_int, max_mw: c_int,
        max_raw_ipv6_qp: c_int, max_raw_ethy_qp: c_int, max_mcast_grp: c_int, max_mcast_qp_attach: c_int,
        max_total_mcast_qp_attach: c_int, max_ah: c_int, max_fmr: c_int, max_map_per_fmr: c_int, max_srq: c_int,
        max_srq_wr: c_int, max_srq_sge: c_int, max_pkeys: u16, local_ca_ack_delay: u8, phys_port_cnt: u8,
    }
    /// `struct ibv_port_attr` as far as the exported `ibv_query_port` fills it (`_compat_ibv_port_attr`): the
    /// header's inline function clears what follows
    PortAttr {
        state: u32, max_mtu: u32, active_mtu: u32, gid_tbl_len: c_int, port_cap_flags: u32, max_msg_sz: u32,
        bad_pkey_cntr: u32, qkey_viol_cntr: u32, pkey_tbl_len: u16, lid: u16, sm_lid: u16, lmc: u8, max_vl_num: u8,
        sm_sl: u8, subnet_timeout: u8, init_type_reply: u8, active_width: u8, active_speed: u8, phys_state: u8,
        link_layer: u8, flags: u8,
    }
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Default, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the header's names")]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

plain! {
    /// `struct ibv_sge`
    Sge { addr: u64, length: u32, lkey: u32, }
    /// `struct ibv_wc`
    Wc {
        wr_id: u64, status: u32, opcode: u32, vendor_err: u32, byte_len: u32, imm_data: u32, qp_num: u32, src_qp: u32,
        wc_flags: u32, pkey_index: u16, slid: u16, sl: u8, dlid_path_bits: u8,
    }
    /// `struct ibv_qp_cap`
    QpCap { max_send_wr: u32, max_recv_wr: u32, max_send_sge: u32, max_recv_sge: u32, max_inline_data: u32, }
    /// `struct ibv_global_route`
    GlobalRoute { dgid: Gid, flow_label: u32, sgid_index: u8, hop_limit: u8, traffic_class: u8, }
    /// `struct ibv_ah_attr`
    AhAttr {
        grh: GlobalRoute, dlid: u16, sl: u8, src_path_bits: u8, static_rate: u8, is_global: u8, port_num: u8,
    }
    /// `struct ibv_qp_attr`
    QpAttr {
        qp_state: u32, cur_qp_state: u32, path_mtu: u32, path_mig_state: u32, qkey: u32, rq_psn: u32, sq_psn: u32,
        dest_qp_num: u32, qp_access_flags: u32, cap: QpCap, ah_attr: AhAttr, alt_ah_attr: AhAttr, pkey_index: u16,
        alt_pkey_index: u16, en_sqd_async_notify: u8, sq_draining: u8, max_rd_atomic: u8, max_dest_rd_atomic: u8,
        min_rnr_timer: u8, port_num: u8, timeout: u8, retry_cnt: u8, rnr_retry: u8, alt_port_num: u8, alt_timeout: u8,
        rate_limit: u32,
    }
}

/// `union ibv_gid`
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Gid(pub [u8; 16]);
