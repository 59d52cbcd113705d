//! `rdma_ctl status`, `ibv_devices` and `ibv_devinfo -v`: whether RDMA is on, and what its devices are up to.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{shown, strange};
use crate::error::Result;

/// Whether RDMA over Thunderbolt is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rdma {
    /// It is.
    Enabled,
    /// It is not, and only Recovery can turn it on.
    Disabled,
    /// This macOS has no RDMA.
    Absent,
}

/// An RDMA device, which is a Thunderbolt port with one cable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name: `rdma_en3` is that of en3.
    pub name: String,
    /// Whether its port is up; `None` if that is not said.
    pub active: Option<bool>,
    /// IPv4 addresses of its GIDs; `None` if GIDs are not shown.
    pub gids: Option<Vec<Ipv4Addr>>,
}

/// Reads `rdma_ctl status`.
pub(super) fn status(text: &str) -> Result<Rdma> {
    // "enabled" or "disabled" is all that is documented; some report a sentence around it
    let words = text.to_ascii_lowercase();
    let has = |word: &str| words.split(|c: char| !c.is_ascii_alphabetic()).any(|other| other == word);
    match (has("enabled"), has("disabled")) {
        (true, false) => Ok(Rdma::Enabled),
        (false, true) => Ok(Rdma::Disabled),
        _ => Err(strange("rdma_ctl status", shown(text))),
    }
}

/// Reads the names of the devices: two lines of heading, then a name and a GUID each.
pub(super) fn devices(text: &str) -> Vec<Device> {
    let rows = text.lines().skip_while(|line| !line.trim_start().starts_with("---")).skip(1);
    let names = rows.filter_map(|line| line.split_whitespace().next());
    names.map(|name| Device { name: name.to_owned(), ..Device::default() }).collect()
}

/// Reads the devices' ports and GIDs.
pub(super) fn info(text: &str) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("hca_id:") {
            devices.push(Device { name: name.trim().to_owned(), ..Device::default() });
        } else if let Some(device) = devices.last_mut() {
            if let Some(state) = line.strip_prefix("state:") {
                device.active = Some(state.contains("PORT_ACTIVE"));
            } else if let Some((_, gid)) = line.strip_prefix("GID[").and_then(|rest| rest.split_once("]:")) {
                let gid = gid.split(',').next().unwrap_or_default().trim();
                let mapped = gid.parse::<Ipv6Addr>().ok().and_then(|gid| gid.to_ipv4_mapped());
                device.gids.get_or_insert_default().extend(mapped);
            }
        }
    }
    devices
}
