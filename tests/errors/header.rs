//! A safetensors file whose header is damaged or lies.

use serde_json::{Map, Value, json};
use tbshard::error::Result;
use tbshard::models::Model;

use crate::damage::{Specimen, join, refused, refused_with_hint, split};

const FILE: &str = "model-00001-of-00002.safetensors";
/// Tensors of that file, one after the other: the first, the second, and the last.
const FIRST: &str = "model.embed_tokens.weight";
const SECOND: &str = "model.layers.0.input_layernorm.weight";
const LAST: &str = "model.norm.weight";

fn open(damage: impl FnOnce(&mut Vec<u8>)) -> Result<Model> {
    let specimen = Specimen::of("llama");
    specimen.edit_bytes(FILE, damage);
    specimen.open()
}

fn open_with_header(damage: impl FnOnce(&mut Map<String, Value>)) -> Result<Model> {
    let specimen = Specimen::of("llama");
    specimen.edit_header(FILE, damage);
    specimen.open()
}

/// Puts `json` in the place of the header.
fn open_with_json(json: &[u8]) -> Result<Model> {
    open(|bytes| *bytes = join(json, split(bytes).1))
}

/// Sets one field of the entry of `tensor`.
fn open_with_field(tensor: &str, field: &str, value: Value) -> Result<Model> {
    open_with_header(|header| header[tensor][field] = value)
}

#[test]
fn a_file_that_was_cut_off() {
    let whole = std::fs::read(Specimen::of("llama").path(FILE)).unwrap();
    let header = 8 + split(&whole).0.len();
    let (len, header_len) = (whole.len(), header - 8);
    let lies = format!("the header says it has {header_len} bytes in a file of");
    let outside = "ends after the file does";
    let cases: &[(usize, &[&str])] = &[
        (0, &["is empty"]),
        (1, &["1 bytes are too few for a safetensors file"]),
        (7, &["7 bytes are too few for a safetensors file"]),
        (8, &[&lies, "a file of 8"]),
        (header / 2, &[&lies]),
        (header - 1, &[&lies]),
        (header, &[FIRST, outside]),
        (header + 43_199, &[FIRST, outside]),
        (header + 43_200, &[SECOND, outside]),
        (len / 2, &["tensor `model.layers.1.self_attn.o_proj.weight`", outside]),
        (len - 1, &["tensor `model.norm.weight`", outside, &format!("of {}", len - 1)]),
    ];
    for (keep, words) in cases {
        let result = open(|bytes| bytes.truncate(*keep));
        refused_with_hint(result, &[&[FILE], *words].concat(), "fetch");
    }
}

#[test]
fn a_file_that_is_too_long() {
    for extra in [1, 8, 4096] {
        let result = open(|bytes| bytes.resize(bytes.len() + extra, 0));
        refused(result, &[FILE, &format!("the last tensor ends at byte 133416, the file at {}", 133_416 + extra)]);
    }
}

#[test]
fn a_header_length_that_lies() {
    let said = |length: u64| open(|bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()));
    // 1936 bytes of header in a file of 133416
    refused(said(0), &[FILE, "the header is not a JSON object: EOF"]);
    refused(said(1), &[FILE, "the header is not a JSON object: EOF"]);
    refused(said(1000), &[FILE, "the header is not a JSON object: EOF"]);
    refused(said(2000), &[FILE, "the header is not a JSON object"]);
    refused(said(133_408), &[FILE, "the header is not a JSON object"]);
    for length in [133_409, 1 << 31, 1 << 32, i64::MAX as u64, u64::MAX - 8, u64::MAX - 7, u64::MAX] {
        let words = format!("the header says it has {length} bytes in a file of 133416");
        refused_with_hint(said(length), &[FILE, &words], "damaged");
    }
}

#[test]
fn a_header_that_is_not_one() {
    let not = "the header is not a JSON object";
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let deep_inside = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
    let cases: [&[u8]; 10] = [
        b"",
        b"        ",
        b"hello",
        b"[]",
        b"null",
        b"\"dtype\"",
        b"{\"a\": {\"dtype\": \"F32\", \"shape\": [], \"data_offsets\": [0, 4]},}",
        b"{} {}",
        b"{\"\xff\xfe\": {}}",
        &deep,
    ];
    for json in cases {
        refused(open_with_json(json), &[FILE, not]);
    }
    refused(open_with_json(&deep_inside), &[FILE, "the header's entry for tensor `a` is malformed"]);
    // the name of a real tensor with a byte that is no UTF-8
    refused(open(|bytes| bytes[8 + 30] = 0xff), &[FILE, not]);
    // an intact file, but of another format
    refused(open(|bytes| *bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec()), &[FILE, "the header says it has"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 133416\n";
    refused_with_hint(open(|bytes| *bytes = pointer.to_vec()), &[FILE, "a git-lfs pointer"], "git lfs pull");
}

#[test]
fn an_empty_header_owns_no_data() {
    refused(open_with_json(b"{}"), &[FILE, "the last tensor ends at byte 10, the file at 131482"]);
    refused(open(|bytes| *bytes = join(b"{}", b"")), &[FILE, "is not in", "where the index puts it"]);
}

#[test]
fn metadata_that_is_no_table_of_strings() {
    for value in [json!(1), json!("pt"), json!(["pt"]), json!({"format": 1}), json!({"format": null})] {
        let result = open_with_header(|header| header["__metadata__"] = value);
        refused(result, &[FILE, "`__metadata__` is not a table of strings"]);
    }
    for value in [json!(null), json!({}), json!({"format": "pt", "": "…"})] {
        open_with_header(|header| header["__metadata__"] = value).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[test]
fn ranges_that_overlap_or_leave_holes() {
    let tensor = format!("tensor `{SECOND}`");
    // the first tensor has bytes 0..43200, the second 144 more
    let moved = |start: usize| open_with_field(SECOND, "data_offsets", json!([start, start + 144]));
    refused(moved(43_198), &[FILE, &tensor, "overlaps the tensor before it"]);
    refused(moved(0), &[FILE, "overlaps the tensor before it"]);
    refused(moved(43_202), &[FILE, &tensor, "leaves a hole before it"]);
    refused(moved(131_472), &[FILE, "leaves a hole before it"]);
    refused(moved(1 << 63), &[FILE, "leaves a hole before it"]);
    let overlap = open_with_header(|header| header[LAST]["data_offsets"] = header[SECOND]["data_offsets"].clone());
    refused(overlap, &[FILE, "overlaps the tensor before it"]);
    let hole = open_with_header(|header| drop(header.remove(SECOND)));
    refused(hole, &[FILE, "model.layers.0.mlp.down_proj.weight", "leaves a hole before it"]);
    let at_the_end = open_with_header(|header| drop(header.remove(LAST)));
    refused(at_the_end, &[FILE, "the last tensor ends at byte", "the file at 133"]);
    let before_the_first = open(|bytes| {
        let (json, data) = split(bytes);
        let text = String::from_utf8(json.to_vec()).unwrap();
        *bytes = join(text.replacen("[0,43200]", "[8,43208]", 1).as_bytes(), data);
    });
    refused(before_the_first, &[FILE, FIRST, "leaves a hole before it"]);
}

#[test]
fn ranges_that_do_not_hold_the_shape() {
    let cases = [
        json!([43_200, 43_200]),
        json!([43_200, 43_342]),
        json!([43_344, 43_200]),
        json!([0, u64::MAX]),
        json!([u64::MAX - 143, u64::MAX]),
        json!([u64::MAX, 0]),
    ];
    for offsets in cases {
        let result = open_with_field(SECOND, "data_offsets", offsets);
        refused(result, &[FILE, &format!("tensor `{SECOND}`")]);
    }
}

#[test]
fn shapes_that_overflow() {
    let huge: &[Value] = &[
        json!([u64::MAX]),
        json!([1_u64 << 63]),
        json!([1_u64 << 32, 1_u64 << 32]),
        json!([1_u64 << 40, 1_u64 << 40, 0]),
        // their product is 72 in 64 bits
        json!([(1_u64 << 61) + 9, 8]),
        json!([u64::MAX, u64::MAX, u64::MAX]),
        json!(vec![2; 64]),
    ];
    for shape in huge {
        let result = open_with_field(SECOND, "shape", shape.clone());
        refused(
            result,
            &[FILE, &format!("tensor `{SECOND}` of shape ["), "type BF16 cannot lie at bytes 43200..43344"],
        );
    }
}

#[test]
fn entries_that_are_malformed() {
    let of = format!("entry for tensor `{SECOND}` is malformed");
    let cases = [
        ("shape", json!("72")),
        ("shape", json!([-72])),
        ("shape", json!([72.0])),
        ("shape", json!([1e300])),
        ("shape", json!([null])),
        ("shape", json!(null)),
        ("data_offsets", json!([43_200])),
        ("data_offsets", json!([43_200, 43_344, 0])),
        ("data_offsets", json!(["0", "144"])),
        ("data_offsets", json!([-144, 0])),
        ("data_offsets", json!({})),
    ];
    for (field, value) in cases {
        refused(open_with_field(SECOND, field, value), &[FILE, &of]);
    }
    for value in [json!(null), json!(5), json!("BF16"), json!([]), json!({})] {
        refused(open_with_header(|header| header[SECOND] = value), &[FILE, &of]);
    }
    for field in ["dtype", "shape", "data_offsets"] {
        let result = open_with_header(|header| drop(header[SECOND].as_object_mut().unwrap().remove(field)));
        refused(result, &[FILE, &of, &format!("missing field `{field}`")]);
    }
}

#[test]
fn a_dtype_that_nobody_knows() {
    for dtype in [json!("INT4"), json!("bf16"), json!(""), json!(16), json!(null), json!(["BF16"])] {
        let words = format!("tensor `{SECOND}` has the unknown dtype {dtype}");
        refused_with_hint(open_with_field(SECOND, "dtype", dtype), &[FILE, &words], "F32, F16, BF16 and F8_E4M3");
    }
}
