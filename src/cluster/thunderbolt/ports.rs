//! `networksetup`: which interface belongs to which socket, and which services make its addresses.

use std::net::Ipv4Addr;

use super::{shown, strange};
use crate::error::Result;

const PORTS: &str = "networksetup -listallhardwareports";
const SERVICES: &str = "networksetup -listnetworkserviceorder";

/// A network service: what keeps an interface's address, also over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What people call it, and may rename.
    pub name: String,
    /// The socket's name, such as `Thunderbolt 3`.
    pub port: String,
    /// The interface; empty for those that have none.
    pub interface: String,
    /// Whether it is in use.
    pub enabled: bool,
    /// The address and prefix that were set by hand.
    pub manual: Option<(Ipv4Addr, u8)>,
}

/// Reads the names of sockets and their interfaces.
pub(super) fn hardware(text: &str) -> Result<Vec<(String, String)>> {
    let mut ports = Vec::new();
    let mut port = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Hardware Port:") {
            port = Some(name.trim().to_owned());
        } else if let Some(device) = line.strip_prefix("Device:") {
            let Some(port) = port.take() else {
                return Err(strange(PORTS, format!("{} belongs to no `Hardware Port:`", shown(line))));
            };
            ports.push((port, device.trim().to_owned()));
        }
    }
    if ports.is_empty() {
        return Err(strange(PORTS, "it lists no `Hardware Port:`"));
    }
    Ok(ports)
}

/// Reads the services, without their addresses.
pub(super) fn services(text: &str) -> Result<Vec<Service>> {
    let mut services = Vec::new();
    let mut name = None;
    for line in text.lines().map(str::trim_end) {
        if let Some(rest) = line.strip_prefix("(Hardware Port: ") {
            let (Some((name, enabled)), Some((port, interface))) =
                (name.take(), rest.strip_suffix(')').and_then(|rest| rest.rsplit_once(", Device:")))
            else {
                return Err(strange(SERVICES, format!("{} belongs to no service", shown(line))));
            };
            let (port, interface) = (port.to_owned(), interface.trim().to_owned());
            services.push(Service { name, port, interface, enabled, manual: None });
        } else if let Some((order, rest)) = line.strip_prefix('(').and_then(|rest| rest.split_once(") "))
            && (order == "*" || order.bytes().all(|byte| byte.is_ascii_digit()))
        {
            name = Some((rest.to_owned(), order != "*"));
        }
    }
    if services.is_empty() {
        return Err(strange(SERVICES, "it lists no service"));
    }
    Ok(services)
}

/// Reads the address of `networksetup -getinfo`, if it was set by hand.
pub(super) fn manual(text: &str) -> Option<(Ipv4Addr, u8)> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if !text.lines().any(|line| line.starts_with("Manual")) {
        return None;
    }
    let mask: Ipv4Addr = value("Subnet mask:")?.parse().ok()?;
    Some((value("IP address:")?.parse().ok()?, prefix(mask)))
}

/// Bits of a mask.
pub(super) fn prefix(mask: Ipv4Addr) -> u8 {
    mask.to_bits().leading_ones() as u8
}
