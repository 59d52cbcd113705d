//! What a machine's RDMA devices say of themselves, and whether they do what [`super::Rdma`] needs: for reports.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::lane;
use crate::error::Result;
use crate::transport::verbs::{Completions, Depth, Device, Domain, Layout, Library, QueuePair, Service, Slab, layout};

/// Bytes that are registered to try it.
const MEMORY: usize = 4 << 20;

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Examined {
    /// Why there is no RDMA here at all, if so.
    pub absent: Option<String>,
    /// The devices.
    pub devices: Vec<Examination>,
    /// Sizes and offsets of the C interface as this program has them, to be compared with the system's header.
    pub layout: Vec<Layout>,
}

/// One device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Examination {
    /// Its name.
    pub name: String,
    /// Queue pairs, requests of a queue, completions of a queue, regions and domains, as it says; 0 is that it does not.
    pub limits: [usize; 5],
    /// The number, packet size and address' place of its active port, if it has one.
    pub port: Option<(u8, u32, u8)>,
    /// Sends and receives that a queue pair was granted.
    pub granted: Option<(usize, usize)>,
    /// The step that failed, with the reason.
    pub error: Option<String>,
}

/// Looks at the devices of `library`, or of the system's.
pub fn examine(library: Option<&'static Library>) -> Examined {
    let found = library.map_or_else(Library::system, Ok).and_then(|library| Ok((library, Device::names(library)?)));
    let (absent, devices) = match found {
        Err(error) => (Some(error.to_string()), Vec::new()),
        Ok((library, names)) => (None, names.iter().map(|name| examine_one(library, name)).collect()),
    };
    Examined { absent, devices, layout: layout() }
}

fn examine_one(library: &'static Library, name: &str) -> Examination {
    let mut found = Examination { name: name.to_owned(), ..Examination::default() };
    if let Err(error) = look(library, &mut found) {
        found.error = Some(error.to_string());
    }
    found
}

fn look(library: &'static Library, found: &mut Examination) -> Result<()> {
    let device: Arc<Device> = Device::open(library, &found.name)?;
    let limits = device.limits()?;
    found.limits = [limits.queue_pairs, limits.requests, limits.completions, limits.regions, limits.domains];
    let domain = Domain::new(&device)?;
    let completions = Completions::new(&device, lane::slots(32))?;
    let service = if device.is_thunderbolt() { Service::Uc } else { Service::Rc };
    let depth = Depth { sends: lane::sends(32), receives: lane::sends(32) };
    let pair = QueuePair::new(&domain, &completions, service, depth)?;
    let granted = pair.depth()?;
    found.granted = Some((granted.sends, granted.receives));
    drop(Slab::new(&domain, MEMORY, 1)?);
    found.port = device.port(None, None)?.map(|port| (port.number, port.mtu, port.gid_index));
    Ok(())
}
