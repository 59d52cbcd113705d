//! Programs that were written for the real library: rdma-core's own ping-pongs run over this one and break no rule.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use fake_verbs::Fabric;

/// Whether a process of this machine accepts connections at a port.
fn listens(port: u16) -> bool {
    let listening = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|own| own.ends_with(&format!(":{port:04X}"))) && words.nth(1) == Some("0A")
    };
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    tables.iter().any(|table| table.lines().any(listening))
}

/// Runs `program` between two machines; `false` where it is not installed.
fn ping_pong(program: &str, bytes: &str) -> bool {
    let fabric = Fabric::rxe(2);
    // a port that is free now
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |host: &str, peer: Option<&str>| {
        let mut command = Command::new(program);
        command.args(["-d", "rxe0", "-g", "1", "-n", "300", "-s", bytes, "-p", &port.to_string()]).args(peer);
        command.envs(fabric.env(host)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let server = match start("linux0", None) {
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        server => server.unwrap(),
    };
    // a client that comes before the server listens ends, and leaves what it has
    while !listens(port) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let client = start("linux1", Some("127.0.0.1")).unwrap().wait_with_output().unwrap();
    let server = server.wait_with_output().unwrap();
    for end in [client, server] {
        let said = [end.stdout, end.stderr].concat();
        assert!(end.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    assert_eq!((fabric.broken(), fabric.objects().len()), (vec![], 0));
    true
}

#[test]
fn the_ping_pongs_of_rdma_core_run() {
    for program in ["ibv_rc_pingpong", "ibv_uc_pingpong"] {
        for bytes in ["1", "65536"] {
            if !ping_pong(program, bytes) {
                println!("skipped: {program} is not installed (Debian: ibverbs-utils)");
                return;
            }
        }
    }
}
