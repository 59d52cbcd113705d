//! A directory whose files are missing, unreadable, not what they are called, or not what the index says.

use std::path::Path;

use serde_json::{Value, json};
use tbshard::error::Result;
use tbshard::models::Model;
use tbshard::weights::{Checkpoint, Source};

use crate::damage::{INDEX, Specimen, refused, refused_with_hint};

const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";
/// A tensor of the first file and one of the second.
const IN_ONE: &str = "model.norm.weight";
const IN_TWO: &str = "model.layers.0.self_attn.q_proj.weight";

fn open(damage: impl FnOnce(&Specimen)) -> Result<Model> {
    let specimen = Specimen::of("llama");
    damage(&specimen);
    specimen.open()
}

fn open_with_index(damage: impl FnOnce(&mut Value)) -> Result<Model> {
    open(|specimen| specimen.edit_json(INDEX, damage))
}

fn remove(specimen: &Specimen, file: &str) {
    std::fs::remove_file(specimen.path(file)).unwrap();
}

#[test]
fn no_model_there() {
    let hint = "config.json, tokenizer.json and *.safetensors";
    let open = |dir: &Path| Model::open(dir, &|_, _| ());
    let specimen = Specimen::of("llama");
    refused_with_hint(open(&specimen.path("nowhere")), &["nowhere/config.json`", "No such file"], hint);
    refused_with_hint(open(&specimen.path(ONE)), &[ONE, "config.json", "Not a directory"], hint);
    refused(Checkpoint::open(&specimen.path("nowhere")), &["nowhere`", "No such file"]);
    refused(Checkpoint::open(&specimen.path(ONE)), &[ONE, "Not a directory"]);
    for file in [INDEX, ONE, TWO] {
        remove(&specimen, file);
    }
    refused_with_hint(specimen.open(), &["has no safetensors files"], hint);
}

#[test]
fn shards_that_cannot_be_read() {
    refused_with_hint(open(|at| remove(at, TWO)), &[TWO, "No such file"], "the index names this file");
    let directory = open(|at| {
        remove(at, TWO);
        std::fs::create_dir(at.path(TWO)).unwrap();
    });
    refused(directory, &[TWO, "is not a regular file"]);
    refused_with_hint(open(|at| std::fs::write(at.path(TWO), "").unwrap()), &[TWO, "is empty"], "fetch");
    let without_index = open(|at| {
        remove(at, INDEX);
        std::fs::create_dir(at.path("model-00003-of-00003.safetensors")).unwrap();
    });
    refused(without_index, &["model-00003-of-00003.safetensors", "is not a regular file"]);
}

#[cfg(unix)]
#[test]
fn files_that_nobody_may_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    for file in [TWO, INDEX, "config.json"] {
        let specimen = Specimen::of("llama");
        std::fs::set_permissions(specimen.path(file), std::fs::Permissions::from_mode(0o000)).unwrap();
        if std::fs::read(specimen.path(file)).is_ok() {
            println!("skipped: this user reads files of mode 000 ({file})");
            continue;
        }
        refused_with_hint(specimen.open(), &[file, "Permission denied"], "who may read");
    }
    let link_to_nothing = open(|at| {
        remove(at, TWO);
        symlink("../blobs/gone", at.path(TWO)).unwrap();
    });
    refused(link_to_nothing, &[TWO, "No such file"]);
    let link_to_itself = open(|at| {
        remove(at, TWO);
        symlink(TWO, at.path(TWO)).unwrap();
    });
    refused(link_to_itself, &[TWO]);
    // reading these would never end
    let endless = open(|at| {
        remove(at, TWO);
        symlink("/dev/zero", at.path(TWO)).unwrap();
    });
    refused(endless, &[TWO, "is not a regular file"]);
    let pipe = open(|at| {
        remove(at, TWO);
        let made = std::process::Command::new("mkfifo").arg(at.path(TWO)).status().unwrap();
        assert!(made.success());
    });
    refused(pipe, &[TWO, "is not a regular file"]);
}

#[test]
fn an_index_that_is_not_one() {
    for text in ["", "{", "[]", "null", "{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#, "\u{feff}{}"] {
        let result = open(|at| std::fs::write(at.path(INDEX), text).unwrap());
        refused(result, &[INDEX, "is not an index"]);
    }
    refused(open(|at| at.edit_bytes(INDEX, |bytes| bytes.truncate(1000))), &[INDEX, "is not an index: EOF"]);
    refused(open(|at| at.edit_bytes(INDEX, |bytes| bytes[60] = 0xff)), &[INDEX, "is not an index"]);
    refused(open_with_index(|index| drop(index.as_object_mut().unwrap().remove("weight_map"))), &["`weight_map`"]);
    refused(open_with_index(|index| index["weight_map"] = json!({})), &[INDEX, "names no tensors"]);
    let directory = open(|at| {
        remove(at, INDEX);
        std::fs::create_dir(at.path(INDEX)).unwrap();
    });
    refused(directory, &[INDEX, "Is a directory"]);
}

#[test]
fn an_index_that_points_out_of_its_directory() {
    let mut outside: Vec<String> =
        ["../x.safetensors", "..", ".", "", "/etc/passwd", "a/../../x", "sub/x", "./x/..", "x/"].map(Into::into).into();
    // the same file by another path is refused as well
    outside.push(format!("../{ONE}"));
    for file in outside {
        let result = open_with_index(|index| index["weight_map"][IN_ONE] = json!(file));
        refused_with_hint(result, &[INDEX, &format!("`{file}`")], "do not use this checkpoint");
    }
}

#[test]
fn an_index_that_does_not_fit_the_files() {
    let gone = open_with_index(|index| index["weight_map"][IN_ONE] = json!("model-00003-of-00002.safetensors"));
    refused_with_hint(gone, &["model-00003-of-00002.safetensors`", "No such file"], "the index names this file");
    let odd = open_with_index(|index| index["weight_map"][IN_ONE] = json!("a\u{0}b"));
    refused(odd, &["a\u{0}b"]);
    // in the other file
    let moved = open_with_index(|index| index["weight_map"][IN_ONE] = json!(TWO));
    refused(moved, &[&format!("tensor `{IN_ONE}` is not in"), TWO, "where the index puts it"]);
    let invented = open_with_index(|index| index["weight_map"]["model.extra"] = json!(TWO));
    refused(invented, &["tensor `model.extra` is not in", TWO]);
    let unlisted = open_with_index(|index| drop(index["weight_map"].as_object_mut().unwrap().remove(IN_ONE)));
    refused_with_hint(unlisted, &[ONE, &format!("tensor `{IN_ONE}` is not in the index")], "do not belong together");
    let cut = open(|at| at.edit_tensors(TWO, |tensors| drop(tensors.remove(IN_TWO))));
    refused(cut, &[&format!("tensor `{IN_TWO}` is not in"), TWO, "where the index puts it"]);
}

#[test]
fn one_tensor_in_two_files() {
    let double = |specimen: &Specimen| {
        let bytes = std::fs::read(specimen.path(ONE)).unwrap();
        let mut norm = None;
        specimen.edit_tensors(ONE, |tensors| norm = tensors.remove(IN_ONE));
        std::fs::write(specimen.path(ONE), bytes).unwrap();
        specimen.edit_tensors(TWO, |tensors| drop(tensors.insert(IN_ONE.to_owned(), norm.unwrap())));
    };
    // the index says which one counts
    open(double).unwrap_or_else(|error| panic!("{error:?}"));
    let without_index = open(|at| {
        double(at);
        remove(at, INDEX);
    });
    refused_with_hint(without_index, &[&format!("tensor `{IN_ONE}` is in"), ONE, TWO], "one checkpoint");
    let two_checkpoints = open(|at| {
        remove(at, INDEX);
        std::fs::copy(at.path(ONE), at.path("copy.safetensors")).unwrap();
    });
    refused(two_checkpoints, &["tensor `model.embed_tokens.weight` is in", "copy.safetensors", ONE]);
}

#[test]
fn what_is_no_damage() {
    // without an index all files count; model.safetensors alone if there is one; hidden files never
    open(|at| remove(at, INDEX)).unwrap_or_else(|error| panic!("{error:?}"));
    let hidden = open(|at| std::fs::write(at.path("._model.safetensors"), "AppleDouble").unwrap());
    hidden.unwrap_or_else(|error| panic!("{error:?}"));
    let specimen = Specimen::of("llama");
    remove(&specimen, INDEX);
    std::fs::copy(specimen.path(ONE), specimen.path("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(specimen.dir.path()).unwrap();
    assert_eq!((checkpoint.has(IN_ONE), checkpoint.has(IN_TWO)), (true, false));
}
