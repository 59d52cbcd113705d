//! A cluster as a commented file.

use std::fmt::Display;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::kind::{Carrier, Shape, Way};
use super::quantity::{bytes_text, duration_text};
use super::{Cluster, Host};

/// Words that YAML does not read as text.
const NOT_TEXT: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];

struct Lines(String);

impl Lines {
    fn add(&mut self, line: impl Display) {
        // writing to a string does not fail
        let _ = writeln!(self.0, "{line}");
    }
}

/// Writes the file.
pub(super) fn yaml(cluster: &Cluster) -> String {
    let mut file = Lines(String::new());
    file.add("# A cluster of tbshard: `tbshard generate --hosts THIS_FILE`. `tbshard schema` tells an editor what may stand here.");
    file.add("");
    file.add("# a rank each; the first is rank 0, which reads the prompt and writes the answer");
    file.add("hosts:");
    for host in &cluster.hosts {
        self::host(&mut file, host, cluster);
    }
    file.add("");
    file.add("# auto is RDMA where every host names its devices; or rdma, or tcp");
    file.add(format_args!("transport: {}", Carrier::word(cluster.transport)));
    file.add("# mesh (every host reaches every other) or ring (in the order of the list)");
    file.add(format_args!("topology: {}", Shape::word(cluster.topology)));
    file.add("");
    file.add("# tp ranks share every layer, pp stages follow each other; tp times pp is the number of hosts");
    file.add("parallel:");
    let parallel = &cluster.parallel;
    file.add("  # decides where tp and pp do not: auto, tensor or pipeline");
    file.add(format_args!("  strategy: {}", Way::word(parallel.strategy)));
    for (key, value) in [("tp", parallel.tp), ("pp", parallel.pp)] {
        value.iter().for_each(|value| file.add(format_args!("  {key}: {value}")));
    }
    if let Some(split) = &parallel.split {
        file.add("  # layers of every stage");
        file.add(format_args!("  split: {split:?}"));
    }
    let timeouts = &cluster.timeouts;
    file.add("");
    file.add("timeouts:");
    for (key, value, comment) in [
        ("connect", timeouts.connect, "until ssh has logged in"),
        ("start", timeouts.start, "until the ranks have found each other"),
        ("heartbeat", timeouts.heartbeat, "after so much silence a rank is dead"),
        ("progress", timeouts.progress, "after so long without progress a rank is stuck"),
    ] {
        file.add(format_args!("  {key}: {} # {comment}", duration_text(value)));
    }
    file.0
}

fn host(file: &mut Lines, host: &Host, cluster: &Cluster) {
    file.add(format_args!("  - name: {}", scalar(&host.name)));
    let mut key = |key: &str, value: Option<String>| {
        value.iter().for_each(|value| file.add(format_args!("    {key}: {value}")));
    };
    key("ssh", (host.ssh != host.name).then(|| scalar(&host.ssh)));
    key("user", host.user.as_deref().map(scalar));
    key("port", host.port.map(|port| port.to_string()));
    let addresses: Vec<String> = host.addresses.iter().map(|address| scalar(&address.to_string())).collect();
    key("addresses", (!addresses.is_empty()).then(|| format!("[{}]", addresses.join(", "))));
    key("memory", host.memory.map(bytes_text));
    key("weight", host.weight.map(|weight| weight.to_string()));
    key("threads", host.threads.map(|threads| threads.to_string()));
    key("binary", host.binary.as_deref().map(scalar));
    let text = |(key, value): (&String, &String)| format!("{}: {}", scalar(key), scalar(value));
    let devices = host.rdma.iter().enumerate().filter(|(_, devices)| !devices.is_empty()).map(|(peer, devices)| {
        let devices: Vec<String> = devices.iter().map(|device| scalar(&device.to_string())).collect();
        format!("{}: [{}]", scalar(&cluster.hosts[peer].name), devices.join(", "))
    });
    for (key, lines) in [
        ("rdma", devices.collect::<Vec<_>>()),
        ("models", host.models.iter().map(text).collect()),
        ("env", host.env.iter().map(text).collect()),
    ] {
        if !lines.is_empty() {
            file.add(format_args!("    {key}:"));
            lines.iter().for_each(|line| file.add(format_args!("      {line}")));
        }
    }
    // what one host alone names, it names to nobody
    if host.rdma.iter().all(Vec::is_empty) && !host.rdma.is_empty() {
        file.add("    rdma: {}");
    }
}

/// `text` as a YAML scalar that is read as this text.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./-@".contains(c);
    let opens = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') || text.parse::<Ipv4Addr>().is_ok();
    if opens && text.chars().all(plain) && !NOT_TEXT.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // whatever is not printable ASCII is spelled out where YAML may not take it as it is
            c if c.is_control()
                || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
