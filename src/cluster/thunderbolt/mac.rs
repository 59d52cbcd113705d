//! A Mac, from its answers: ports with their interfaces, services, devices, and what was changed.

use std::net::Ipv4Addr;

use super::commands::{self, Raw, Record};
use super::ibv::{self, Device, Rdma};
use super::ifconfig::{self, Link};
use super::ports::{self, Service};
use super::profiler::{self, Seen, Speed};
use super::versions::{self, Version};
use crate::error::Result;

/// What services that tbshard makes are called, before the interface.
pub(super) const OURS: &str = "tbshard ";

/// A Mac.
#[derive(Debug, Clone)]
pub struct Mac {
    /// Which macOS it runs.
    pub version: Version,
    /// Its Thunderbolt ports.
    pub ports: Vec<Port>,
    /// Its network interfaces.
    pub links: Vec<Link>,
    /// Its network services.
    pub services: Vec<Service>,
    /// Members of `bridge0` after a restart, in the order of the file.
    pub configured: Vec<String>,
    /// Whether RDMA is on.
    pub rdma: Rdma,
    /// Its RDMA devices.
    pub devices: Vec<Device>,
    /// Mebibytes that the GPU may wire; 0 is the system's own choice.
    pub wired_limit: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// What tbshard changed.
    pub record: Option<Record>,
}

/// A Thunderbolt port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// What the system calls its bus.
    pub bus: String,
    /// The number of its socket.
    pub receptacle: Option<String>,
    /// Its network interface.
    pub interface: Option<String>,
    /// Whether a cable is in it.
    pub connected: bool,
    /// How fast it is.
    pub speed: Option<Speed>,
    pub(super) domain: Option<String>,
    pub(super) seen: Vec<Seen>,
}

impl Port {
    /// What people find it by: `en3 (socket 2)`.
    pub fn label(&self) -> String {
        match (&self.interface, &self.receptacle) {
            (Some(interface), Some(socket)) => format!("{interface} (socket {socket})"),
            (Some(interface), None) => interface.clone(),
            (None, Some(socket)) => format!("socket {socket}"),
            (None, None) => self.bus.clone(),
        }
    }
}

impl Mac {
    /// Reads a Mac's answers.
    ///
    /// # Errors
    /// Names the command whose answer is missing or not understood.
    pub fn read(raw: &Raw) -> Result<Self> {
        let hardware = ports::hardware(raw.must(commands::PORTS)?)?;
        let mut services = ports::services(raw.must(commands::SERVICES)?)?;
        for service in &mut services {
            let command = [commands::SERVICE, &[&service.name]].concat();
            service.manual = raw.out(&command).and_then(ports::manual);
        }
        let rdma = match raw.said.iter().find(|said| said.command == commands::RDMA) {
            Some(said) if said.code.is_some() => {
                ibv::status(if said.out.trim().is_empty() { &said.err } else { &said.out })?
            }
            _ => Rdma::Absent,
        };
        // without RDMA these two fail, and there are no devices
        let mut devices = raw.out(commands::DEVICES).map(ibv::devices).unwrap_or_default();
        for device in raw.out(commands::DEVICE).map(ibv::info).unwrap_or_default() {
            match devices.iter_mut().find(|known| known.name == device.name) {
                Some(known) => *known = device,
                None => devices.push(device),
            }
        }
        let number = |command: &[&str]| raw.out(command).and_then(|text| text.trim().parse().ok());
        let mut mac = Self {
            version: versions::parse(raw.must(commands::VERSION)?)?,
            ports: Vec::new(),
            links: ifconfig::parse(raw.must(commands::LINKS)?)?,
            services,
            configured: configured(raw),
            rdma,
            devices,
            wired_limit: number(commands::WIRED),
            memory: number(commands::MEMORY),
            record: raw.record.clone(),
        };
        let buses = profiler::parse(raw.must(commands::PROFILER)?)?;
        mac.ports = buses
            .into_iter()
            .map(|bus| Port {
                interface: bus.receptacle.as_deref().and_then(|socket| interface(socket, &hardware, &mac.services)),
                bus: bus.name,
                receptacle: bus.receptacle,
                connected: bus.connected,
                speed: bus.speed,
                domain: bus.domain,
                seen: bus.seen,
            })
            .collect();
        mac.last_port();
        Ok(mac)
    }

    /// Where one port has no interface and one RDMA device no port, they belong together.
    fn last_port(&mut self) {
        let taken = |name: &str| self.ports.iter().any(|port| port.interface.as_deref() == Some(name));
        let free: Vec<String> = self
            .devices
            .iter()
            .filter_map(|device| device.name.strip_prefix("rdma_"))
            .map(str::to_owned)
            .filter(|name| !taken(name))
            .collect();
        let mut without: Vec<&mut Port> = self.ports.iter_mut().filter(|port| port.interface.is_none()).collect();
        if let ([port], [name]) = (&mut without[..], &free[..]) {
            port.interface = Some(name.clone());
        }
    }

    /// The interface called `name`.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The bridge that an interface is a member of.
    pub fn bridge_of(&self, interface: &str) -> Option<&str> {
        let bridge = self.links.iter().find(|link| link.members.iter().any(|member| member == interface))?;
        Some(&bridge.name)
    }

    /// The RDMA device of an interface.
    pub fn device(&self, interface: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name.strip_prefix("rdma_") == Some(interface))
    }

    /// Whether an interface is a Thunderbolt port's, or a bridge over some.
    pub fn is_thunderbolt(&self, interface: &str) -> bool {
        self.ports.iter().any(|port| port.interface.as_deref() == Some(interface)) || interface == "bridge0"
    }

    /// IPv4 networks that are not those of cables.
    pub fn other_networks(&self) -> impl Iterator<Item = (&str, Ipv4Addr, u8)> {
        let others = self.links.iter().filter(|link| !self.is_thunderbolt(&link.name));
        others.flat_map(|link| link.addresses.iter().map(|(address, prefix)| (link.name.as_str(), *address, *prefix)))
    }
}

/// The interface of a socket. Its hardware port is called `Thunderbolt 3`; a service can be renamed or removed, and still
/// says which port is its own.
fn interface(socket: &str, hardware: &[(String, String)], services: &[Service]) -> Option<String> {
    let name = format!("Thunderbolt {socket}");
    let port = hardware.iter().find(|(port, _)| *port == name).map(|(_, device)| device);
    let service = || services.iter().find(|service| service.port == name).map(|service| &service.interface);
    port.or_else(service).filter(|interface| !interface.is_empty()).cloned()
}

/// The list that PlistBuddy prints as `Array {`, a line each, `}`; it fails where there is no bridge.
fn configured(raw: &Raw) -> Vec<String> {
    let said = raw.said.iter().find(|said| said.command.first().is_some_and(|name| name == "PlistBuddy"));
    let lines = said.filter(|said| said.code == Some(0)).into_iter().flat_map(|said| said.out.lines());
    lines.map(str::trim).filter(|line| !line.is_empty() && !line.contains(['{', '}'])).map(str::to_owned).collect()
}
