//! `system_profiler SPThunderboltDataType -json`: this Mac's ports, and what can be seen through them.

use serde_json::{Map, Value};

use super::{shown, strange};
use crate::error::Result;

const COMMAND: &str = "system_profiler SPThunderboltDataType -json";

/// A bus, which has one port on every Mac with Apple silicon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bus {
    /// The system's name for it.
    pub(super) name: String,
    /// What tells the port from every other port of the world.
    pub(super) domain: Option<String>,
    /// The number of the socket.
    pub(super) receptacle: Option<String>,
    /// Whether a cable is in it.
    pub(super) connected: bool,
    /// How fast it is.
    pub(super) speed: Option<Speed>,
    /// Other domains that are seen through it.
    pub(super) seen: Vec<Seen>,
}

/// A machine at the other end of a cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Of its port.
    pub(super) domain: String,
    /// What it calls itself.
    pub(super) name: String,
    /// Hubs and docks on the way.
    pub(super) via: Vec<String>,
}

/// The speed of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Gigabits a second.
    pub gigabits: u32,
    /// Whether that is what the port could do (`Up to 120 Gb/s`), not what the cable does.
    pub is_limit: bool,
}

impl Speed {
    /// Whether it is that of Thunderbolt 5: 80 or 120 Gb/s. Thunderbolt 4 and before have 40 or less, and no RDMA.
    pub fn is_fifth(self) -> bool {
        self.gigabits >= 80
    }

    fn parse(text: &str) -> Option<Self> {
        let digits: String =
            text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        Some(Self { gigabits: digits.parse().ok()?, is_limit: text.to_ascii_lowercase().contains("up to") })
    }
}

/// Reads the buses.
pub(super) fn parse(text: &str) -> Result<Vec<Bus>> {
    let top: Value = serde_json::from_str(text).map_err(|error| strange(COMMAND, format!("no JSON ({error})")))?;
    let Some(buses) = top.get("SPThunderboltDataType") else {
        return Err(strange(COMMAND, "there is no `SPThunderboltDataType`"));
    };
    let buses = buses.as_array().ok_or_else(|| strange(COMMAND, "`SPThunderboltDataType` is no list"))?;
    let bus = |(at, value): (usize, &Value)| {
        let bus =
            value.as_object().ok_or_else(|| strange(COMMAND, format!("bus {at} is {}", shown(&value.to_string()))));
        Ok(self::bus(bus?))
    };
    buses.iter().enumerate().map(bus).collect()
}

fn text(object: &Map<String, Value>, key: &str) -> Option<String> {
    match object.get(key)? {
        // whatever a dock calls itself comes to a terminal
        Value::String(text) => Some(text.trim().replace(char::is_control, "")).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn uuid(object: &Map<String, Value>) -> Option<String> {
    text(object, "domain_uuid_key").map(|uuid| uuid.to_ascii_uppercase())
}

fn bus(bus: &Map<String, Value>) -> Bus {
    // one port a bus; a bus of two (as before Apple silicon) is that of the port in use
    let tags = bus.iter().filter(|(key, _)| key.starts_with("receptacle_") && key.ends_with("_tag"));
    let tags: Vec<&Map<String, Value>> = tags.filter_map(|(_, tag)| tag.as_object()).collect();
    let in_use = |tag: &&&Map<String, Value>| {
        text(tag, "receptacle_status_key").is_some_and(|status| !status.contains("no_devices"))
    };
    let used: Vec<_> = tags.iter().filter(in_use).collect();
    let tag = match (used.len(), tags.len()) {
        (1, _) => Some(*used[0]),
        (0, 1) => Some(tags[0]),
        _ => None,
    };
    let domain = uuid(bus);
    let mut seen = Vec::new();
    walk(bus, domain.as_deref(), &mut Vec::new(), &mut seen);
    Bus {
        name: text(bus, "_name").unwrap_or_else(|| "a bus without a name".to_owned()),
        receptacle: tag.and_then(|tag| text(tag, "receptacle_id_key")),
        connected: !used.is_empty() || bus.get("_items").and_then(Value::as_array).is_some_and(|all| !all.is_empty()),
        speed: tag.and_then(|tag| text(tag, "current_speed_key")).as_deref().and_then(Speed::parse),
        domain,
        seen,
    }
}

/// Goes through hubs and docks, which have a name and no domain of their own.
fn walk(device: &Map<String, Value>, own: Option<&str>, via: &mut Vec<String>, seen: &mut Vec<Seen>) {
    for item in device.get("_items").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
        let name = text(item, "_name").or_else(|| text(item, "device_name_key")).unwrap_or_else(|| "?".to_owned());
        match uuid(item).filter(|domain| Some(domain.as_str()) != own) {
            Some(domain) => seen.push(Seen { domain, name, via: via.clone() }),
            None => {
                via.push(name);
                walk(item, own, via, seen);
                via.pop();
            }
        }
    }
}
