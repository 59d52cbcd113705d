//! What `doctor` and `setup` want to know of a machine, as that machine sees it.

use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A machine's hardware and state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The processor's name.
    pub cpu: String,
    /// Processors that a process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory that can be had without swapping.
    pub free: Option<u64>,
    /// Bytes that macOS lets the GPU wire; `None` elsewhere, 0 is the system's own choice.
    pub wired_limit: Option<u64>,
    /// The GPU that tbshard computes with, if there is one.
    pub gpu: Option<String>,
    /// Seconds since 1970.
    pub clock: f64,
    /// Network interfaces that are up, without loopback ones.
    pub interfaces: Vec<Interface>,
    /// RDMA devices.
    pub rdma: Vec<String>,
}

/// A network interface's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Bits of its network's prefix.
    pub prefix: u8,
}

impl Facts {
    /// This machine's.
    pub fn here() -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self {
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: memory("MemTotal:").or_else(|| sysctl("hw.memsize")?.parse().ok()),
            free: memory("MemAvailable:"),
            wired_limit: sysctl("iogpu.wired_limit_mb").and_then(|mb| mb.parse().ok()).map(|mb: u64| mb << 20),
            gpu: None,
            clock,
            interfaces: interfaces(),
            rdma: names(Path::new("/sys/class/infiniband")),
        }
    }
}

impl Interface {
    /// Whether an address is in this interface's network.
    pub fn reaches(&self, other: &IpAddr) -> bool {
        let (own, other, bits) = match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (u128::from(own.to_bits()), u128::from(other.to_bits()), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let host = bits - u32::from(self.prefix).min(bits);
        own.checked_shr(host) == other.checked_shr(host)
    }
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    name.map(str::to_owned).or_else(|| sysctl("machdep.cpu.brand_string")).unwrap_or_else(|| "unknown".to_owned())
}

/// Bytes of memory that can be had without swapping; where the system does not say, three quarters of all.
pub fn free_memory() -> Option<u64> {
    memory("MemAvailable:").or_else(|| Some(sysctl("hw.memsize")?.parse::<u64>().ok()? / 4 * 3))
}

/// Frames of a message that this system's RDMA can carry, if it is Apple's: more than one since macOS 26.3 (mlx #3094).
pub fn rdma_frames() -> Option<usize> {
    let version = sysctl("kern.osproductversion")?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next()?, numbers.next().unwrap_or(0));
    Some(if (major, minor) >= (26, 3) { 2 } else { 1 })
}

/// A line of /proc/meminfo, in bytes.
fn memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A value of the kernel's on macOS.
fn sysctl(name: &str) -> Option<String> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

fn interfaces() -> Vec<Interface> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let outside = all.into_iter().filter(|found| !found.is_loopback());
    outside
        .map(|found| {
            let prefix = match &found.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            };
            Interface { address: found.ip(), name: found.name, prefix }
        })
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_its_prefix() {
        let interface =
            |address: &str, prefix| Interface { name: "en0".to_owned(), address: address.parse().unwrap(), prefix };
        let reaches = |interface: &Interface, other: &str| interface.reaches(&other.parse().unwrap());
        let lan = interface("192.168.1.7", 24);
        assert!(reaches(&lan, "192.168.1.200") && !reaches(&lan, "192.168.2.7") && !reaches(&lan, "::1"));
        assert!(reaches(&interface("10.0.0.1", 0), "99.0.0.1"));
        assert!(reaches(&interface("fd00::1", 64), "fd00::ffff") && !reaches(&interface("fd00::1", 64), "fd00:1::1"));
        assert!(!reaches(&interface("10.0.0.1", 32), "10.0.0.2"));
    }

    #[test]
    fn this_machine_has_a_processor_and_memory() {
        let facts = Facts::here();
        assert!(facts.cores > 0 && facts.memory.unwrap_or(0) >= facts.free.unwrap_or(0));
        assert!(facts.clock > 1.7e9);
    }
}
