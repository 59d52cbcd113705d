//! The flags of `tbshard serve`.

use std::net::IpAddr;
use std::time::Duration;

use super::engine::Keeper;
use super::log::Form;
use crate::cli::env;
use crate::cli::load::ModelArgs;
use crate::cli::many::ManyArgs;
use crate::cli::ranks::RankArgs;
use crate::error::{Error, Result};
use crate::serve::Rules;

/// Seconds that a flag can ask for: a hundred years are a slip of the finger.
const MOST_SECONDS: f64 = 1e7;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What clients call the model [default: its short name, hub id or directory]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    name: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) ranks: RankArgs,
    #[command(flatten)]
    pub(super) many: ManyArgs,
    /// Answers that may wait at most; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Many at once")]
    pub(super) max_queue: usize,
    /// The address to listen at; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub(super) host: String,
    /// The port; 0 takes one that is free
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = "Server")]
    pub(super) port: u16,
    /// Let in only who has this key, or one of several; also from TBSHARD_API_KEY, which no process list shows
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Vec<String>,
    /// Let pages of this origin ask: https://chat.example, or * for all; may be given several times
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    cors: Vec<String>,
    /// Also go by this name in `Host`, when listening at this machine alone; may be given several times
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    allow_host: Vec<String>,
    /// Bytes of a request at most
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, help_heading = "Server")]
    max_body: usize,
    /// Seconds that an answer may take, queue and reading included
    #[arg(long, value_name = "S", default_value_t = 3600.0, help_heading = "Server")]
    request_timeout: f64,
    /// Seconds that a client may take to say what it wants, and between two requests
    #[arg(long, value_name = "S", default_value_t = 30.0, help_heading = "Server")]
    read_timeout: f64,
    /// Seconds that running answers have when the server is to end
    #[arg(long, value_name = "S", default_value_t = 30.0, help_heading = "Server")]
    pub(super) drain_timeout: f64,
    /// Times in a row that a lost rank is answered with loading the model again
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Server")]
    max_relaunches: u32,
    /// How a request is logged: a line for people, or JSON
    #[arg(long, value_enum, default_value_t = Form::Text, help_heading = "Output")]
    pub(super) log: Form,
}

impl Args {
    pub(super) fn quiet(&self) -> bool {
        self.model.quiet
    }

    /// The model, with room for as many answers as asked for.
    pub(super) fn model(&self) -> Result<ModelArgs> {
        self.many.over(&self.model)
    }

    /// What clients may.
    pub(super) fn rules(&self) -> Result<Rules> {
        let mut keys = self.api_key.clone();
        keys.extend(env::api_key());
        if keys.iter().any(|key| key.trim().is_empty() || key.trim() != key || !key.is_ascii()) {
            let error = Error::usage("an API key is empty, or has blanks around it, or is not ASCII");
            return Err(error.hint("`openssl rand -hex 24` makes a good one"));
        }
        if let Some(origin) = self.cors.iter().find(|origin| !is_origin(origin)) {
            let error = Error::usage(format!("--cors {origin} is no origin"));
            return Err(
                error.hint("an origin is a scheme, a host and a port, without a path: https://chat.example:8443")
            );
        }
        if self.max_body == 0 {
            return Err(Error::usage("--max-body 0 lets no request in").hint("4194304 is the default"));
        }
        Ok(Rules {
            keys,
            origins: self.cors.clone(),
            names: None,
            max_body: self.max_body,
            patience: seconds("--read-timeout", self.read_timeout, 0.1)?,
            request: seconds("--request-timeout", self.request_timeout, 0.1)?,
            drain: seconds("--drain-timeout", self.drain_timeout, 0.0)?,
        })
    }

    /// The rules with the names that the server goes by: who listens for others may be called anything.
    pub(super) fn called(&self, rules: Rules, address: IpAddr) -> Rules {
        let own = [vec![self.host.clone()], self.allow_host.clone()].concat();
        Rules { names: address.is_loopback().then_some(own), ..rules }
    }

    pub(super) fn keeper(&self, model: ModelArgs) -> Keeper {
        let name = self.name.clone().unwrap_or_else(|| model.short_name());
        Keeper { model, ranks: self.ranks.clone(), limits: self.many.limits(), name, most: self.max_relaunches }
    }
}

fn seconds(flag: &str, seconds: f64, least: f64) -> Result<Duration> {
    if (least..=MOST_SECONDS).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(Error::usage(format!("{flag} {seconds} is not one of {least} to {MOST_SECONDS} seconds"))
        .hint("30 is half a minute"))
}

fn is_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let fits = |host: &str| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    origin == "*" || host.is_some_and(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_no_path() {
        for origin in ["*", "http://localhost:3000", "https://chat.example"] {
            assert!(is_origin(origin), "{origin}");
        }
        for other in ["", "chat.example", "https://", "https://chat.example/", "https://a b"] {
            assert!(!is_origin(other), "{other}");
        }
    }
}
