//! What an answer must look like: text, JSON, or JSON of a schema.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Refusal;

/// The form of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) enum Format {
    Text,
    /// JSON that keeps to a schema.
    Json(Value),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(rename = "type")]
    kind: Kind,
    json_schema: Option<Schema>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Text,
    JsonObject,
    JsonSchema,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Schema {
    #[serde(rename = "name")]
    _name: String,
    schema: Option<Value>,
    #[serde(rename = "description")]
    _description: Option<String>,
    // kept to in any case
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

impl Format {
    pub(super) fn of(wanted: Option<Wanted>) -> Result<Self, Refusal> {
        let Some(Wanted { kind, json_schema }) = wanted else { return Ok(Self::Text) };
        match (kind, json_schema) {
            (Kind::Text, None) => Ok(Self::Text),
            (Kind::JsonObject, None) => Ok(Self::Json(json!({"type": "object"}))),
            (Kind::JsonSchema, Some(schema)) => Ok(Self::Json(schema.schema.unwrap_or_else(|| json!({})))),
            (Kind::JsonSchema, None) => {
                Err(Refusal::of("response_format.json_schema", "`response_format.json_schema` is missing"))
            }
            (_, Some(_)) => {
                let message = "`response_format.json_schema` goes with the type `json_schema` alone";
                Err(Refusal::of("response_format.json_schema", message))
            }
        }
    }
}
