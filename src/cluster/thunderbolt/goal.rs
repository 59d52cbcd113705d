//! Something of a Mac that is to become so: whether it is, the commands that make it so, and those that undo them.
//!
//! Bridges have no command of `networksetup`: what they are after a restart is in a property list, what they are now is
//! `ifconfig`'s. The list comes first, so that whatever rebuilds the bridge from it finds it as it shall be.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::Mac;
use super::commands::{BRIDGE, PREFERENCES};
use super::mac::OURS;
use crate::cluster::ssh::for_show;

/// Something that is to become so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// After a restart an interface is, or is not, a member of `bridge0`.
    Configured {
        /// The interface.
        interface: String,
        /// Whether it is one.
        member: bool,
    },
    /// An interface is, or is not, a member of a bridge now.
    Member {
        /// The interface.
        interface: String,
        /// Whether it is one.
        member: bool,
    },
    /// There is a network service for an interface, and it is on.
    Service {
        /// Its name.
        name: String,
        /// The interface.
        interface: String,
    },
    /// A service gives its interface an address, also after a restart.
    Address {
        /// The service.
        name: String,
        /// The interface.
        interface: String,
        /// The address.
        address: Ipv4Addr,
        /// Bits of its network.
        prefix: u8,
    },
    /// There is no such service.
    NoService {
        /// Its name.
        name: String,
    },
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn plist(command: &str) -> Vec<String> {
    words(&["PlistBuddy", "-c", command, PREFERENCES])
}

fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

impl Goal {
    /// Whether it is so.
    pub fn met(&self, mac: &Mac) -> bool {
        match self {
            Self::Configured { interface, member } => mac.configured.contains(interface) == *member,
            Self::Member { interface, member } => mac.bridge_of(interface).is_some() == *member,
            Self::Service { name, interface } => mac
                .services
                .iter()
                .any(|service| service.name == *name && service.interface == *interface && service.enabled),
            Self::Address { name, interface, address, prefix } => {
                let set = mac.services.iter().find(|service| service.name == *name).and_then(|service| service.manual);
                let shown = mac.link(interface).is_some_and(|link| link.addresses.contains(&(*address, *prefix)));
                set == Some((*address, *prefix)) && shown
            }
            Self::NoService { name } => mac.services.iter().all(|service| service.name != *name),
        }
    }

    /// The commands that make it so on `mac` as it is, each to be run by root.
    pub fn commands(&self, mac: &Mac) -> Vec<Vec<String>> {
        match self {
            Self::Configured { interface, member: false } => {
                let places = mac.configured.iter().enumerate().filter(|(_, other)| *other == interface);
                // from behind, because those behind move up
                places.rev().map(|(at, _)| plist(&format!("Delete {BRIDGE}:{at}"))).collect()
            }
            Self::Configured { interface, member: true } => {
                vec![plist(&format!("Add {BRIDGE}:{} string {interface}", mac.configured.len()))]
            }
            Self::Member { interface, member: false } => {
                vec![words(&["ifconfig", mac.bridge_of(interface).unwrap_or("bridge0"), "deletem", interface])]
            }
            Self::Member { interface, member: true } => vec![words(&["ifconfig", "bridge0", "addm", interface])],
            Self::Service { name, interface } => match mac.services.iter().find(|service| service.name == *name) {
                Some(service) if service.interface == *interface => {
                    vec![words(&["networksetup", "-setnetworkserviceenabled", name, "on"])]
                }
                Some(_) => [Self::remove(name), vec![Self::create(name, interface)]].concat(),
                None => vec![Self::create(name, interface)],
            },
            // without a router, so that no traffic to elsewhere takes this way
            Self::Address { name, address, prefix, .. } => {
                let (address, mask) = (address.to_string(), mask(*prefix).to_string());
                vec![words(&["networksetup", "-setmanual", name, &address, &mask])]
            }
            Self::NoService { name } => Self::remove(name),
        }
    }

    fn create(name: &str, interface: &str) -> Vec<String> {
        words(&["networksetup", "-createnetworkservice", name, interface])
    }

    fn remove(name: &str) -> Vec<Vec<String>> {
        vec![words(&["networksetup", "-removenetworkservice", name])]
    }

    /// The commands that undo it, by hand; an address goes with its service.
    pub fn undo(&self) -> Vec<Vec<String>> {
        match self {
            Self::Configured { interface, member: false } => vec![plist(&format!("Add {BRIDGE}:0 string {interface}"))],
            Self::Member { interface, member: false } => vec![words(&["ifconfig", "bridge0", "addm", interface])],
            Self::Service { name, .. } | Self::Address { name, .. } if name.starts_with(OURS) => Self::remove(name),
            _ => Vec::new(),
        }
    }

    /// What is wrong as long as it is not so.
    pub fn lack(&self, mac: &Mac) -> String {
        match self {
            Self::Configured { interface, member: false } => {
                format!("{interface} will be a member of bridge0 after a restart, where RDMA has no use of it")
            }
            Self::Member { interface, member: false } => {
                let bridge = mac.bridge_of(interface).unwrap_or("bridge0");
                format!("{interface} is a member of {bridge}, so RDMA has no use of it")
            }
            Self::Configured { interface, member: true } => {
                format!("{interface} will not be a member of bridge0 after a restart")
            }
            Self::Member { interface, member: true } => format!("{interface} is no member of bridge0"),
            Self::Service { interface, .. } => format!("{interface} has no network service that keeps its address"),
            Self::Address { interface, address, prefix, .. } => {
                let has = mac.link(interface).map(|link| &link.addresses[..]).unwrap_or_default();
                let now = match has {
                    [] => "no IPv4 address, so RDMA has no GID".to_owned(),
                    [(own, bits)] if own == address => format!("{own}/{bits}, but only until it restarts"),
                    [(own, _)] if own.is_link_local() => {
                        format!("only the address that it gave itself ({own}), which changes")
                    }
                    [(own, bits), ..] => format!("{own}/{bits}, which does not fit its cable"),
                };
                format!("{interface} is to have {address}/{prefix} and has {now}")
            }
            Self::NoService { name } => format!("the service `{name}` is there"),
        }
    }
}

/// Commands as a person types them.
pub fn in_shell(commands: &[Vec<String>]) -> String {
    let line = |command: &Vec<String>| {
        // it is the one that no PATH has
        let word =
            |word: &String| if word == "PlistBuddy" { "/usr/libexec/PlistBuddy".to_owned() } else { for_show(word) };
        format!("sudo {}", command.iter().map(word).collect::<Vec<_>>().join(" "))
    };
    commands.iter().map(line).collect::<Vec<_>>().join(" && ")
}
