//! A device's ports, and the addresses in their tables.

use std::ffi::c_int;
use std::net::Ipv6Addr;
use std::path::Path;

use super::abi::{Gid, LINK_INFINIBAND, MTU_1024, PORT_ACTIVE, PortAttr};
use super::device::Device;
use super::errors::{self, Step};
use super::library::Functions;
use crate::error::Result;

/// Ports that are tried: Apple's have not always number 1.
const PORTS: u8 = 8;

/// Entries of a table that an error names at most.
const NAMED: usize = 8;

/// A port that can be used, and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u8,
    /// Its local identifier, which InfiniBand is addressed by.
    pub lid: u16,
    /// The largest packet that it sends, as the enumeration of verbs: 3 is 1024 bytes, 5 is 4096.
    pub mtu: u32,
    /// Its IPv4-mapped address; on InfiniBand the first.
    pub gid: Gid,
    /// The address's place in the port's table.
    pub gid_index: u8,
    /// Whether it is InfiniBand, which needs no global address.
    pub infiniband: bool,
}

/// Whether an address is `::ffff:a.b.c.d`.
fn is_mapped(gid: &Gid) -> bool {
    Ipv6Addr::from(gid.0).to_ipv4_mapped().is_some()
}

impl Device {
    /// The port `number`, or the first that is active, with the address at place `gid` of its table, or the one that works by
    /// itself; `None` while it is not active.
    ///
    /// # Errors
    /// If there is no such port or address, an active port has no usable one, or the device does not say.
    pub fn port(&self, number: Option<u8>, gid: Option<u8>) -> Result<Option<Port>> {
        let mut refused = Some(0);
        for at in number.map_or(1..=PORTS, |number| number..=number) {
            let mut attr = PortAttr::default();
            // SAFETY: the device is open, and the structure is larger than any system's.
            let query = |library: &Functions| unsafe { (library.query_port)(self.context.as_ptr(), at, &raw mut attr) };
            let errno = self.open.call(query);
            if errno != 0 {
                refused = refused.map(|_| errno);
                continue;
            }
            refused = None;
            if attr.state == PORT_ACTIVE {
                // nobody has seen Apple's structure behind its first fields
                let infiniband = attr.link_layer == LINK_INFINIBAND && !self.is_thunderbolt();
                if !(1..=5).contains(&attr.active_mtu) {
                    attr.active_mtu = MTU_1024;
                }
                let (gid_index, gid) = match gid {
                    Some(index) => (index, self.chosen(at, attr.gid_tbl_len, index)?),
                    None => self.address(at, attr.gid_tbl_len, infiniband)?,
                };
                let (lid, mtu) = (attr.lid, attr.active_mtu);
                return Ok(Some(Port { number: at, lid, mtu, gid, gid_index, infiniband }));
            }
        }
        match (refused, number) {
            (None, _) => Ok(None),
            (Some(_), Some(number)) => Err(errors::no_port(self.name(), number)),
            (Some(errno), None) => Err(errors::failed(Step::Query, self.name(), errno)),
        }
    }

    /// The addresses of a port, with their places.
    fn addresses(&self, port: u8, entries: c_int) -> impl Iterator<Item = (u8, Gid)> {
        (0..entries.clamp(0, 256)).filter_map(move |index| {
            let mut gid = Gid::default();
            // SAFETY: the device is open, and `gid` has the 16 bytes.
            let query =
                |library: &Functions| unsafe { (library.query_gid)(self.context.as_ptr(), port, index, &raw mut gid) };
            let there = self.open.call(query) == 0 && gid != Gid::default();
            u8::try_from(index).ok().filter(|_| there).map(|index| (index, gid))
        })
    }

    /// The address that somebody has chosen.
    fn chosen(&self, port: u8, entries: c_int, index: u8) -> Result<Gid> {
        // Apple's devices refuse others
        let usable = |(_, gid): &(u8, Gid)| !self.is_thunderbolt() || is_mapped(gid);
        let all: Vec<(u8, Gid)> = self.addresses(port, entries).filter(usable).collect();
        all.iter().find(|(at, _)| *at == index).map(|(_, gid)| *gid).ok_or_else(|| {
            let name = |(at, gid): &(u8, Gid)| format!("{at} ({})", Ipv6Addr::from(gid.0));
            let there: Vec<String> = all.iter().take(NAMED).map(name).collect();
            errors::no_gid(self.name(), port, index, &there)
        })
    }

    /// The place and value of the port's IPv4-mapped address; the place differs between systems.
    fn address(&self, port: u8, entries: c_int, infiniband: bool) -> Result<(u8, Gid)> {
        let usable = |(_, gid): &(u8, Gid)| infiniband || is_mapped(gid);
        let mut all = self.addresses(port, entries).filter(usable).peekable();
        let first = all.peek().copied();
        // RoCE has every address twice, and its first version crosses no router
        let found = all.find(|(index, _)| self.routable(port, *index)).or(first);
        found.ok_or_else(|| errors::without_address(self.name(), infiniband))
    }

    /// Whether the system says that an address is RoCE's second version, or says nothing of versions.
    fn routable(&self, port: u8, index: u8) -> bool {
        let path = format!("/sys/class/infiniband/{}/ports/{port}/gid_attrs/types/{index}", self.name());
        std::fs::read_to_string(Path::new(&path)).map_or(true, |kind| kind.trim().ends_with("v2"))
    }
}
