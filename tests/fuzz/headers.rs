//! Headers of safetensors files, damaged and whole, against what the `safetensors` crate makes of them.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::Value;
use tbshard::weights::{Header, parse_header};

use super::mutation::{File, mutation, valid_file};
use super::{check_refusal, fuzz, watch};
use crate::damage::split;

/// What the crate says of `file`; it adds numbers of the file unchecked, so it may panic.
fn reference(file: &[u8]) -> Result<(usize, Metadata), String> {
    let read = || SafeTensors::read_metadata(file).map_err(|error| error.to_string());
    std::panic::catch_unwind(read).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

/// The ranges are in the file, disjoint, and leave nothing out; each is as long as its shape says.
fn check_ranges(header: &Header, file: &[u8]) -> Result<(), TestCaseError> {
    let mut ranges: Vec<Range<usize>> = header.tensors.values().map(|entry| entry.bytes.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut reached = header.len;
    for range in ranges {
        prop_assert!(range.start == reached && range.end >= range.start, "{range:?} after {reached}");
        reached = range.end;
    }
    prop_assert_eq!(reached, file.len());
    for (name, entry) in &header.tensors {
        let values = entry.shape.iter().map(|n| *n as u128).product::<u128>();
        prop_assert_eq!(values * entry.dtype.bitsize() as u128, entry.bytes.len() as u128 * 8, "{}", name);
    }
    Ok(())
}

fn check_same(ours: &Header, (len, theirs): &(usize, Metadata)) -> Result<(), TestCaseError> {
    prop_assert_eq!(ours.len, len + 8);
    let tensors = theirs.tensors();
    prop_assert_eq!(ours.tensors.len(), tensors.len());
    for (name, info) in tensors {
        let Some(entry) = ours.tensors.get(&name) else { return Err(TestCaseError::fail(format!("no {name:?}"))) };
        let (start, end) = info.data_offsets;
        prop_assert_eq!((entry.dtype, &entry.shape), (info.dtype, &info.shape), "{}", name);
        prop_assert_eq!(&entry.bytes, &(start + ours.len..end + ours.len), "{}", name);
    }
    let metadata: BTreeMap<_, _> = theirs.metadata().clone().unwrap_or_default().into_iter().collect();
    let read: BTreeMap<_, _> =
        ours.metadata.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    prop_assert_eq!(read, metadata);
    Ok(())
}

/// Whether a table in valid JSON names a key twice: a key has a colon outside of any string.
fn repeats_a_key(json: &[u8]) -> bool {
    fn keys(value: &Value) -> usize {
        match value {
            Value::Object(table) => table.values().map(|value| 1 + keys(value)).sum(),
            Value::Array(list) => list.iter().map(keys).sum(),
            _ => 0,
        }
    }
    let (mut colons, mut quoted, mut escaped) = (0, false, false);
    for byte in json {
        quoted ^= *byte == b'"' && !escaped;
        escaped = quoted && *byte == b'\\' && !escaped;
        colons += usize::from(!quoted && *byte == b':');
    }
    serde_json::from_slice(json).is_ok_and(|value| keys(&value) < colons)
}

/// A whole file or a damaged one.
fn file() -> impl Strategy<Value = File> {
    (valid_file(), prop::collection::vec(mutation(), 0..4)).prop_map(|(mut file, mutations)| {
        mutations.iter().for_each(|mutation| mutation.apply(&mut file.0));
        file
    })
}

#[test]
fn headers_are_read_as_the_crate_reads_them() {
    let both = (any::<bool>(), valid_file(), file());
    fuzz(0.2, both, |(whole, valid, File(damaged))| {
        let file = if whole { valid.0 } else { damaged };
        let ours = watch(file.len() * 16 + 4096, || parse_header(&file))?;
        let theirs = reference(&file);
        match (&ours, &theirs) {
            (Err(error), Err(_)) if !whole => check_refusal(error),
            (Ok(header), Ok(theirs)) => {
                check_ranges(header, &file)?;
                check_same(header, theirs)?;
                Ok(true)
            }
            // of two equal keys the last one counts, even if the crate does not like the first
            (Ok(header), Err(_)) if repeats_a_key(split(&file).0) => check_ranges(header, &file).map(|()| true),
            (ours, theirs) => Err(TestCaseError::fail(format!("it is {ours:?}, the crate says {theirs:?}"))),
        }
    });
}
