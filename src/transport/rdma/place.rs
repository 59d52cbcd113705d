//! Where a cable ends: a device, and if need be which of its ports, by which of the port's addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// `mlx5_0`; `mlx5_0:2` is its second port, `mlx5_0:2:3` by the GID at place 3 of that port's table, and `mlx5_0::3` leaves
/// the port open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    /// The device's name.
    pub device: String,
    /// The port, or the first that is active.
    pub port: Option<u8>,
    /// The place in the table of GIDs, or that of the IPv4-mapped one.
    pub gid: Option<u8>,
}

impl Place {
    /// A device whose port and address need no choice.
    pub fn of(device: impl Into<String>) -> Self {
        Self { device: device.into(), port: None, gid: None }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let error = Error::usage(format!("`{text}` is no RDMA device, nor one with a port and a GID"));
            error.hint("write mlx5_0, mlx5_0:2 for its second port, or mlx5_0:2:3 for the GID at place 3 of that port")
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let number = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::parse::<u8>).transpose();
        let mut parts = text.splitn(3, ':');
        let device = parts.next().unwrap_or_default().to_owned();
        let named = matches!(device.len(), 1..=63) && device.bytes().all(fits) && !device.starts_with('-');
        let numbered = text.bytes().skip(device.len()).all(|byte| byte.is_ascii_digit() || byte == b':');
        let (Ok(port), Ok(gid)) = (number(parts.next()), number(parts.next())) else { return Err(wrong()) };
        if !named || !numbered || port == Some(0) || text.ends_with(':') {
            return Err(wrong());
        }
        Ok(Self { device, port, gid })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, port, gid } = self;
        write!(f, "{device}")?;
        match (port, gid) {
            (None, None) => Ok(()),
            (Some(port), None) => write!(f, ":{port}"),
            (None, Some(gid)) => write!(f, "::{gid}"),
            (Some(port), Some(gid)) => write!(f, ":{port}:{gid}"),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["mlx5_0", "rdma_en3", "rocep1s0f0:2", "rxe0:1:0", "rxe0::255", "a-b.c"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        let place = Place { device: "mlx5_0".to_owned(), port: Some(2), gid: Some(3) };
        assert_eq!("mlx5_0:2:3".parse::<Place>().unwrap(), place);
        for text in
            ["", ":1", "-a", "a b", "a:", "a::", "a:0", "a:256", "a:1:", "a:1:256", "a:1:2:3", "a:x", "a:1:-1", "a:+1"]
        {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
