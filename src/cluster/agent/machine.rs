//! What a machine is: what agents say of theirs.

use std::net::IpAddr;

use super::wire::Machine;

impl Machine {
    /// This machine; `ssh_connection` is that environment variable, which tells how it was reached.
    pub fn here(build: &str, ssh_connection: Option<&str>) -> Self {
        let uname = rustix::system::uname();
        let hostname = uname.nodename().to_string_lossy().into_owned();
        let system = format!("{} {}", uname.sysname().to_string_lossy(), uname.machine().to_string_lossy());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let id = boot_id().unwrap_or_else(|| hostname.clone());
        Self { version, build: build.to_owned(), system, hostname, id, link: ssh_connection.and_then(link) }
    }
}

/// Of `client-ip client-port server-ip server-port`: the server's and the client's.
fn link(connection: &str) -> Option<(IpAddr, IpAddr)> {
    let words: Vec<&str> = connection.split_whitespace().collect();
    let [client, _, server, _] = words[..] else { return None };
    // a link-local address is followed by its interface
    let address = |text: &str| text.split('%').next().and_then(|text| text.parse().ok());
    Some((address(server)?, address(client)?))
}

/// A number that the kernel chose when it started.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_is_read_from_what_sshd_says() {
        let addresses = |server: &str, client: &str| Some((server.parse().unwrap(), client.parse().unwrap()));
        assert_eq!(link("10.0.0.1 50000 10.0.0.2 22"), addresses("10.0.0.2", "10.0.0.1"));
        assert_eq!(link("fe80::1%en0 50000 fe80::2%en0 22"), addresses("fe80::2", "fe80::1"));
        assert_eq!(link("nonsense"), None);
    }
}
