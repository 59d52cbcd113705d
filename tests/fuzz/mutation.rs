//! Damage to the bytes of a safetensors file, most of it inside its header's JSON.

use proptest::prelude::*;
use proptest::sample::Index;
use safetensors::tensor::{Dtype, TensorView};

use crate::damage::{join, split};

/// What is spliced into JSON.
const FRAGMENTS: [&str; 24] = [
    ",",
    ":",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "{}",
    "0",
    "-",
    ".5",
    "e9",
    "null,",
    "[0],",
    " \n\t",
    "\\ud800",
    "\u{0}",
    "\"x\":1,",
    "\"dtype\":\"F32\",",
    "\"shape\":[],",
    "\"__metadata__\":{\"a\":\"b\"},",
    "\"empty\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},",
    "\"all\":{\"dtype\":\"U8\",\"shape\":[18446744073709551615],\"data_offsets\":[0,18446744073709551615]},",
];

const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

/// The bytes of a file, shown as text.
#[derive(Clone)]
pub struct File(pub Vec<u8>);

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One act of damage. Places are shares of whatever there is to be damaged.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// Any byte of the file is changed.
    Flip(Index, u8),
    /// The file is cut off.
    Truncate(Index),
    /// The file is too long.
    Append(Vec<u8>),
    /// The header's length is another one.
    Length(u64),
    /// A number of the header is another one.
    Number(Index, u64),
    /// A number of the header is a few more or less.
    Shift(Index, i8),
    /// Two numbers of the header change places.
    Swap(Index, Index),
    /// Something is spliced into the header.
    Insert(Index, &'static str),
    /// Some bytes of the header are left out.
    Cut(Index, usize),
}

impl Mutation {
    pub fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Flip(_, _) | Self::Truncate(_) if file.is_empty() => {}
            Self::Flip(at, mask) => {
                let at = at.index(file.len());
                file[at] ^= mask;
            }
            Self::Truncate(at) => file.truncate(at.index(file.len())),
            Self::Append(bytes) => file.extend_from_slice(bytes),
            Self::Length(length) => {
                let len = file.len().min(8);
                file[..len].copy_from_slice(&length.to_le_bytes()[..len]);
            }
            Self::Number(..) | Self::Shift(..) | Self::Swap(..) | Self::Insert(..) | Self::Cut(..) => {
                let header = file.first_chunk().map(|len| u64::from_le_bytes(*len));
                // an earlier mutation may have broken the header
                if header.is_some_and(|len| len < file.len() as u64 - 8) {
                    let (json, data) = split(file);
                    let mut json = json.to_vec();
                    self.apply_to_json(&mut json);
                    *file = join(&json, data);
                }
            }
        }
    }

    pub fn apply_to_json(&self, json: &mut Vec<u8>) {
        let numbers = numbers(json);
        match self {
            Self::Insert(at, text) => {
                let at = at.index(json.len() + 1);
                json.splice(at..at, text.bytes());
            }
            Self::Cut(at, len) => {
                let at = at.index(json.len() + 1);
                json.drain(at..(at + len).min(json.len()));
            }
            Self::Swap(a, b) if !numbers.is_empty() => {
                let (a, b) = (a.get(&numbers).clone(), b.get(&numbers).clone());
                let (first, second) = if a.start <= b.start { (a, b) } else { (b, a) };
                let (one, two) = (json[first.clone()].to_vec(), json[second.clone()].to_vec());
                json.splice(second, one);
                json.splice(first, two);
            }
            Self::Number(at, number) if !numbers.is_empty() => {
                json.splice(at.get(&numbers).clone(), number.to_string().into_bytes());
            }
            Self::Shift(at, by) if !numbers.is_empty() => {
                let range = at.get(&numbers).clone();
                let number: i128 = String::from_utf8_lossy(&json[range.clone()]).parse().unwrap_or(0);
                json.splice(range, (number + i128::from(*by)).to_string().into_bytes());
            }
            _ => {}
        }
    }
}

/// Where the runs of digits are.
fn numbers(json: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..json.len()).filter(|at| json[*at].is_ascii_digit()) {
        match found.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => found.push(at..at + 1),
        }
    }
    found
}

fn number() -> impl Strategy<Value = u64> {
    let exponents = (0..64_u32, -2..3_i64).prop_map(|(exponent, by)| (1_u64 << exponent).wrapping_add_signed(by));
    prop_oneof![0..300_u64, exponents, any::<u64>()]
}

pub fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        2 => (index(), 1..=255_u8).prop_map(|(at, mask)| Mutation::Flip(at, mask)),
        1 => index().prop_map(Mutation::Truncate),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Mutation::Append),
        1 => number().prop_map(Mutation::Length),
        3 => (index(), number()).prop_map(|(at, number)| Mutation::Number(at, number)),
        3 => (index(), any::<i8>()).prop_map(|(at, by)| Mutation::Shift(at, by)),
        3 => (index(), index()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        3 => (index(), prop::sample::select(&FRAGMENTS[..])).prop_map(|(at, text)| Mutation::Insert(at, text)),
        1 => (index(), 1..40_usize).prop_map(|(at, len)| Mutation::Cut(at, len)),
    ]
}

/// A valid file of a few small tensors, written by the `safetensors` crate.
pub fn valid_file() -> impl Strategy<Value = File> {
    let shape = prop::collection::vec(0..5_usize, 0..4);
    let tensor = (prop::sample::select(&DTYPES[..]), shape, any::<u8>());
    let tensors = prop::collection::btree_map(".{0,6}", tensor, 0..6);
    // the crate writes no valid file of an empty table and no tensors
    let metadata = prop::option::of(prop::collection::hash_map(".{0,4}", ".{0,4}", 1..3));
    (tensors, metadata).prop_map(|(tensors, metadata)| {
        let mut owned = Vec::new();
        for (name, (dtype, mut shape, fill)) in tensors {
            let bits = |shape: &[usize]| shape.iter().product::<usize>() * dtype.bitsize();
            if !bits(&shape).is_multiple_of(8) {
                shape.push(8);
            }
            let bytes = vec![fill; bits(&shape) / 8];
            owned.push((name, dtype, shape, bytes));
        }
        let views = owned
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        File(safetensors::serialize(views, metadata).unwrap())
    })
}
