//! What a checkpoint says about generating with it: sampling values and the tokens that end an answer.

use std::path::Path;

use serde_json::Value;

use super::Sampling;
use crate::error::{Context, Error, Result};
use crate::models::parse_json;

const AGAIN: &str = "the file is damaged or was edited, fetch it again";

/// The defaults of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// Sampling values; greedy unless `do_sample` is set.
    pub sampling: Sampling,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

impl Defaults {
    /// Reads generation_config.json; end tokens it does not name come from config.json.
    ///
    /// # Errors
    /// If a file is unreadable or not JSON, or a value is of the wrong type.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        let generation = match std::fs::read(&path) {
            Ok(text) => parse_json(&path, &text)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(Error::io(&path, error).hint(AGAIN)),
        };
        let config_path = dir.join("config.json");
        let text = std::fs::read(&config_path).map_err(|error| Error::io(&config_path, error).hint(AGAIN))?;
        let config = parse_json(&config_path, &text)?;
        Self::from_values(&generation, &config)
    }

    /// Adds tokens that end an answer, as far as they are not among those that do.
    #[must_use]
    pub fn ending_at(mut self, tokens: &[u32]) -> Self {
        self.eos.extend(tokens.iter().filter(|token| !self.eos.contains(token)).copied().collect::<Vec<_>>());
        self
    }

    /// As [`Defaults::open`], from parsed files; `generation` may be null.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn from_values(generation: &Value, config: &Value) -> Result<Self> {
        if !generation.is_object() && !generation.is_null() {
            return Err(Error::msg("generation_config.json: it is not a table").hint(AGAIN));
        }
        let wrong = |key: &str, value: &Value, kind: &str| {
            Error::msg(format!("generation_config.json: {key} is {value}, not {kind}")).hint(AGAIN)
        };
        let given = |key: &str| generation.get(key).filter(|value| !value.is_null());
        let number = |key: &str| -> Result<Option<f32>> {
            let number = |value: &Value| value.as_f64().ok_or_else(|| wrong(key, value, "a number"));
            Ok(given(key).map(number).transpose()?.map(|number| number as f32))
        };
        let mut sampling = Sampling::default();
        let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong("do_sample", value, "true or false"));
        if given("do_sample").map(flag).transpose()?.unwrap_or(false) {
            sampling.temperature = number("temperature")?.unwrap_or(1.0);
            sampling.top_p = number("top_p")?.unwrap_or(1.0);
            // absent keeps all tokens, as most engines have it; transformers would keep 50
            let whole = |value: &Value| value.as_u64().ok_or_else(|| wrong("top_k", value, "a whole number"));
            sampling.top_k = given("top_k").map(whole).transpose()?.unwrap_or(0) as usize;
            sampling.min_p = number("min_p")?.unwrap_or(0.0);
        }
        sampling.repetition_penalty = number("repetition_penalty")?.unwrap_or(1.0);
        sampling.presence_penalty = number("presence_penalty")?.unwrap_or(0.0);
        if let Some((what, value)) = sampling.impossible() {
            let error = format!("generation_config.json: {} {value} is impossible", what.replace('-', "_"));
            return Err(Error::msg(error).hint(AGAIN));
        }
        let nested = config.get("text_config").and_then(|text| text.get("eos_token_id"));
        let places = [("generation_", generation.get("eos_token_id")), ("", config.get("eos_token_id")), ("", nested)];
        let mut said =
            places.into_iter().filter_map(|(file, value)| Some((file, value.filter(|value| !value.is_null())?)));
        let eos = said.next().map(|(file, value)| ids(value).context(format!("{file}config.json")));
        Ok(Self { sampling, eos: eos.transpose()?.unwrap_or_default() })
    }
}

fn ids(value: &Value) -> Result<Vec<u32>> {
    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = list.iter().map(id).collect();
    let error = || Error::msg(format!("eos_token_id is {value}, not a token id or a list of them")).hint(AGAIN);
    ids.ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_generation_config_wins() {
        let generation = json!({"eos_token_id": [5, 6], "do_sample": true, "temperature": 0.7, "top_k": 20});
        let defaults = Defaults::from_values(&generation, &json!({"eos_token_id": 4})).unwrap();
        assert_eq!(defaults.eos, [5, 6]);
        assert_eq!((defaults.sampling.temperature, defaults.sampling.top_k), (0.7, 20));
    }

    #[test]
    fn config_json_fills_in_and_greedy_is_the_default() {
        let nested = json!({"text_config": {"eos_token_id": 4}});
        let defaults = Defaults::from_values(&json!({"temperature": 0.7}), &nested).unwrap();
        assert_eq!(defaults.eos, [4]);
        assert_eq!(defaults.sampling, Sampling::default());
        assert_eq!(defaults.ending_at(&[5, 4]).eos, [4, 5]);
        assert!(Defaults::from_values(&json!({"eos_token_id": "x"}), &nested).is_err());
    }
}
