//! `ifconfig -a`: addresses, and who belongs to a bridge.

use std::net::Ipv4Addr;

use super::{ports, shown, strange};
use crate::error::Result;

const COMMAND: &str = "ifconfig -a";

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Whether a cable with a peer is in it; `None` if that is not said.
    pub active: Option<bool>,
    /// IPv4 addresses and their prefixes.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Interfaces that it bridges.
    pub members: Vec<String>,
}

/// Reads the interfaces.
pub(super) fn parse(text: &str) -> Result<Vec<Link>> {
    let mut links: Vec<Link> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if !line.starts_with(char::is_whitespace) {
            let Some((name, _)) = line.split_once(": ") else {
                return Err(strange(COMMAND, format!("{} is no interface", shown(line))));
            };
            links.push(Link { name: name.to_owned(), ..Link::default() });
            continue;
        }
        let Some(link) = links.last_mut() else {
            return Err(strange(COMMAND, format!("{} belongs to no interface", shown(line))));
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["inet", address, ..] => {
                let mask = words.iter().position(|word| *word == "netmask").and_then(|at| words.get(at + 1));
                let read = address.parse().ok().zip(mask.map_or(Some(32), |mask| prefix(mask)));
                link.addresses.push(read.ok_or_else(|| strange(COMMAND, format!("{} has no address", shown(line))))?);
            }
            ["status:", status, ..] => link.active = Some(status == "active"),
            ["member:", member, ..] => link.members.push(member.to_owned()),
            _ => {}
        }
    }
    if links.is_empty() {
        return Err(strange(COMMAND, "it lists no interface"));
    }
    Ok(links)
}

/// Bits of `0xfffffffc` or `255.255.255.252`.
fn prefix(mask: &str) -> Option<u8> {
    let bits = match mask.strip_prefix("0x") {
        Some(digits) => Ipv4Addr::from_bits(u32::from_str_radix(digits, 16).ok()?),
        None => mask.parse().ok()?,
    };
    Some(ports::prefix(bits))
}
