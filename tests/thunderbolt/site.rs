//! Macs that are not there: what each is stands in files, and `mac.sh` plays its commands.
#![cfg_attr(target_os = "macos", allow(dead_code, reason = "`setup` is not tested there"))]

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tbshard::cluster::thunderbolt::{Mac, Raw, Said};
use tempfile::TempDir;

/// The commands that `mac.sh` plays.
const COMMANDS: [&str; 11] = [
    "sw_vers",
    "system_profiler",
    "networksetup",
    "ifconfig",
    "rdma_ctl",
    "ibv_devices",
    "ibv_devinfo",
    "sysctl",
    "PlistBuddy",
    "ping",
    "sudo",
];

/// An ssh that has each of the Macs behind it.
const SSH: &str = r#"#!/bin/sh
while [ "$1" != -- ]; do shift; done
host=$2
home=$SITE/$host
[ -d "$home" ] || { echo "ssh: Could not resolve hostname $host: nodename nor servname provided" >&2; exit 255; }
export HOME="$home" PATH="$home/bin:$PATH" SSH_CONNECTION="192.168.1.99 50000 $(cat "$home/ssh") 22"
cd "$home" && exec sh -c "$3"
"#;

/// Macs, all new and cabled by the test, in a directory each.
pub struct Site {
    dir: TempDir,
    names: Vec<String>,
    ports: Vec<Vec<Value>>,
}

/// The domain of a port.
fn domain(host: usize, port: usize) -> String {
    format!("0000000{host}-0000-4000-8000-00000000000{port}")
}

impl Site {
    /// `count` Macs with three Thunderbolt 5 ports each (en3, en4, en5 in sockets 1, 2, 3), all in bridge0, RDMA on.
    pub fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\n{}", include_str!("mac.sh"));
        executable(&dir.path().join("mac"), &script);
        executable(&dir.path().join("ssh"), SSH);
        let names: Vec<String> = (1..=count).map(|number| format!("mac{number}")).collect();
        let mut site = Self { dir, names, ports: Vec::new() };
        for host in 0..count {
            let home = site.home(host);
            for place in ["bin", "state", ".local/bin"] {
                std::fs::create_dir_all(home.join(place)).unwrap();
            }
            COMMANDS.iter().for_each(|name| symlink("../../mac", home.join("bin").join(name)).unwrap());
            symlink(crate::lab::binary(), home.join(".local/bin/tbshard")).unwrap();
            let lan = format!("192.168.1.{}", 11 + host);
            std::fs::write(home.join("ssh"), &lan).unwrap();
            site.write(host, "lan", &format!("{lan} 0xffffff00\n"));
            site.write(host, "versions", "ProductName:\t\tmacOS\nProductVersion:\t\t26.3\nBuildVersion:\t\t25D125\n");
            site.write(host, "rdma", "enabled\n");
            site.write(host, "wired", "0\n");
            site.write(host, "memory", "137438953472\n");
            site.write(host, "members", "en3\nen4\nen5\n");
            site.write(host, "configured", "en3\nen4\nen5\n");
            site.write(host, "addresses", "");
            site.write(
                host,
                "services",
                "Ethernet|Ethernet|en0|on||\nThunderbolt Bridge|Thunderbolt Bridge|bridge0|on||\n",
            );
            let mut ports = "\nHardware Port: Ethernet\nDevice: en0\nEthernet Address: 00:00:5e:00:53:01\n".to_owned();
            for port in 1..=3 {
                let line =
                    format!("\nHardware Port: Thunderbolt {port}\nDevice: en{}\nEthernet Address: N/A\n", port + 2);
                ports += &line;
            }
            ports +=
                "\nHardware Port: Thunderbolt Bridge\nDevice: bridge0\n\nVLAN Configurations\n===================\n";
            site.write(host, "ports", &ports);
            site.ports.push((0..3).map(|port| bus(host, port)).collect());
        }
        site.cabled();
        site
    }

    /// As [`Site::new`], with a cable between every two.
    pub fn mesh(count: usize) -> Self {
        let mut site = Self::new(count);
        let mut next = vec![0; count];
        for a in 0..count {
            for b in a + 1..count {
                site.cable((a, next[a]), (b, next[b]));
                (next[a], next[b]) = (next[a] + 1, next[b] + 1);
            }
        }
        site
    }

    fn home(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("mac{}", host + 1))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What `--hosts` is given.
    pub fn hosts(&self) -> String {
        self.names.join(",")
    }

    /// Writes what a Mac is; the files are those of `mac.sh`.
    pub fn write(&self, host: usize, file: &str, text: &str) {
        std::fs::write(self.home(host).join("state").join(file), text).unwrap();
    }

    pub fn remove(&self, host: usize, file: &str) {
        std::fs::remove_file(self.home(host).join("state").join(file)).unwrap();
    }

    pub fn read(&self, host: usize, file: &str) -> String {
        std::fs::read_to_string(self.home(host).join("state").join(file)).unwrap_or_default()
    }

    /// Where ssh comes in.
    pub fn ssh_comes_in_at(&self, host: usize, address: &str) {
        std::fs::write(self.home(host).join("ssh"), address).unwrap();
    }

    /// Connects two ports, each a host and an index.
    pub fn cable(&mut self, a: (usize, usize), b: (usize, usize)) {
        for ((host, port), peer) in [(a, b), (b, a)] {
            let mac = peer_mac(peer.0, peer.1);
            self.plug(host, port, "80 Gb/s", mac);
        }
    }

    /// Puts something into a port.
    pub fn plug(&mut self, host: usize, port: usize, speed: &str, item: Value) {
        let bus = &mut self.ports[host][port];
        bus["receptacle_1_tag"]["receptacle_status_key"] = json!("receptacle_connected");
        bus["receptacle_1_tag"]["current_speed_key"] = json!(speed);
        match bus.get_mut("_items").and_then(Value::as_array_mut) {
            Some(items) => items.push(item),
            None => bus["_items"] = json!([item]),
        }
        self.cabled();
    }

    /// Empties a port.
    pub fn pull(&mut self, host: usize, port: usize) {
        self.ports[host][port] = bus(host, port);
        self.cabled();
    }

    /// Changes what a port is.
    pub fn port(&mut self, host: usize, port: usize) -> &mut Value {
        &mut self.ports[host][port]
    }

    /// Lets the Macs see how they are cabled.
    pub fn cabled(&self) {
        for (host, ports) in self.ports.iter().enumerate() {
            self.write(host, "profiler", &json!({ "SPThunderboltDataType": ports }).to_string());
            let mut links = String::new();
            for (at, port) in ports.iter().enumerate() {
                let status = if port.get("_items").is_some() { "active" } else { "inactive" };
                writeln!(links, "en{} {status}", at + 3).unwrap();
            }
            self.write(host, "links", &links);
        }
    }

    /// A Mac's answers.
    pub fn raw(&self, host: usize) -> Raw {
        let home = self.home(host);
        let mut run = |command: &[&str]| {
            let output = Command::new(home.join("bin").join(command[0]))
                .args(&command[1..])
                .env("HOME", &home)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let words = command.iter().map(|word| (*word).to_owned()).collect();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let code = output.status.code().filter(|code| *code != 127);
            Said { command: words, code, out: text(output.stdout), err: text(output.stderr) }
        };
        Raw::ask(&mut run).unwrap()
    }

    /// All Macs, as they are read.
    pub fn macs(&self) -> Vec<(String, Mac)> {
        let mac = |(host, name): (usize, &String)| (name.clone(), Mac::read(&self.raw(host)).unwrap());
        self.names.iter().enumerate().map(mac).collect()
    }

    /// Runs tbshard with an ssh that knows these Macs.
    pub fn tbshard(&self, args: &[&str]) -> super::Ended {
        let mut command = crate::support::program::command(args);
        command.env("TBSHARD_SSH", self.dir.path().join("ssh")).env("SITE", self.dir.path());
        let output = command.current_dir(self.dir.path()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        super::Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A port with nothing in it.
pub fn bus(host: usize, port: usize) -> Value {
    json!({
        "_name": format!("thunderboltusb4_bus_{port}"),
        "device_name_key": "Mac Studio",
        "domain_uuid_key": domain(host, port),
        "receptacle_1_tag": {
            "current_speed_key": "Up to 120 Gb/s",
            "link_status_key": "0x100",
            "receptacle_id_key": (port + 1).to_string(),
            "receptacle_status_key": "receptacle_no_devices_connected",
        },
        "route_string_key": "0",
        "switch_uid_key": format!("0x05AC00000000000{port}"),
        "vendor_name_key": "Apple Inc.",
    })
}

/// A Mac as another one sees it through a cable.
pub fn peer_mac(host: usize, port: usize) -> Value {
    json!({
        "_name": "Mac Studio", "device_id_key": "0xA", "device_name_key": "Mac16,9", "vendor_id_key": "0xA27",
        // systems differ in how they write it
        "domain_uuid_key": domain(host, port).to_lowercase(),
    })
}

/// A dock with things behind it.
pub fn dock(name: &str, behind: &[Value]) -> Value {
    json!({ "_name": name, "device_name_key": name, "switch_uid_key": "0x00AA", "vendor_name_key": "Acme", "_items": behind })
}
