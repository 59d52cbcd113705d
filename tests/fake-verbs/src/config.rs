//! What `fabric.json` says: the machines, their devices and cables, and the rules that they keep.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;

/// Whose rules the library keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Personality {
    /// RDMA over Thunderbolt, by Apple's TN3205 and by what users of it report.
    Apple,
    /// Soft-RoCE of Linux.
    Rxe,
}

/// How deep a queue is that was asked to be so deep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granted {
    /// The next of 1023, 2047 and 4095.
    Up,
    /// As asked.
    Asked,
    /// This deep, whatever was asked.
    Always(u32),
}

/// What a device can.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names of `struct ibv_device_attr`")]
pub struct Limits {
    pub max_qp: u32,
    pub max_pd: u32,
    pub max_mr: u32,
    pub max_cq: u32,
    pub max_cqe: u32,
    pub max_qp_wr: u32,
    pub max_sge: u32,
    pub max_inline: u32,
    pub max_msg: u32,
}

impl Limits {
    fn of(personality: Personality) -> Self {
        match personality {
            // TN3205: 10 queue pairs, one element, 16,773,120 bytes, 4095 requests; reported by ibv_query_device: 11 queue
            // pairs of which 10 are usable, 11 domains, 100 regions (MLX #3162, #4209)
            Personality::Apple => Self {
                max_qp: 11,
                max_pd: 11,
                max_mr: 100,
                max_cq: 32,
                max_cqe: 8192,
                max_qp_wr: 4095,
                max_sge: 1,
                max_inline: 0,
                max_msg: 4095 * 4096,
            },
            // rxe_param.h; fewer elements and requests than there, which nobody should miss
            Personality::Rxe => Self {
                max_qp: 4096,
                max_pd: 4096,
                max_mr: 4096,
                max_cq: 4096,
                max_cqe: 32767,
                max_qp_wr: 8191,
                max_sge: 4,
                max_inline: 256,
                max_msg: 0x80_0000,
            },
        }
    }

    fn overridden(mut self, value: &Value) -> Result<Self, String> {
        let Some(map) = value.as_object() else { return Ok(self) };
        for (key, value) in map {
            let place = match key.as_str() {
                "max_qp" => &mut self.max_qp,
                "max_pd" => &mut self.max_pd,
                "max_mr" => &mut self.max_mr,
                "max_cq" => &mut self.max_cq,
                "max_cqe" => &mut self.max_cqe,
                "max_qp_wr" => &mut self.max_qp_wr,
                "max_sge" => &mut self.max_sge,
                "max_inline" => &mut self.max_inline,
                "max_msg" => &mut self.max_msg,
                _ => return Err(format!("there is no limit {key}")),
            };
            *place = value.as_u64().and_then(|value| value.try_into().ok()).ok_or(format!("{key} is no number"))?;
        }
        Ok(self)
    }
}

/// A device of a machine.
#[derive(Clone, Debug)]
pub struct Device {
    /// As `ibv_get_device_name` says it: `rdma_en2`.
    pub name: String,
    /// The label of its machine.
    pub host: String,
    /// The address of its network interface; without one there is no IPv4-mapped GID.
    pub ipv4: Option<Ipv4Addr>,
    /// Where in the table of GIDs that address stands.
    pub gid_index: usize,
    /// Devices with the same cable reach each other.
    pub cable: String,
    /// It reaches itself as well.
    pub hub: bool,
    /// The number of its port; those below it are there and down.
    pub port_num: u8,
    /// InfiniBand's local identifier, by which it is addressed instead of by a GID; 0 is no InfiniBand.
    pub lid: u16,
    /// The subnet that its GIDs begin with, where it is InfiniBand.
    pub subnet: u64,
    /// It is iWARP, which no queue pair is connected over without a manager.
    pub iwarp: bool,
    /// Its port is up when nobody has said otherwise since.
    pub active: bool,
    /// What it can.
    pub limits: Limits,
}

impl Device {
    /// `host.name`, of which there is one in the fabric.
    pub fn key(&self) -> String {
        format!("{}.{}", self.host, self.name)
    }

    /// The table of GIDs.
    pub fn gid(&self, index: usize) -> [u8; 16] {
        let mut gid = [0; 16];
        match self.ipv4 {
            Some(address) if index == self.gid_index => {
                gid[10..12].copy_from_slice(&[0xff, 0xff]);
                gid[12..].copy_from_slice(&address.octets());
            }
            // link-local first, as on both systems; what else stands before the address is another of that kind
            _ if index == 0 || (self.ipv4.is_some() && index < self.gid_index) => {
                let hash = self
                    .key()
                    .bytes()
                    .fold(index as u64, |sum, byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
                let subnet = if self.lid == 0 { 0xfe80 << 48 } else { self.subnet };
                gid[..8].copy_from_slice(&subnet.to_be_bytes());
                gid[8..].copy_from_slice(&hash.to_be_bytes());
                gid[11..13].copy_from_slice(&[0xff, 0xfe]);
            }
            _ => {}
        }
        gid
    }

    /// Entries of the table, the empty ones included.
    pub fn gids(&self) -> usize {
        (self.gid_index + 1).max(8)
    }
}

/// The fabric.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose rules.
    pub personality: Personality,
    /// Messages of more than a frame arrive broken, as before macOS 26.3.
    pub one_frame: bool,
    /// What a killed process held stays held.
    pub leak: bool,
    /// Depth of queues.
    pub granted: Granted,
    /// Regions need remote rights too.
    pub local_write_only_rejected: bool,
    /// How long an RC queue pair tries to reach a peer that is gone.
    pub retry_ms: u64,
    /// After how long without a message a queue pair sends no more (third parties: some 20 minutes).
    pub idle_ms: Option<u64>,
    /// All devices of all machines.
    pub devices: Vec<Device>,
    /// Mistakes that are made for the program.
    pub slips: Vec<String>,
    /// Faults that are there from the start, as written.
    pub faults: Vec<Value>,
}

impl Config {
    /// The file in a fabric's directory.
    pub fn read(dir: &Path) -> Result<Self, String> {
        let path = dir.join("fabric.json");
        let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let value = serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::from_json(&value)
    }

    /// From its text.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let personality = match value["personality"].as_str() {
            Some("apple") => Personality::Apple,
            Some("rxe") => Personality::Rxe,
            other => return Err(format!("personality is apple or rxe, not {other:?}")),
        };
        let limits = Limits::of(personality).overridden(&value["limits"])?;
        let granted = match &value["granted"] {
            Value::Null if personality == Personality::Apple => Granted::Up,
            Value::Null => Granted::Asked,
            Value::String(word) if word == "up" => Granted::Up,
            Value::String(word) if word == "asked" => Granted::Asked,
            Value::Number(number) => Granted::Always(number.as_u64().unwrap_or(0) as u32),
            other => return Err(format!("granted is up, asked or a number, not {other}")),
        };
        let mut devices = Vec::new();
        for device in value["devices"].as_array().into_iter().flatten() {
            devices.push(device_from_json(device, limits)?);
        }
        Ok(Self {
            personality,
            one_frame: value["os"].as_str().is_some_and(older),
            leak: value["leak"].as_bool().unwrap_or(false),
            granted,
            local_write_only_rejected: value["local_write_only_rejected"].as_bool().unwrap_or(false),
            retry_ms: value["retry_ms"].as_u64().unwrap_or(500),
            idle_ms: value["idle_ms"].as_u64(),
            devices,
            slips: words(&value["slips"]),
            faults: value["faults"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// The device of that key.
    pub fn find(&self, key: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.key() == key)
    }

    /// The device that `answers` where `from` ends.
    fn find_from(&self, from: usize, answers: impl Fn(&Device) -> bool) -> Option<usize> {
        let start = &self.devices[from];
        (0..self.devices.len()).find(|&at| {
            let device = &self.devices[at];
            (if at == from { device.hub } else { device.cable == start.cable }) && answers(device)
        })
    }

    /// The device that has the address `gid`.
    pub fn reach(&self, from: usize, gid: [u8; 16]) -> Option<usize> {
        let has = |device: &Device| (0..device.gids()).any(|index| device.gid(index) == gid);
        self.find_from(from, |device| gid != [0; 16] && has(device))
    }

    /// The device of the same subnet that has the local identifier `lid`.
    pub fn reach_local(&self, from: usize, lid: u16) -> Option<usize> {
        let subnet = self.devices[from].subnet;
        self.find_from(from, |device| lid != 0 && device.lid == lid && device.subnet == subnet)
    }
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// MLX PR #3094: larger messages work since macOS 26.3.
fn older(os: &str) -> bool {
    let mut numbers = os.split('.').map(|word| word.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (26, 3)
}

fn device_from_json(value: &Value, limits: Limits) -> Result<Device, String> {
    let text = |key: &str| value[key].as_str().map(str::to_owned).ok_or(format!("a device has no {key}"));
    let ipv4 = match value["ipv4"].as_str() {
        Some(text) => Some(text.parse().map_err(|error| format!("ipv4 {text}: {error}"))?),
        None => None,
    };
    Ok(Device {
        name: text("name")?,
        host: text("host")?,
        ipv4,
        gid_index: value["gid_index"].as_u64().unwrap_or(1) as usize,
        cable: text("cable")?,
        hub: value["hub"].as_bool().unwrap_or(false),
        port_num: value["port_num"].as_u64().unwrap_or(1) as u8,
        lid: value["lid"].as_u64().unwrap_or(0) as u16,
        subnet: value["subnet"].as_u64().unwrap_or(0xfe80 << 48),
        iwarp: value["iwarp"].as_bool().unwrap_or(false),
        active: value["port"].as_str() != Some("down"),
        limits: limits.overridden(&value["limits"])?,
    })
}
