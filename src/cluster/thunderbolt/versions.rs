//! `sw_vers`: which macOS it is.

use serde::Serialize;

use super::{shown, strange};
use crate::error::Result;

/// A version of macOS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// `26.3`, as numbers.
    pub product: (u32, u32),
    /// `26.3.1 (25D2128)`
    pub text: String,
}

/// Reads the version.
pub(super) fn parse(text: &str) -> Result<Version> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let Some(product) = value("ProductVersion:") else {
        return Err(strange("sw_vers", "there is no `ProductVersion:`"));
    };
    let mut numbers = product.split('.').map(|part| part.parse::<u32>().ok());
    let Some(major) = numbers.next().flatten() else { return Err(strange("sw_vers", shown(product))) };
    let minor = numbers.next().flatten().unwrap_or(0);
    let text = value("BuildVersion:").map_or_else(|| product.to_owned(), |build| format!("{product} ({build})"));
    Ok(Version { product: (major, minor), text })
}
