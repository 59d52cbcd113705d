//! `--hosts` from a machine that is none of them: the command runs on the first host, and its streams come here.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use super::hosts::Machines;
use super::launch::{Marks, Work, on_all};
use super::prompt::read_text;
use super::ranks::RankArgs;
use super::{Command, Outcome, batch};
use crate::error::{Error, Result};

/// Runs this very command line there.
pub(super) fn run(command: &Command, machines: &Machines, ranks: &RankArgs) -> Result<Outcome> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    remove(&mut args, "--hosts", true);
    remove(&mut args, "--deploy", false);
    remove(&mut args, "--heartbeat-timeout", true);
    remove(&mut args, "--rdma-qp", true);
    // files are this machine's
    let mut input = None;
    match command {
        Command::Generate(generate) => {
            if let Some(path) = generate.prompt_file() {
                remove(&mut args, "--prompt-file", true);
                args.extend(["--prompt".to_owned(), "-".to_owned()]);
                input = Some(text(path)?);
            }
        }
        Command::Score(score) => {
            if score.writes_logits() {
                let error = Error::usage("--logits would be written on another machine");
                return Err(error.hint(format!("run it on {}, or add this machine to the hosts", machines.names()[0])));
            }
            if let Some(path) = score.file() {
                remove(&mut args, "--file", true);
                args.extend(["--file".to_owned(), "-".to_owned()]);
                input = Some(text(path)?);
            }
        }
        Command::Serve(_) => {
            let first = &machines.names()[0];
            let error =
                Error::usage(format!("this machine is none of the hosts, and a server would listen on {first}"));
            return Err(error.hint(format!(
                "run it there: `ssh -L 8080:127.0.0.1:8080 {first} tbshard serve …`, or add this machine to the hosts"
            )));
        }
        Command::Bench(bench) => bench.check_relayed(&machines.names()[0])?,
        _ => {}
    }
    let quiet = args.iter().any(|arg| arg == "-q" || arg == "--quiet");
    let (env, silent) = (BTreeMap::new(), ranks.silent()?);
    let marks = Marks::Others;
    let work = Work { program: None, args, env, directory: None, silent, marks, input, output: None, quiet };
    if let Command::Batch(args) = command {
        return batch::relay(args, machines, work);
    }
    on_all(machines, ranks.hosts.deploy, work)
}

fn text(path: &Path) -> Result<Box<dyn Read + Send>> {
    Ok(Box::new(Cursor::new(read_text(path)?)))
}

/// Removes `flag`, and its value if it has one.
fn remove(args: &mut Vec<String>, flag: &str, value: bool) {
    let joined = format!("{flag}=");
    while let Some(at) = args.iter().position(|arg| arg == flag || (value && arg.starts_with(&joined))) {
        let last = if value && args[at] == flag { at + 1 } else { at };
        args.drain(at..=last.min(args.len() - 1));
    }
}
