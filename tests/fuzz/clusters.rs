//! Cluster files with random damage, and bytes that never were one: refused with a line and a hint, or a cluster that holds
//! what the rest of the program relies on.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use tbshard::cluster::{Cluster, Topology};

use super::{Outcome, check_refusal, fuzz, watch};

/// What is spliced in.
const FRAGMENTS: [&str; 40] = [
    ":",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "#",
    "\"",
    "'",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "<<: *machine",
    "!!str ",
    "---\n",
    "|\n",
    "null",
    "~",
    "0",
    "-1",
    "1e9",
    ".nan",
    "5",
    "hosts:",
    "name: x",
    "ssh: -x",
    "port: 0",
    "rdma: {}",
    "rdma: [null]",
    "ips: []",
    "backend: jaccl",
    "parallel: {tp: 2}",
    "memory: 1GB",
    "\u{202e}",
    "\u{0}",
    "é",
];

#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Insert(Index, &'static str),
    Cut(Index, usize),
    /// Some bytes once more, somewhere else.
    Copy(Index, usize, Index),
    Truncate(Index),
}

impl Edit {
    fn apply(&self, text: &mut Vec<u8>) {
        let end = |from: usize, len: usize, text: &[u8]| (from + len).min(text.len());
        match self {
            Self::Flip(at, mask) if !text.is_empty() => {
                let at = at.index(text.len());
                text[at] ^= mask;
            }
            Self::Flip(..) => {}
            Self::Insert(at, fragment) => {
                let at = at.index(text.len() + 1);
                text.splice(at..at, fragment.bytes());
            }
            Self::Cut(at, len) => {
                let at = at.index(text.len() + 1);
                text.drain(at..end(at, *len, text));
            }
            Self::Copy(from, len, to) => {
                let (from, to) = (from.index(text.len() + 1), to.index(text.len() + 1));
                let copied = text[from..end(from, *len, text)].to_vec();
                text.splice(to..to, copied);
            }
            Self::Truncate(at) => text.truncate(at.index(text.len() + 1)),
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<Index>;
    prop_oneof![
        2 => (index(), 1..=255_u8).prop_map(|(at, mask)| Edit::Flip(at, mask)),
        4 => (index(), select(&FRAGMENTS[..])).prop_map(|(at, fragment)| Edit::Insert(at, fragment)),
        2 => (index(), 1..60_usize).prop_map(|(at, len)| Edit::Cut(at, len)),
        2 => (index(), 1..200_usize, index()).prop_map(|(from, len, to)| Edit::Copy(from, len, to)),
        1 => index().prop_map(Edit::Truncate),
    ]
}

/// An example after some edits, or any bytes, with much of YAML's own signs in them.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut texts: Vec<Vec<u8>> =
        std::fs::read_dir(dir).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect();
    texts.sort();
    assert!(texts.len() >= 7);
    let edited = (select(texts), prop::collection::vec(edit(), 0..6)).prop_map(|(mut text, edits)| {
        edits.iter().for_each(|edit| edit.apply(&mut text));
        text
    });
    let signs = prop::collection::vec(select(&FRAGMENTS[..]), 0..60).prop_map(|signs| signs.concat().into_bytes());
    prop_oneof![6 => edited, 1 => signs, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// What the launcher and the ranks rely on.
fn check_sane(cluster: &Cluster) -> Outcome {
    let size = cluster.hosts.len();
    prop_assert!(size > 0 && cluster.weights().len() == size && !cluster.weights().contains(&0));
    for (rank, host) in cluster.hosts.iter().enumerate() {
        let words = [&host.name, &host.ssh].into_iter().chain(&host.user);
        for word in words {
            let bad = |c: char| c.is_whitespace() || c.is_control() || "'`\"$\\;&<>|(){}".contains(c);
            prop_assert!(!word.is_empty() && !word.starts_with('-') && !word.contains(bad), "{word:?}");
        }
        prop_assert!(
            cluster.hosts[..rank].iter().all(|other| other.name != host.name),
            "{:?} is there twice",
            host.name
        );
        prop_assert!(host.rdma.is_empty() || host.rdma.len() == size && host.rdma[rank].is_empty(), "{:?}", host.rdma);
        for (peer, devices) in host.rdma.iter().enumerate() {
            prop_assert_eq!(devices.len(), cluster.hosts[peer].rdma[rank].len());
            prop_assert!(cluster.topology == Topology::Ring || peer == rank || !devices.is_empty());
        }
    }
    Ok(true)
}

#[test]
fn cluster_files_are_refused_or_sane() {
    fuzz(0.1, damaged(), |bytes| {
        let Ok(text) = String::from_utf8(bytes) else { return Ok(false) };
        match watch(1 << 20, || Cluster::parse(&text, "cluster.yaml"))? {
            Ok(cluster) => {
                let written = cluster.to_yaml();
                let back = Cluster::parse(&written, "written.yaml");
                prop_assert!(back.is_ok(), "{:?}\n{written}", back.err());
                prop_assert_eq!(back.unwrap(), cluster.clone(), "{}", written);
                check_sane(&cluster)
            }
            Err(error) => {
                let line = error.to_string();
                prop_assert!(line.starts_with("cluster.yaml:"), "{line}");
                prop_assert!(!line.contains(char::is_control), "{line:?}");
                check_refusal(&error)
            }
        }
    });
}
