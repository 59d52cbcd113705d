//! The kinds of single values in a cluster file: what each may be, in words, as a parser and as a schema.

use std::net::IpAddr;
use std::time::Duration;

use schemars::{Schema, json_schema};

use super::quantity;
use super::{Topology, Transport};
use crate::partition::Strategy;
use crate::transport::rdma::Place;

/// Bytes of the longest host or user name.
const LONGEST_NAME: usize = 253;
/// Bytes of the longest text of any kind.
const LONGEST: usize = 4096;
/// What a shell might read as more than a name; OpenSSH refuses the same.
const SHELL: &str = "'`\"$\\;&<>|(){}";

/// A kind of value.
pub(super) trait Kind {
    /// What it is read as.
    type Value;
    /// What may stand there, behind "not".
    const IS: &'static str;
    /// What to do about a value that may not.
    const HINT: &'static str;
    /// Reads it.
    fn parse(text: &str) -> Option<Self::Value>;
    /// What an editor is told.
    fn schema() -> Schema;
}

/// Whether `text` can be handed to ssh as one argument and be nothing but a name there.
fn is_plain_word(text: &str) -> bool {
    let sign = |c: char| c.is_ascii_punctuation() && !SHELL.contains(c) && c != ',' && c != '/';
    // letters of any script, but nothing that is invisible or turns the line around
    let plain = |c: char| c.is_alphanumeric() || sign(c);
    !text.starts_with('-') && (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(plain)
}

fn word_schema(but: &str) -> Schema {
    let pattern = format!(r#"^(?!-)[^\s'`"$\\;&<>|(){{}},/{but}]+$"#);
    json_schema!({ "type": "string", "pattern": pattern, "maxLength": LONGEST_NAME })
}

/// What a host is called in output; also its ssh name if it has no other.
pub(super) struct Name;
impl Kind for Name {
    type Value = String;
    const IS: &'static str = "a name for a host";
    const HINT: &'static str = "use letters, digits, `-`, `_` and `.`, without a dash in front";
    fn parse(text: &str) -> Option<String> {
        (is_plain_word(text) && !text.contains('@')).then(|| text.to_owned())
    }
    fn schema() -> Schema {
        word_schema("@")
    }
}

/// What is given to ssh: a name, an address, an alias of ssh_config, with `user@` if need be.
pub(super) struct Ssh;
impl Kind for Ssh {
    type Value = String;
    const IS: &'static str = "a host that ssh can be given";
    const HINT: &'static str = "give a host name, an address or a name from ~/.ssh/config; port and user have keys of their own, all else goes into ~/.ssh/config";
    fn parse(text: &str) -> Option<String> {
        let host = bare(text);
        let user = text.len() - host.len() != 1;
        (is_plain_word(text) && !host.is_empty() && !host.starts_with('-') && user).then(|| text.to_owned())
    }
    fn schema() -> Schema {
        word_schema("")
    }
}

/// The host that ssh is given, without a user.
pub(super) fn bare(ssh: &str) -> &str {
    ssh.rsplit_once('@').map_or(ssh, |(_, host)| host)
}

/// A user of a host.
pub(super) struct User;
impl Kind for User {
    type Value = String;
    const IS: &'static str = "a user name";
    const HINT: &'static str = "give the name that you log in with on that host";
    fn parse(text: &str) -> Option<String> {
        (is_plain_word(text) && !text.contains(['@', ':'])).then(|| text.to_owned())
    }
    fn schema() -> Schema {
        word_schema("@:")
    }
}

/// A TCP port.
pub(super) struct Port;
impl Kind for Port {
    type Value = u16;
    const IS: &'static str = "a port from 1 to 65535";
    const HINT: &'static str = "leave it out for what ssh uses by itself";
    fn parse(text: &str) -> Option<u16> {
        text.parse().ok().filter(|port| *port > 0)
    }
    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 65535 })
    }
}

/// An address that another machine can connect to.
pub(super) struct Address;
impl Kind for Address {
    type Value = IpAddr;
    const IS: &'static str = "an IP address that other hosts can reach";
    const HINT: &'static str = "give the host's own address in the network of the cluster, such as 192.168.1.10; leave `addresses` out to have it looked up";
    fn parse(text: &str) -> Option<IpAddr> {
        let address: IpAddr = text.parse().ok()?;
        let nobody = match address {
            IpAddr::V4(address) => address.is_broadcast() || address.octets()[0] == 0,
            // link-local addresses mean nothing without an interface
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        (!nobody && !address.is_unspecified() && !address.is_multicast()).then_some(address)
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
    }
}

/// An RDMA device, maybe with a port and a GID.
pub(super) struct Device;
impl Kind for Device {
    type Value = Place;
    const IS: &'static str = "the name of an RDMA device";
    const HINT: &'static str =
        "`ibv_devices` lists them on that host: rdma_en3, mlx5_0; mlx5_0:2 is a port, mlx5_0:2:3 a GID of it";
    fn parse(text: &str) -> Option<Place> {
        text.parse().ok()
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_.][A-Za-z0-9_.-]{0,62}(:[0-9]{1,3}|:[0-9]{0,3}:[0-9]{1,3})?$" })
    }
}

/// An amount of memory.
pub(super) struct Memory;
impl Kind for Memory {
    type Value = u64;
    const IS: &'static str = "an amount of memory from 1MiB to 1PiB";
    const HINT: &'static str = "write 512GB, 96GiB or bytes";
    fn parse(text: &str) -> Option<u64> {
        quantity::bytes(text).filter(|bytes| (1 << 20..=1 << 50).contains(bytes))
    }
    fn schema() -> Schema {
        let text = json_schema!({ "type": "string", "pattern": quantity::BYTES });
        json_schema!({ "anyOf": [text, { "type": "integer", "minimum": 1_u64 << 20, "maximum": 1_u64 << 50 }] })
    }
}

/// A share of the work, relative to the other hosts'.
pub(super) struct Weight;
impl Kind for Weight {
    type Value = f64;
    const IS: &'static str = "a number from 0.001 to 1000000";
    const HINT: &'static str = "a host of weight 2 gets twice the share of one of weight 1";
    fn parse(text: &str) -> Option<f64> {
        text.parse().ok().filter(|weight| (0.001..=1e6).contains(weight))
    }
    fn schema() -> Schema {
        json_schema!({ "type": "number", "minimum": 0.001, "maximum": 1_000_000 })
    }
}

/// How many of something.
pub(super) struct Count;
impl Kind for Count {
    type Value = usize;
    const IS: &'static str = "a whole number from 1 to 65536";
    const HINT: &'static str = "leave it out to have it chosen";
    fn parse(text: &str) -> Option<usize> {
        text.parse().ok().filter(|count| (1..=65536).contains(count))
    }
    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 65536 })
    }
}

/// A path on a host.
pub(super) struct Directory;
impl Kind for Directory {
    type Value = String;
    const IS: &'static str = "a path from `/` or `~/` on";
    const HINT: &'static str =
        "a path on that host does not depend on where you are on this one; `~/` is the home there";
    fn parse(text: &str) -> Option<String> {
        let rooted = text.starts_with('/') || text.starts_with("~/");
        (rooted && text.len() <= LONGEST && !text.contains(char::is_control)).then(|| text.to_owned())
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^~?/", "maxLength": LONGEST })
    }
}

/// The program on a host: a path, or a name that is found there.
pub(super) struct Binary;
impl Kind for Binary {
    type Value = String;
    const IS: &'static str = "the path of a program from `/` or `~/` on, or the name of one";
    const HINT: &'static str =
        "write /usr/local/bin/tbshard, ~/bin/tbshard, or the name of a program in the PATH there";
    fn parse(text: &str) -> Option<String> {
        let name = is_plain_word(text) && !text.starts_with('~');
        Directory::parse(text).or_else(|| name.then(|| text.to_owned())).filter(|text| !text.ends_with('/'))
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^(~?/.*[^/]|[^-~/\\s][^/\\s]*)$", "maxLength": LONGEST })
    }
}

/// The value of an environment variable.
pub(super) struct Text;
impl Kind for Text {
    type Value = String;
    const IS: &'static str = "a text of at most 4096 bytes without NUL";
    const HINT: &'static str = "put longer texts into a file on that host";
    fn parse(text: &str) -> Option<String> {
        (text.len() <= LONGEST && !text.contains('\0')).then(|| text.to_owned())
    }
    fn schema() -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"], "maxLength": LONGEST })
    }
}

/// `NAME=VALUE`, as MLX writes environment variables.
pub(super) struct Assignment;
impl Kind for Assignment {
    type Value = (String, String);
    const IS: &'static str = "NAME=VALUE";
    const HINT: &'static str = "write `MLX_METAL_FAST_SYNCH=1`";
    fn parse(text: &str) -> Option<(String, String)> {
        let (name, value) = text.split_once('=')?;
        (is_variable(name)).then(|| Text::parse(value).map(|value| (name.to_owned(), value))).flatten()
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*=" })
    }
}

/// Whether an environment variable may be called so.
pub(super) fn is_variable(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    matches!(name.len(), 1..=128) && name.bytes().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// A time to wait.
pub(super) struct Wait;
impl Kind for Wait {
    type Value = Duration;
    const IS: &'static str = "a time from 100ms to 24h";
    const HINT: &'static str = "write 500ms, 10s, 2min, 1h or seconds";
    fn parse(text: &str) -> Option<Duration> {
        let wait = quantity::duration(text)?;
        (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&wait).then_some(wait)
    }
    fn schema() -> Schema {
        let text = json_schema!({ "type": "string", "pattern": quantity::DURATION });
        json_schema!({ "anyOf": [text, { "type": "number", "minimum": 0.1, "maximum": 86_400 }] })
    }
}

/// A choice between a few words.
macro_rules! choice {
    ($kind:ident, $value:ty, $is:literal, $hint:literal, $($word:literal => $variant:path),+) => {
        #[doc = $is]
        pub(super) struct $kind;
        impl Kind for $kind {
            type Value = $value;
            const IS: &'static str = $is;
            const HINT: &'static str = $hint;
            fn parse(text: &str) -> Option<$value> {
                match text {
                    $($word => Some($variant),)+
                    _ => None,
                }
            }
            fn schema() -> Schema {
                json_schema!({ "type": "string", "enum": [$($word),+] })
            }
        }
        impl $kind {
            /// The word for `value`.
            pub(super) fn word(value: $value) -> &'static str {
                match value {
                    $($variant => $word,)+
                }
            }
        }
    };
}

choice!(Carrier, Transport, "`auto`, `rdma` or `tcp`", "auto takes RDMA where every host names its devices",
    "auto" => Transport::Auto, "rdma" => Transport::Rdma, "tcp" => Transport::Tcp);
choice!(Shape, Topology, "`mesh` or `ring`", "in a mesh every host reaches every other, in a ring only its two neighbours",
    "mesh" => Topology::Mesh, "ring" => Topology::Ring);
choice!(Way, Strategy, "`auto`, `tensor` or `pipeline`", "tensor shares every layer, pipeline gives every host layers of its own",
    "auto" => Strategy::Auto, "tensor" => Strategy::Tensor, "pipeline" => Strategy::Pipeline);
