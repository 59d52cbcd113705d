//! What a host says of its RDMA devices, and what of that keeps a run from working.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Level};
use crate::transport::rdma::{Examination, Place, examine};

/// What a host says of its RDMA devices.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Devices {
    absent: Option<String>,
    devices: Vec<Examination>,
}

impl Devices {
    /// This machine's.
    pub fn here() -> Self {
        let found = examine(None);
        Self { absent: found.absent, devices: found.devices }
    }

    /// What of it would keep a run over `named` from working, on `host`.
    pub fn findings(&self, host: &str, named: &[Vec<Place>]) -> Vec<Finding> {
        let wrong = |what: String, fix: &str| Finding::new(Level::Error, host, what, fix);
        if let Some(why) = &self.absent {
            let fix = "apt install libibverbs1 ibverbs-providers (Debian); macOS 26.2 or later (Mac)";
            return vec![wrong(why.clone(), fix)];
        }
        let mut names: Vec<&str> = named.iter().flatten().map(|place| place.device.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let judge = |name: &str| {
            let Some(device) = self.devices.iter().find(|device| device.name == name) else {
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
