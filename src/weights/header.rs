//! The header of a safetensors file, checked so that no length in it is believed before it is compared.
//!
//! The `safetensors` crate's own check names no tensor in most of its errors and adds untrusted lengths unchecked.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::{Dtype, TensorInfo};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::entries::Entries;
use crate::error::{Error, Result};

const AGAIN: &str = "the file is damaged or its download was cut off, fetch it again";

/// The entry that is no tensor.
const METADATA: &str = "__metadata__";

/// How the stand-in begins that git leaves where git-lfs did not put the file.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Where the tensors of one file lie.
#[derive(Debug)]
pub struct Header {
    /// Name, type, shape, and byte range counted from the start of the file.
    pub tensors: BTreeMap<String, Entry>,
    /// The `__metadata__` table.
    pub metadata: Map<String, Value>,
    /// Bytes before the first tensor.
    pub len: usize,
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The element type as the file names it.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Byte range counted from the start of the file.
    pub bytes: Range<usize>,
}

/// Reads and checks the header of `file`, the content of a safetensors file.
///
/// # Errors
/// If the header is not one, or its ranges overlap, leave holes, or end elsewhere than the file does.
pub fn parse_header(file: &[u8]) -> Result<Header> {
    let Some(length) = file.first_chunk::<8>() else {
        return Err(Error::msg(format!("{} bytes are too few for a safetensors file", file.len())).hint(AGAIN));
    };
    if file.starts_with(LFS_POINTER) {
        return Err(Error::msg("the file is a git-lfs pointer, not the weights").hint("run `git lfs pull`"));
    }
    let length = u64::from_le_bytes(*length);
    let end = usize::try_from(length).ok().and_then(|length| length.checked_add(8));
    let Some((len, json)) = end.and_then(|end| Some((end, file.get(8..end)?))) else {
        let error = format!("the header says it has {length} bytes in a file of {}", file.len());
        return Err(Error::msg(error).hint(AGAIN));
    };
    let entries: Entries<&RawValue> = serde_json::from_slice(json)
        .map_err(|error| Error::msg(format!("the header is not a JSON object: {error}")).hint(AGAIN))?;
    let (mut tensors, mut metadata) = (BTreeMap::new(), Map::new());
    for (name, info) in entries.0 {
        if name != METADATA {
            let entry = entry(&name, info.get(), len)?;
            tensors.insert(name, entry);
            continue;
        }
        metadata = match serde_json::from_str(info.get()) {
            Ok(Value::Null) => Map::new(),
            Ok(Value::Object(table)) if table.values().all(Value::is_string) => table,
            _ => return Err(Error::msg("the header's `__metadata__` is not a table of strings").hint(AGAIN)),
        };
    }
    check_cover(&tensors, len, file.len())?;
    Ok(Header { tensors, metadata, len })
}

fn entry(name: &str, info: &str, header: usize) -> Result<Entry> {
    let TensorInfo { dtype, shape, data_offsets: (start, end) } = serde_json::from_str(info).map_err(|error| {
        let info: Value = serde_json::from_str(info).unwrap_or_default();
        let unknown = info.get("dtype").filter(|dtype| serde_json::from_value::<Dtype>((*dtype).clone()).is_err());
        if let Some(dtype) = unknown {
            let error = Error::msg(format!("tensor `{name}` has the unknown dtype {dtype}"));
            return error.hint("tbshard reads F32, F16, BF16 and F8_E4M3 weights");
        }
        Error::msg(format!("the header's entry for tensor `{name}` is malformed: {error}")).hint(AGAIN)
    })?;
    let values = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
    let bits = values.and_then(|values| values.checked_mul(dtype.bitsize()));
    let place = header.checked_add(start).zip(header.checked_add(end));
    match (bits, end.checked_sub(start), place) {
        (Some(bits), Some(len), Some((start, end))) if bits % 8 == 0 && bits / 8 == len => {
            Ok(Entry { dtype, shape, bytes: start..end })
        }
        _ => {
            let error =
                format!("tensor `{name}` of shape {shape:?} and type {dtype:?} cannot lie at bytes {start}..{end}");
            Err(Error::msg(error).hint(AGAIN))
        }
    }
}

/// Every byte after the header belongs to exactly one tensor.
fn check_cover(tensors: &BTreeMap<String, Entry>, header: usize, file: usize) -> Result<()> {
    let mut order: Vec<(&String, &Range<usize>)> = tensors.iter().map(|(name, entry)| (name, &entry.bytes)).collect();
    order.sort_by_key(|(_, bytes)| (bytes.start, bytes.end));
    let mut reached = header;
    for (name, bytes) in order {
        let wrong = match bytes.start.cmp(&reached) {
            std::cmp::Ordering::Less => "overlaps the tensor before it",
            std::cmp::Ordering::Greater => "leaves a hole before it",
            std::cmp::Ordering::Equal if bytes.end > file => "ends after the file does",
            std::cmp::Ordering::Equal => "",
        };
        if !wrong.is_empty() {
            let error = format!("tensor `{name}` at bytes {}..{} of {file} {wrong}", bytes.start, bytes.end);
            return Err(Error::msg(error).hint(AGAIN));
        }
        reached = bytes.end;
    }
    if reached != file {
        return Err(Error::msg(format!("the last tensor ends at byte {reached}, the file at {file}")).hint(AGAIN));
    }
    Ok(())
}
