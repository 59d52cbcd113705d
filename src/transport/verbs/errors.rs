//! What verbs refuse, in words: what was tried, on which device, the system's reason, and what to do about it.

use super::queue::Service;
use crate::error::Error;

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Listing devices.
    List,
    /// Opening a device.
    Open,
    /// Asking for limits or states.
    Query,
    /// A protection domain.
    Domain,
    /// A completion queue.
    Completions,
    /// A queue pair.
    QueuePair(Service),
    /// Registering so many bytes.
    Memory(usize),
    /// A queue pair's first state.
    Init,
    /// Its connection to the other end.
    Receive,
    /// Its last state.
    Send,
    /// Posting a send.
    PostSend,
    /// Posting a receive.
    PostRecv,
}

/// `EOPNOTSUPP` on macOS.
const APPLE_NOT_SUPPORTED: i32 = 102;
/// `ETIMEDOUT` on macOS.
const APPLE_TIMED_OUT: i32 = 60;

/// The last error of the system in this thread.
pub(super) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The error of a step. The numbers of Apple's system are those of field reports (mlx #3207, #3467, #4209; TN3205).
pub(super) fn failed(step: Step, device: &str, errno: i32) -> Error {
    let what = match step {
        Step::List => "its RDMA devices cannot be listed".to_owned(),
        Step::Open => "it cannot be opened".to_owned(),
        Step::Query => "it does not answer".to_owned(),
        Step::Domain => "it has no protection domain left".to_owned(),
        Step::Completions => "it gives no completion queue".to_owned(),
        Step::QueuePair(service) => format!("it gives no {} queue pair", service.name()),
        Step::Memory(bytes) => format!("{:.1} MiB of memory cannot be registered", bytes as f64 / 1_048_576.0),
        Step::Init => "a queue pair cannot be initialised".to_owned(),
        Step::Receive => "a queue pair cannot be connected".to_owned(),
        Step::Send => "a connected queue pair cannot send".to_owned(),
        Step::PostSend => "a send is refused".to_owned(),
        Step::PostRecv => "a receive is refused".to_owned(),
    };
    let name = if device.is_empty() { String::new() } else { format!("RDMA device `{device}`: ") };
    let reason = std::io::Error::from_raw_os_error(errno);
    let error = Error::msg(format!("{name}{what}: {reason}"));
    let not_supported = errno == libc::EOPNOTSUPP || errno == APPLE_NOT_SUPPORTED;
    let timed_out = errno == libc::ETIMEDOUT || errno == APPLE_TIMED_OUT;
    match step {
        Step::QueuePair(Service::Rc) if not_supported => {
            error.hint("Apple's devices have UC queue pairs only: --rdma-qp uc")
        }
        Step::QueuePair(_) if errno == libc::EBUSY => error.hint(
            "all of its queue pairs are taken (Apple's devices have 10): end other programs that use RDMA; \
             what a killed one left is freed by a restart",
        ),
        Step::Domain => error.hint(
            "programs that were killed may have left theirs behind: end what still uses RDMA, else restart the machine",
        ),
        Step::Memory(_) => error.hint(
            "how much memory a program may lock is limited: `ulimit -l unlimited`, or a memlock line in \
             /etc/security/limits.conf; Apple's devices have about 100 regions",
        ),
        Step::Receive if errno == libc::EINVAL => error.hint(
            "its address is not usable: does a bridge own the interface (`tbshard doctor` tells), and has it an IPv4 \
             address?",
        ),
        Step::Receive if timed_out => error.hint("does the cable lead to that host, and is RDMA on there?"),
        Step::Open if errno == libc::EACCES || errno == libc::EPERM => {
            error.hint("may this user open /dev/infiniband/uverbs*?")
        }
        _ => error,
    }
}

/// The error of a completion queue that gives nothing any more.
pub(super) fn broken_queue(device: &str) -> Error {
    Error::msg(format!("RDMA device `{device}`: its completion queue is broken"))
}

/// The error of a device whose connections are made otherwise.
pub(super) fn iwarp(device: &str) -> Error {
    let error = Error::msg(format!("RDMA device `{device}` is iWARP, whose connections only its own manager makes"));
    error.hint("use `transport: tcp` over its network; a card that can do both may be switched to RoCE")
}

/// The error of a port that is not there.
pub(super) fn no_port(device: &str, port: u8) -> Error {
    let error = Error::msg(format!("RDMA device `{device}` has no port {port}"));
    error.hint("`ibv_devinfo` lists its ports; without a number the first that is active is used")
}

/// The error of an address that is not there, or not to be used; `there` are those that can be.
pub(super) fn no_gid(device: &str, port: u8, index: u8, there: &[String]) -> Error {
    let error = Error::msg(format!("RDMA device `{device}` has no usable GID {index} at port {port}"));
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    error.hint(format!("usable there: {there}; without a number it is the IPv4-mapped one"))
}

/// The error of a device whose port has no IPv4 address.
pub(super) fn without_address(device: &str, infiniband: bool) -> Error {
    if infiniband {
        return Error::msg(format!("RDMA device `{device}` has no GID that can be read"));
    }
    let error = Error::msg(format!("RDMA device `{device}` has no IPv4 address among its GIDs"));
    match device.strip_prefix("rdma_") {
        Some(interface) => error.hint(format!(
            "its interface needs one: `tbshard setup --over thunderbolt` gives it, or \
             `sudo ifconfig {interface} inet 169.254.0.1 netmask 255.255.0.0 alias`"
        )),
        None => error.hint("give its network interface an IPv4 address: `ip addr add 10.10.0.1/24 dev …`"),
    }
}

/// A completion's status in words.
pub fn status_text(status: u32) -> String {
    let text = match status {
        0 => "success",
        1 => "a message was longer than its receive",
        2 => "the queue pair failed inside",
        4 => "memory was not registered",
        5 => "the connection was broken before it was its turn",
        6 => "a memory window was misused",
        7 => "a bad response came",
        8 => "the other end's memory was not registered",
        9 => "the other end refused the request",
        10 => "the other end refused the access",
        11 => "the other end failed",
        12 => "the other end does not answer",
        13 => "the other end had no receive posted",
        21 => "the device failed",
        22 => "the device did not answer in time",
        _ => "failed",
    };
    format!("{text} (status {status})")
}
