//! The flags of RDMA, and what they say for ranks of this machine.

use clap::{Args, ValueEnum};

use super::ranks::FabricArg;
use crate::error::{Error, Result};
use crate::transport::rdma::{Cabling, Library, Place, Service};
use crate::transport::verbs::Device;

/// How RDMA is used, where it is.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Ranks")]
pub(super) struct RdmaArgs {
    /// What queue pairs promise [default: uc on Thunderbolt, which has nothing else, and rc elsewhere]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) rdma_qp: Option<ServiceArg>,
    /// The RDMA device of --transport rdma, which must reach itself; its port and GID, if not the first [default: the only
    /// one]
    #[arg(long, value_name = "NAME[:PORT[:GID]]")]
    pub(super) rdma_device: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ServiceArg {
    /// Reliable: the device repeats what is lost
    Rc,
    /// Unreliable: what is lost ends the run with an error
    Uc,
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
                Place::of(name)
            }
        };
        let service = self.service();
        Ok(Cabling { devices: vec![vec![device]; ranks], service, ..Cabling::default() })
    }
}
