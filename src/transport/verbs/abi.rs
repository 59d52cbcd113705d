//! The C interface of libibverbs, as rdma-core and Apple's SDK both lay it out (`<infiniband/verbs.h>`).
//!
//! What the library allocates (contexts, queues) is only looked into at its first fields, because what follows differs
//! between systems; what this program allocates matches in size and in every offset, which `tests/verbs` compares with
//! Debian's header. Apple's layout was read in third parties' machine code and never tried: `tbshard selftest` lists it.

use std::ffi::{c_char, c_int, c_void};

/// `struct ibv_pd`.
pub(super) enum Pd {}

type Unused = *const c_void;

/// The first fields of `struct ibv_device`.
#[repr(C)]
pub(super) struct Device {
    _ops: [Unused; 2],
    _node_type: c_int,
    pub(super) transport_type: c_int,
}

/// `struct ibv_context_ops`: 32 functions, of which three are called, as the header's inline functions do.
#[repr(C)]
pub(super) struct Ops {
    _before_poll_cq: [Unused; 11],
    pub(super) poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    _before_post_send: [Unused; 13],
    pub(super) post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    pub(super) post_recv: Option<unsafe extern "C" fn(*mut Qp, *mut RecvWr, *mut *mut RecvWr) -> c_int>,
    _after: [Unused; 5],
}

/// The first fields of `struct ibv_context`.
#[repr(C)]
pub(super) struct Context {
    pub(super) device: *mut Device,
    pub(super) ops: Ops,
}

/// The first field of `struct ibv_cq`.
#[repr(C)]
pub(super) struct Cq {
    pub(super) context: *mut Context,
}

/// The first fields of `struct ibv_qp`.
#[repr(C)]
pub(super) struct Qp {
    pub(super) context: *mut Context,
    _context: *mut c_void,
    _pd: *mut Pd,
    _send_cq: *mut Cq,
    _recv_cq: *mut Cq,
    _srq: *mut c_void,
    _handle: u32,
    pub(super) qp_num: u32,
}

/// `struct ibv_mr`.
#[repr(C)]
pub(super) struct Mr {
    _context: *mut Context,
    _pd: *mut Pd,
    _addr: *mut c_void,
    _length: usize,
    _handle: u32,
    pub(super) lkey: u32,
    _rkey: u32,
}

/// `struct ibv_wc`: a completion.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Completion {
    wr_id: u64,
    status: u32,
    opcode: u32,
    vendor_err: u32,
    byte_len: u32,
    imm_data: u32,
    qp_num: u32,
    src_qp: u32,
    wc_flags: u32,
    pkey_index: u16,
    slid: u16,
    sl: u8,
    dlid_path_bits: u8,
}

/// A completion. Only [`super::Completions`] makes one, so it proves that a request is done.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Wc(Completion);

impl Wc {
    pub(super) fn blank() -> Self {
        Self(Completion::default())
    }

    /// What the request was posted with.
    pub fn id(&self) -> u64 {
        self.0.wr_id
    }

    /// 0, or why it failed.
    pub fn status(&self) -> u32 {
        self.0.status
    }

    /// Bytes that came.
    pub fn length(&self) -> usize {
        self.0.byte_len as usize
    }
}

/// `struct ibv_sge`: a run of registered memory.
#[repr(C)]
pub(super) struct Sge {
    pub(super) addr: u64,
    pub(super) length: u32,
    pub(super) lkey: u32,
}

/// `struct ibv_recv_wr`.
#[repr(C)]
pub(super) struct RecvWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
}

/// `struct ibv_send_wr`: all 128 bytes, because a provider may copy all of them.
#[repr(C)]
pub(super) struct SendWr {
    pub(super) wr_id: u64,
    pub(super) next: *mut Self,
    pub(super) sg_list: *mut Sge,
    pub(super) num_sge: c_int,
    pub(super) opcode: u32,
    pub(super) send_flags: u32,
    pub(super) imm_data: u32,
    /// Addresses of remote memory and more, which SEND has none of.
    pub(super) unused: [u64; 11],
}

/// `struct ibv_qp_cap`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QpCap {
    pub(super) max_send_wr: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_send_sge: u32,
    pub(super) max_recv_sge: u32,
    pub(super) max_inline_data: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub(super) struct QpInitAttr {
    pub(super) qp_context: *mut c_void,
    pub(super) send_cq: *mut Cq,
    pub(super) recv_cq: *mut Cq,
    pub(super) srq: *mut c_void,
    pub(super) cap: QpCap,
    pub(super) qp_type: u32,
    pub(super) sq_sig_all: c_int,
}

/// `union ibv_gid`.
#[repr(C, align(8))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gid(pub [u8; 16]);

/// `struct ibv_ah_attr` with its `ibv_global_route`.
#[repr(C)]
#[derive(Default)]
pub(super) struct AhAttr {
    pub(super) dgid: Gid,
    pub(super) flow_label: u32,
    pub(super) sgid_index: u8,
    pub(super) hop_limit: u8,
    pub(super) traffic_class: u8,
    pub(super) dlid: u16,
    pub(super) sl: u8,
    pub(super) src_path_bits: u8,
    pub(super) static_rate: u8,
    pub(super) is_global: u8,
    pub(super) port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Default)]
pub(super) struct QpAttr {
    pub(super) qp_state: u32,
    pub(super) cur_qp_state: u32,
    pub(super) path_mtu: u32,
    pub(super) path_mig_state: u32,
    pub(super) qkey: u32,
    pub(super) rq_psn: u32,
    pub(super) sq_psn: u32,
    pub(super) dest_qp_num: u32,
    pub(super) qp_access_flags: u32,
    pub(super) cap: QpCap,
    pub(super) ah_attr: AhAttr,
    pub(super) alt_ah_attr: AhAttr,
    pub(super) pkey_index: u16,
    pub(super) alt_pkey_index: u16,
    pub(super) en_sqd_async_notify: u8,
    pub(super) sq_draining: u8,
    pub(super) max_rd_atomic: u8,
    pub(super) max_dest_rd_atomic: u8,
    pub(super) min_rnr_timer: u8,
    pub(super) port_num: u8,
    pub(super) timeout: u8,
    pub(super) retry_cnt: u8,
    pub(super) rnr_retry: u8,
    pub(super) alt_port_num: u8,
    pub(super) alt_timeout: u8,
    pub(super) rate_limit: u32,
}

/// `struct ibv_port_attr`, with room behind it for systems that write more.
#[repr(C)]
#[derive(Default)]
pub(super) struct PortAttr {
    pub(super) state: u32,
    pub(super) max_mtu: u32,
    pub(super) active_mtu: u32,
    pub(super) gid_tbl_len: c_int,
    pub(super) port_cap_flags: u32,
    pub(super) max_msg_sz: u32,
    pub(super) bad_pkey_cntr: u32,
    pub(super) qkey_viol_cntr: u32,
    pub(super) pkey_tbl_len: u16,
    pub(super) lid: u16,
    pub(super) sm_lid: u16,
    pub(super) lmc: u8,
    pub(super) max_vl_num: u8,
    pub(super) sm_sl: u8,
    pub(super) subnet_timeout: u8,
    pub(super) init_type_reply: u8,
    pub(super) active_width: u8,
    pub(super) active_speed: u8,
    pub(super) phys_state: u8,
    pub(super) link_layer: u8,
    pub(super) flags: u8,
    pub(super) port_cap_flags2: u16,
    pub(super) active_speed_ex: u32,
    spare: [u64; 8],
}

/// `struct ibv_device_attr`, with room behind it for systems that write more.
#[repr(C)]
pub(super) struct DeviceAttr {
    fw_ver: [c_char; 64],
    node_guid: u64,
    sys_image_guid: u64,
    pub(super) max_mr_size: u64,
    page_size_cap: u64,
    vendor_id: u32,
    vendor_part_id: u32,
    hw_ver: u32,
    pub(super) max_qp: c_int,
    pub(super) max_qp_wr: c_int,
    device_cap_flags: u32,
    max_sge: c_int,
    max_sge_rd: c_int,
    max_cq: c_int,
    pub(super) max_cqe: c_int,
    pub(super) max_mr: c_int,
    pub(super) max_pd: c_int,
    rest: [u64; 40],
}

/// `IBV_WR_SEND`.
pub(super) const WR_SEND: u32 = 2;
/// `IBV_SEND_SIGNALED`.
pub(super) const SEND_SIGNALED: u32 = 1 << 1;
/// `IBV_ACCESS_LOCAL_WRITE | REMOTE_WRITE | REMOTE_READ`: Apple's library is said to refuse the first alone.
pub(super) const ACCESS_ALL: c_int = 7;
/// `IBV_ACCESS_LOCAL_WRITE`.
pub(super) const ACCESS_LOCAL: c_int = 1;
/// `IBV_MTU_1024`, which works everywhere.
pub(super) const MTU_1024: u32 = 3;
/// `IBV_PORT_ACTIVE`.
pub(super) const PORT_ACTIVE: u32 = 4;
/// `IBV_LINK_LAYER_INFINIBAND`.
pub(super) const LINK_INFINIBAND: u8 = 1;
/// `IBV_TRANSPORT_IWARP`.
pub(super) const TRANSPORT_IWARP: c_int = 1;
/// `IBV_QPS_INIT`, `RTR` and `RTS`.
pub(super) const STATES: [u32; 3] = [1, 2, 3];

/// `enum ibv_qp_attr_mask`.
pub(super) mod mask {
    pub(in super::super) const STATE: c_int = 1;
    pub(in super::super) const ACCESS_FLAGS: c_int = 1 << 3;
    pub(in super::super) const PKEY_INDEX: c_int = 1 << 4;
    pub(in super::super) const PORT: c_int = 1 << 5;
    pub(in super::super) const AV: c_int = 1 << 7;
    pub(in super::super) const PATH_MTU: c_int = 1 << 8;
    pub(in super::super) const TIMEOUT: c_int = 1 << 9;
    pub(in super::super) const RETRY_CNT: c_int = 1 << 10;
    pub(in super::super) const RNR_RETRY: c_int = 1 << 11;
    pub(in super::super) const RQ_PSN: c_int = 1 << 12;
    pub(in super::super) const MAX_QP_RD_ATOMIC: c_int = 1 << 13;
    pub(in super::super) const MIN_RNR_TIMER: c_int = 1 << 15;
    pub(in super::super) const SQ_PSN: c_int = 1 << 16;
    pub(in super::super) const MAX_DEST_RD_ATOMIC: c_int = 1 << 17;
    pub(in super::super) const CAP: c_int = 1 << 19;
    pub(in super::super) const DEST_QPN: c_int = 1 << 20;
    use std::ffi::c_int;
}

/// A size or an offset by the name that C knows it by, for tests.
pub type Layout = (&'static str, usize);

/// Sizes and offsets of what this program allocates or looks into, as C expressions.
pub fn layout() -> Vec<Layout> {
    use std::mem::{offset_of, size_of};
    macro_rules! offsets {
        ($($c:literal = $ours:ident { $($field:ident $(as $name:literal)?),* };)*) => { vec![$($(
            (offsets!(@name $c, $field $(, $name)?), offset_of!($ours, $field)),
        )*)*] };
        (@name $c:literal, $field:ident) => { concat!("offsetof(struct ", $c, ", ", stringify!($field), ")") };
        (@name $c:literal, $field:ident, $name:literal) => { concat!("offsetof(struct ", $c, ", ", $name, ")") };
    }
    let mut all = offsets! {
        "ibv_device" = Device { transport_type };
        "ibv_context" = Context { device, ops };
        "ibv_context_ops" = Ops { poll_cq, post_send, post_recv };
        "ibv_cq" = Cq { context };
        "ibv_qp" = Qp { context, qp_num };
        "ibv_mr" = Mr { lkey };
        "ibv_wc" = Completion { wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, pkey_index, slid, sl };
        "ibv_sge" = Sge { addr, length, lkey };
        "ibv_recv_wr" = RecvWr { wr_id, next, sg_list, num_sge };
        "ibv_send_wr" = SendWr { wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, unused as "wr" };
        "ibv_qp_cap" = QpCap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data };
        "ibv_qp_init_attr" = QpInitAttr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all };
        "ibv_ah_attr" = AhAttr { dgid as "grh.dgid", flow_label as "grh.flow_label", sgid_index as "grh.sgid_index",
            hop_limit as "grh.hop_limit", traffic_class as "grh.traffic_class", dlid, sl, src_path_bits, static_rate,
            is_global, port_num };
        "ibv_qp_attr" = QpAttr { qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
            qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, en_sqd_async_notify, max_rd_atomic,
            max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout,
            rate_limit };
        "ibv_port_attr" = PortAttr { state, max_mtu, active_mtu, gid_tbl_len, lid, link_layer, port_cap_flags2 };
        "ibv_device_attr" = DeviceAttr { max_mr_size, max_qp, max_qp_wr, max_cqe, max_mr, max_pd };
    };
    all.extend([
        ("sizeof(struct ibv_context_ops)", size_of::<Ops>()),
        ("sizeof(struct ibv_wc)", size_of::<Wc>()),
        ("sizeof(struct ibv_sge)", size_of::<Sge>()),
        ("sizeof(struct ibv_recv_wr)", size_of::<RecvWr>()),
        ("sizeof(struct ibv_send_wr)", size_of::<SendWr>()),
        ("sizeof(struct ibv_qp_init_attr)", size_of::<QpInitAttr>()),
        ("sizeof(union ibv_gid)", size_of::<Gid>()),
        ("sizeof(struct ibv_ah_attr)", size_of::<AhAttr>()),
        ("sizeof(struct ibv_qp_attr)", size_of::<QpAttr>()),
        ("IBV_WR_SEND", WR_SEND as usize),
        ("IBV_SEND_SIGNALED", SEND_SIGNALED as usize),
        ("IBV_PORT_ACTIVE", PORT_ACTIVE as usize),
        ("IBV_LINK_LAYER_INFINIBAND", usize::from(LINK_INFINIBAND)),
        ("IBV_TRANSPORT_IWARP", TRANSPORT_IWARP as usize),
        ("IBV_QPS_INIT", STATES[0] as usize),
        ("IBV_QPS_RTR", STATES[1] as usize),
        ("IBV_QPS_RTS", STATES[2] as usize),
        ("IBV_QPT_RC", super::Service::Rc as usize),
        ("IBV_QPT_UC", super::Service::Uc as usize),
    ]);
    let masks = [
        ("IBV_QP_STATE", mask::STATE),
        ("IBV_QP_ACCESS_FLAGS", mask::ACCESS_FLAGS),
        ("IBV_QP_PKEY_INDEX", mask::PKEY_INDEX),
        ("IBV_QP_PORT", mask::PORT),
        ("IBV_QP_AV", mask::AV),
        ("IBV_QP_PATH_MTU", mask::PATH_MTU),
        ("IBV_QP_TIMEOUT", mask::TIMEOUT),
        ("IBV_QP_RETRY_CNT", mask::RETRY_CNT),
        ("IBV_QP_RNR_RETRY", mask::RNR_RETRY),
        ("IBV_QP_RQ_PSN", mask::RQ_PSN),
        ("IBV_QP_MAX_QP_RD_ATOMIC", mask::MAX_QP_RD_ATOMIC),
        ("IBV_QP_MIN_RNR_TIMER", mask::MIN_RNR_TIMER),
        ("IBV_QP_SQ_PSN", mask::SQ_PSN),
        ("IBV_QP_MAX_DEST_RD_ATOMIC", mask::MAX_DEST_RD_ATOMIC),
        ("IBV_QP_CAP", mask::CAP),
        ("IBV_QP_DEST_QPN", mask::DEST_QPN),
    ];
    all.extend(masks.map(|(name, value)| (name, value as usize)));
    all
}
