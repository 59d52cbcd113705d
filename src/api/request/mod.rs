//! Bodies as they are sent: which keys there are, and of what type.

mod chat;
mod completions;
mod format;
mod message;
mod prompt;
mod sampling;
mod shared;
mod tools;

pub(super) use chat::{Chat, SWITCHES};
pub(super) use completions::Completions;
pub(super) use format::Format;
pub(super) use prompt::{MOST, Prompt};
pub(super) use shared::Shared;
pub(super) use tools::{Choice, Offer};

use serde::Deserialize;
use serde_json::Value;

use super::Refusal;

/// Reads the keys of a body that `T` knows; others are left to others.
fn read<'a, T: Deserialize<'a>>(body: &'a Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(body).map_err(|error| {
        let (path, message) = (error.path().to_string(), error.inner().to_string());
        if path == "." { Refusal::new(400, message) } else { Refusal::of(&path, format_args!("`{path}`: {message}")) }
    })
}

/// Refuses keys that are in none of `tables`.
fn known(body: &Value, tables: &[&[&str]]) -> Result<(), Refusal> {
    let is_known = |key: &str| tables.iter().any(|table| table.contains(&key));
    match body.as_object().into_iter().flatten().find(|(key, value)| !value.is_null() && !is_known(key)) {
        None => Ok(()),
        Some((key, _)) => {
            Err(Refusal::of(key, format_args!("there is no parameter `{key}`")).code("unknown_parameter"))
        }
    }
}

/// Either one text or a list.
#[derive(Debug)]
enum OneOrMany<T> {
    One(String),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

struct Either<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Either<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(OneOrMany::One(text.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(OneOrMany::Many(items))
    }
}
