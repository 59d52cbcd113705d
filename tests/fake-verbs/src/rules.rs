//! The rules that a user of verbs can break, with where each is known from.

/// A rule: its name in the log, and what to do instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// As tests know it.
    pub name: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal: $hint:literal;)*) => {
        $($(#[$doc])* pub const $name: Rule = Rule { name: $text, hint: $hint };)*
        /// All of them.
        pub const ALL: &[Rule] = &[$($name,)*];
    };
}

rules! {
    // ---- Apple's
    /// TN3205: UC is the only type; a third party's errno 102 (MLX PR #4530).
    QP_TYPE = "qp-type": "the device has UC queue pairs only";
    /// TN3205: at most 10 queue pairs; the 11th gives EBUSY (MLX #4209).
    TOO_MANY_QPS = "too-many-qps": "this process already has as many queue pairs as the device allows";
    /// ibv_query_device: max_pd 11 (MLX #3207: "Couldn't allocate protection domain").
    TOO_MANY_PDS = "too-many-pds": "this process already has as many protection domains as the device allows";
    /// ibv_query_device: max_mr 100 (MLX #3162).
    TOO_MANY_MRS = "too-many-mrs": "register one large region and use parts of it";
    /// TN3205: max_sge 1; rdma-core: at most what the queue pair was made for.
    TOO_MANY_SGES = "too-many-sges": "a request may have no more elements than the queue pair was made for";
    /// TN3205: no inline data.
    INLINE = "inline": "the device has no inline data, or less";
    /// TN3205: max_srq 0.
    SRQ = "srq": "the device has no shared receive queues";
    /// TN3205: SEND and RECV only, so no RDMA, no atomics, no immediate data.
    OPCODE = "opcode": "the device knows SEND only";
    /// RMLX: an 80-byte `ibv_send_wr` spoilt the queue, because all 128 bytes are copied.
    WR_TAIL = "wr-tail": "all 128 bytes of ibv_send_wr are read: clear them";
    /// Every device: what it receives into must be writable; llama.cpp: 7 is what always works.
    ACCESS = "access": "regions and queue pairs need IBV_ACCESS_LOCAL_WRITE, and here maybe remote rights (7)";
    /// TN3205: page-aligned memory; pages have 16 KiB.
    MR_ALIGNMENT = "mr-alignment": "registered memory begins on a page of 16 KiB";
    /// Third parties: regions of more than 4 GiB are silently corrupted.
    MR_TOO_LARGE = "mr-too-large": "regions of more than 4 GiB corrupt data";
    /// TN3205: 16,773,120 bytes.
    MESSAGE_TOO_LONG = "message-too-long": "the message is longer than the device sends";
    /// TN3205: capacity is counted in frames of 4 KiB, and ibv_query_qp says how many; beyond, completions never come.
    OVERPOST_SEND = "overpost-send": "more frames are posted than ibv_query_qp granted: this send never completes";
    /// As above.
    OVERPOST_RECV = "overpost-recv": "more frames are posted than ibv_query_qp granted: this receive never completes";
    /// MLX PR #3094: messages of more than 4 KiB were broken before macOS 26.3.
    LARGE_MESSAGE = "large-message": "before macOS 26.3 a message has at most 4096 bytes";
    /// TN3205: a receive has as many frames as its send.
    FRAMES = "frames": "a receive must have as many frames of 4 KiB as the send that it meets";
    /// llama.cpp, RMLX: receives are posted after RTR.
    RECV_BEFORE_RTR = "recv-before-rtr": "receives can be posted in RTR and RTS only";
    /// MLX #3467: errno 22 unless the address handle has the IPv4-mapped GID's index.
    GID_INDEX = "gid-index": "sgid_index must be that of the IPv4-mapped GID";
    /// TN3205: without an address on the interface there is no usable GID.
    NO_IPV4 = "no-ipv4": "the device has no IPv4-mapped GID, which ibv_query_gid tells beforehand";
    /// RMLX, gojaccl: a queue pair in ERR breaks the release of regions.
    QP_TO_ERR = "qp-to-err": "destroy the queue pair without moving it to ERR";

    /// gojaccl, exo #1973: queue pairs that carried nothing for some 20 minutes carry nothing any more.
    IDLE = "idle": "send something now and then on every queue pair";

    // ---- everybody's
    /// rdma-core: no objects that depend on it may be left.
    ORDER = "order": "destroy queue pairs, then completion queues and regions, then the domain, then close the device";
    /// Handles are dangling pointers after their destruction.
    USE_AFTER_DESTROY = "use-after-destroy": "the handle was destroyed, or was never one";
    /// The kernel frees them on Linux; on a Mac they may stay until it boots (MLX #3207, #3910).
    LEAK_AT_EXIT = "leak-at-exit": "the process ended with objects that it had not destroyed";
    /// ib_modify_qp_is_ok: RESET, INIT, RTR, RTS, each with its attributes.
    MODIFY = "modify": "the state cannot follow, or an attribute is missing or too much";
    /// verbs: sends are posted in RTS.
    SEND_BEFORE_RTS = "send-before-rts": "sends can be posted in RTS only";
    /// verbs: a request's memory lies in a region of the queue pair's domain.
    LKEY = "lkey": "the memory of a request must lie in a live region of the queue pair's domain";
    /// verbs: memory to register is mapped.
    MR_UNMAPPED = "mr-unmapped": "registered memory must be mapped, all of it";
    /// verbs: a queue overruns when completions are not polled.
    CQ_OVERRUN = "cq-overrun": "the completion queue was full: completions are lost";
    /// verbs: a full queue refuses requests (ENOMEM), which tells of lost count.
    QUEUE_FULL = "queue-full": "more requests are posted than the queue pair has room for";
    /// verbs: the buffer of a send is the device's until the completion.
    BUFFER_CHANGED = "buffer-changed": "the buffer of a send was written before its completion";
    /// verbs: the first number that is sent is the first that is awaited.
    PSN = "psn": "rq_psn must be the peer's sq_psn";
    /// RoCE: there are no local routes.
    NO_GRH = "no-grh": "is_global must be set";
    /// ibv_query_port, ibv_query_device: what is asked must be possible.
    ARGUMENT = "argument": "an argument is out of range";
    /// The receive that a message meets has less room than it needs.
    RECV_TOO_SHORT = "recv-too-short": "the receive is shorter than the message that it meets";
}
