//! A cluster file as it is written: its keys, and what an editor is told about them.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::{Location, Spanned};

use super::kind::{
    Address, Binary, Carrier, Count, Device, Directory, Memory, Name, Port, Shape, Ssh, Text, User, Wait, Way, Weight,
};
use super::read::{At, Many};

/// The machines that run one model together, for `--hosts`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "tbshard cluster file", rename = "Cluster")]
pub(super) struct File {
    /// The hosts, a rank each. The first is rank 0: it reads the prompt and writes the answer.
    #[schemars(with = "Vec<Entry>", length(min = 1))]
    pub(super) hosts: Spanned<Vec<Entry>>,
    /// What carries activations: `rdma`, `tcp`, or `auto` (the default): RDMA where every host names its devices.
    pub(super) transport: Option<At<Carrier>>,
    /// How hosts are connected: `mesh` (the default), every host to every other, or `ring`, in the order they are listed.
    pub(super) topology: Option<At<Shape>>,
    /// How a model is cut. Left out, it is chosen for the model.
    pub(super) parallel: Option<Parallel>,
    /// How long things may take.
    pub(super) timeouts: Option<Timeouts>,
}

impl File {
    /// A file that says nothing but which hosts there are.
    pub(super) fn of(hosts: Vec<Entry>) -> Self {
        let (referenced, defined) = (Location::UNKNOWN, Location::UNKNOWN);
        let hosts = Spanned { value: hosts, referenced, defined };
        Self { hosts, transport: None, topology: None, parallel: None, timeouts: None }
    }
}

/// How a model is cut.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Parallel {
    /// Ranks that share every layer (tensor parallel). `tp` times `pp` is the number of hosts.
    pub(super) tp: Option<At<Count>>,
    /// Stages of layers (pipeline parallel). Hosts that follow each other in the list share a stage.
    pub(super) pp: Option<At<Count>>,
    /// What decides where `tp` and `pp` do not: `auto` (the default), `tensor` (one stage) or `pipeline` (one host a stage).
    pub(super) strategy: Option<At<Way>>,
    /// The layers of every stage, such as `[32, 20, 12]`. Left out, stages follow the hosts' weight or memory.
    pub(super) split: Option<Many<Count>>,
}

/// How long things may take: `500ms`, `10s`, `2min`, `1h`, or seconds.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// Until ssh has logged in on a host (10s).
    pub(super) connect: Option<At<Wait>>,
    /// Until the ranks have found each other (60s).
    pub(super) start: Option<At<Wait>>,
    /// After so much silence a rank is dead, however long it computes (5s).
    pub(super) heartbeat: Option<At<Wait>>,
    /// After so long without progress a rank is stuck, though it lives (10min).
    pub(super) progress: Option<At<Wait>>,
}

/// A host.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Host {
    /// What the host is called in output and by other hosts' `rdma`. Left out, it is `ssh` without a user.
    pub(super) name: Option<At<Name>>,
    /// What ssh is given: a host name, an address, or a name from ~/.ssh/config. Left out, it is `name`.
    pub(super) ssh: Option<At<Ssh>>,
    /// Who to log in as. Left out, ssh decides.
    pub(super) user: Option<At<User>>,
    /// The port that ssh listens on. Left out, ssh decides.
    pub(super) port: Option<At<Port>>,
    /// Where the other hosts reach this one. Left out, it is looked up by the ssh name.
    pub(super) addresses: Option<Many<Address>>,
    /// RDMA devices of this host: one that reaches every other host (`mlx5_0`), or a table from the other hosts' names to
    /// the device, or the devices, whose cable ends there (`{mac2: rdma_en3}`).
    pub(super) rdma: Option<Rdma>,
    /// Memory for weights and context: `512GB`, `96GiB`, or bytes. Stages are as large as their memory. For all hosts or none.
    pub(super) memory: Option<At<Memory>>,
    /// Share of the work relative to the other hosts, in place of memory. For all hosts or none.
    pub(super) weight: Option<At<Weight>>,
    /// Threads that compute. Left out, all processors do.
    pub(super) threads: Option<At<Count>>,
    /// The tbshard there: a path from `/` or `~/` on, or a name that is found in the PATH there. Left out, it is `tbshard`.
    pub(super) binary: Option<At<Binary>>,
    /// Where models are on this host: from the name or path that `--model` is given to a directory from `/` or `~/` on.
    pub(super) models: Option<BTreeMap<String, At<Directory>>>,
    /// Environment variables for this host's rank.
    pub(super) env: Option<BTreeMap<String, At<Text>>>,
}

/// A host in the list: a name alone, or a table.
pub(super) struct Entry {
    pub(super) line: u64,
    pub(super) host: Host,
}

enum NameOrTable {
    Name(String),
    Table(Box<Host>),
}

impl<'de> Deserialize<'de> for NameOrTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NameOrTable;
            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a host's name or a table of its keys")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<NameOrTable, E> {
                Ok(NameOrTable::Name(name.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<NameOrTable, A::Error> {
                let host = Host::deserialize(MapAccessDeserializer::new(table))?;
                Ok(NameOrTable::Table(Box::new(host)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Entry {
    /// A host that is given by what ssh calls it.
    pub(super) fn named(line: u64, name: &str) -> Result<Self, String> {
        let host = Host { ssh: Some(At::parse(line, name)?), ..Host::default() };
        Ok(Self { line, host })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entry: Spanned<NameOrTable> = Spanned::deserialize(deserializer)?;
        let line = entry.defined.line();
        match entry.value {
            NameOrTable::Name(name) => Self::named(line, &name).map_err(D::Error::custom),
            NameOrTable::Table(host) => Ok(Self { line, host: *host }),
        }
    }
}

impl JsonSchema for Entry {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Entry".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (name, table) = (At::<Ssh>::json_schema(generator), generator.subschema_for::<Host>());
        schemars::json_schema!({ "anyOf": [name, table] })
    }
}

/// RDMA devices of a host.
pub(super) enum Rdma {
    /// One that reaches every other host.
    Every(At<Device>),
    /// By the names of the other hosts.
    Peers(u64, BTreeMap<String, Many<Device>>),
}

enum DeviceOrTable {
    Device(String),
    Table(BTreeMap<String, Many<Device>>),
}

impl<'de> Deserialize<'de> for DeviceOrTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = DeviceOrTable;
            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("an RDMA device or a table of them by the names of the other hosts")
            }
            fn visit_str<E: de::Error>(self, device: &str) -> Result<DeviceOrTable, E> {
                Ok(DeviceOrTable::Device(device.to_owned()))
            }
            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<DeviceOrTable, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(table)).map(DeviceOrTable::Table)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Rdma {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read: Spanned<DeviceOrTable> = Spanned::deserialize(deserializer)?;
        let line = read.defined.line();
        match read.value {
            DeviceOrTable::Device(device) => At::parse(line, &device).map(Rdma::Every).map_err(D::Error::custom),
            DeviceOrTable::Table(table) => Ok(Self::Peers(line, table)),
        }
    }
}

impl JsonSchema for Rdma {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rdma".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (device, devices) = (At::<Device>::json_schema(generator), Many::<Device>::json_schema(generator));
        schemars::json_schema!({ "anyOf": [device, { "type": "object", "additionalProperties": devices }] })
    }
}
