//! The flags of RDMA, and what they say for ranks of this machine.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::ranks::FabricArg;
use crate::cluster::finding::{Finding, Level};
use crate::error::{Error, Result};
use crate::transport::rdma::{Cabling, Examination, Library, Service, examine};
use crate::transport::verbs::Device;

/// How RDMA is used, where it is.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct RdmaArgs {
    /// What queue pairs promise [default: uc on Thunderbolt, which has nothing else, and rc elsewhere]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) rdma_qp: Option<ServiceArg>,
    /// The RDMA device of --transport rdma; it must reach itself [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub(super) rdma_device: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ServiceArg {
    /// Reliable: the device repeats what is lost
    Rc,
    /// Unreliable: what is lost ends the run with an error
    Uc,
}

/// What a host says of its RDMA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Said {
    absent: Option<String>,
    devices: Vec<Examination>,
}

impl Said {
    /// This machine's.
    pub(super) fn here() -> Self {
        let found = examine(None);
        Self { absent: found.absent, devices: found.devices }
    }

    /// What of it would keep a run over `named` from working, on `host`.
    pub(super) fn findings(&self, host: &str, named: &[Vec<String>]) -> Vec<Finding> {
        let wrong = |what: String, fix: &str| Finding::new(Level::Error, host, what, fix);
        if let Some(why) = &self.absent {
            let fix = "apt install libibverbs1 ibverbs-providers (Debian); macOS 26.2 or later (Mac)";
            return vec![wrong(why.clone(), fix)];
        }
        let mut names: Vec<&String> = named.iter().flatten().collect();
        names.sort();
        names.dedup();
        let judge = |name: &String| {
            let Some(device) = self.devices.iter().find(|device| device.name == *name) else {
                let there: Vec<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
                let what = format!("it has no RDMA device `{name}`, only: {}", there.join(", "));
                return Some(wrong(what, "mend `rdma:` in the cluster file; `ibv_devices` lists what there is"));
            };
            match (&device.error, device.port) {
                (Some(error), _) => Some(wrong(error.clone(), "`tbshard selftest` there tries each step")),
                (None, None) => {
                    let fix = "plug its cable in at both ends; `ibv_devinfo` shows the port's state";
                    Some(wrong(format!("RDMA device `{name}` has no active port"), fix))
                }
                (None, Some(_)) => None,
            }
        };
        names.into_iter().filter_map(judge).collect()
    }
}

impl ServiceArg {
    pub(super) fn service(self) -> Service {
        match self {
            Self::Rc => Service::Rc,
            Self::Uc => Service::Uc,
        }
    }
}

impl RdmaArgs {
    /// What queue pairs are to promise, if the user says.
    pub(super) fn service(&self) -> Option<Service> {
        self.rdma_qp.map(ServiceArg::service)
    }

    /// Refuses what has no meaning without `--transport rdma`.
    pub(super) fn check(&self, transport: Option<FabricArg>) -> Result<()> {
        if self.rdma_device.is_none() || transport == Some(FabricArg::Rdma) {
            return Ok(());
        }
        let error = Error::usage("--rdma-device is for --local with --transport rdma");
        Err(error.hint("between machines, `rdma:` in the cluster file names the devices"))
    }

    /// One device for all ranks of this machine.
    pub(super) fn local(&self, ranks: usize) -> Result<Cabling> {
        let device = match &self.rdma_device {
            Some(device) => device.clone(),
            None => {
                let names = Device::names(Library::system()?)?;
                let [name] = &names[..] else {
                    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                    let error = Error::usage(format!("--transport rdma needs one RDMA device; there are: {there}"));
                    return Err(error.hint("--rdma-device NAME picks one; `rdma link add` makes a software device"));
                };
                name.clone()
            }
        };
        let service = self.service();
        Ok(Cabling { devices: vec![vec![device]; ranks], service, ..Cabling::default() })
    }
}
