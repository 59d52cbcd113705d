//! The keys of config.json that say how positions are rotated.

use serde::Deserialize;

use super::common::{bad_config, check_positive};
use crate::error::Result;
use crate::nn::{Rotary, Yarn};

/// Keys beside and inside `rope_scaling` (older files) or `rope_parameters` (newer ones).
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RopeKeys {
    rope_theta: Option<f32>,
    pub(super) partial_rotary_factor: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Rope {
    rope_type: Option<String>,
    // the older name; some files have both
    r#type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    attention_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    truncate: Option<bool>,
}

impl Rope {
    fn kind(&self) -> &str {
        self.rope_type.as_ref().or(self.r#type.as_ref()).map_or("default", String::as_str)
    }

    fn is_yarn(&self) -> bool {
        self.kind() == "yarn"
    }

    /// 0.1 · mscale · ln(factor) + 1 (arXiv 2309.00071, equation 22).
    fn magnitude(&self, mscale: f32) -> f32 {
        let factor = self.factor.unwrap_or(1.0);
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * libm::logf(factor) + 1.0 }
    }

    /// What cosines and sines are multiplied by.
    fn length(&self) -> f32 {
        let of = |mscale: Option<f32>| mscale.filter(|mscale| *mscale != 0.0);
        self.attention_factor.unwrap_or(match (of(self.mscale), of(self.mscale_all_dim)) {
            (Some(mscale), Some(all)) => self.magnitude(mscale) / self.magnitude(all),
            _ => self.magnitude(1.0),
        })
    }
}

impl RopeKeys {
    fn places(&self) -> impl Iterator<Item = &Rope> {
        [&self.rope_parameters, &self.rope_scaling].into_iter().flatten()
    }

    fn yarn(&self) -> Option<&Rope> {
        self.places().find(|rope| rope.is_yarn())
    }

    /// Checks what serde cannot.
    pub(super) fn validate(&self) -> Result<()> {
        check_positive("rope_theta", self.theta())?;
        for rope in self.places() {
            let kinds = [&rope.rope_type, &rope.r#type];
            let unknown = kinds.into_iter().flatten().find(|kind| !["default", "yarn"].contains(&kind.as_str()));
            if let Some(kind) = unknown {
                return Err(bad_config(format!("rope type `{kind}` is not supported yet")));
            }
        }
        let Some(yarn) = self.yarn() else { return Ok(()) };
        let missing = |key: &str| bad_config(format!("a rope of type `yarn` has no {key}"));
        check_positive("factor", yarn.factor.ok_or_else(|| missing("factor"))?)?;
        if yarn.original_max_position_embeddings.is_none_or(|positions| positions == 0) {
            return Err(missing("original_max_position_embeddings"));
        }
        let [fast, slow, factor] = [yarn.beta_fast, yarn.beta_slow, yarn.attention_factor];
        for (key, value) in [("beta_fast", fast), ("beta_slow", slow), ("attention_factor", factor)] {
            value.map_or(Ok(()), |value| check_positive(key, value))?;
        }
        for (key, value) in [("mscale", yarn.mscale), ("mscale_all_dim", yarn.mscale_all_dim)] {
            // zero is as if it were not there
            let given = value.filter(|value| *value != 0.0);
            given.map_or(Ok(()), |value| check_positive(key, value))?;
        }
        Ok(())
    }

    pub(super) fn partial_rotary_factor(&self) -> f32 {
        self.places().find_map(|rope| rope.partial_rotary_factor).or(self.partial_rotary_factor).unwrap_or(1.0)
    }

    fn theta(&self) -> f32 {
        self.places().find_map(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0)
    }

    /// The rotation of `dim` values of a head.
    pub(super) fn rotary(&self, dim: usize) -> Rotary {
        let Some(rope) = self.yarn() else { return Rotary::new(dim, self.theta()) };
        let yarn = Yarn {
            factor: rope.factor.unwrap_or(1.0),
            betas: (rope.beta_fast.unwrap_or(32.0), rope.beta_slow.unwrap_or(1.0)),
            positions: rope.original_max_position_embeddings.unwrap_or(1),
            truncate: rope.truncate.unwrap_or(true),
            length: rope.length(),
        };
        Rotary::yarn(dim, self.theta(), &yarn)
    }

    /// What DeepSeek's attention multiplies its scores by under yarn: the square of the magnitude for `mscale_all_dim`.
    pub(super) fn score_factor(&self) -> f32 {
        let Some(rope) = self.yarn() else { return 1.0 };
        let mscale = rope.mscale_all_dim.filter(|mscale| *mscale != 0.0).map_or(1.0, |all| rope.magnitude(all));
        mscale * mscale
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::RopeKeys;
    use crate::backend::Batch;

    /// A config's keys beside the type, theta, and what transformers 5.23 makes of them for heads of twelve values: the
    /// frequencies, and what cosines are multiplied by.
    fn known() -> [(Value, f32, [f32; 6], f32); 6] {
        let short = [1.0, 0.079_056_94, 0.025, 0.007_905_695, 0.0025, 0.000_790_569_5];
        [
            (json!({ "factor": 4, "original_max_position_embeddings": 16 }), 1e3, short, 1.138_629_4),
            (
                json!({ "factor": 4, "original_max_position_embeddings": 16, "mscale": 0.707, "mscale_all_dim": 1 }),
                1e3,
                short,
                0.964_326_9,
            ),
            (json!({ "factor": 4, "original_max_position_embeddings": 16, "mscale": 0.707 }), 1e3, short, 1.138_629_4),
            (
                json!({ "factor": 8, "original_max_position_embeddings": 64, "attention_factor": 1.25, "beta_fast": 8,
                    "beta_slow": 0.5, "truncate": false }),
                1e3,
                [1.0, 0.225_438_58, 0.034_956_35, 0.003_952_847_3, 0.00125, 0.000_395_284_76],
                1.25,
            ),
            (
                json!({ "factor": 32, "original_max_position_embeddings": 4096, "beta_fast": 1, "beta_slow": 1,
                    "mscale": 1, "mscale_all_dim": 1 }),
                5e4,
                [1.0, 0.164_754_9, 0.027_144_17, 0.004_472_136, 2.302_519_2e-5, 3.793_514_7e-6],
                1.0,
            ),
            (
                json!({ "factor": 64, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1 }),
                5e4,
                [1.0, 0.164_754_9, 0.018_237_49, 0.001_537_296_7, 1.151_259_6e-5, 1.896_757_3e-6],
                1.415_888_3,
            ),
        ]
    }

    #[test]
    fn yarn_is_what_transformers_makes_of_it() {
        let mut batch = Batch::default();
        batch.push(0, 1, 1, &[0]);
        for (mut table, theta, frequencies, length) in known() {
            for kind in ["rope_type", "type"] {
                table[kind] = "yarn".into();
            }
            for place in ["rope_scaling", "rope_parameters"] {
                let keys: RopeKeys = serde_json::from_value(json!({ "rope_theta": theta, place: table })).unwrap();
                keys.validate().unwrap();
                let got = keys.rotary(12).table(&batch);
                let cosines = frequencies.map(|angle| angle.cos() * length);
                let want = cosines.into_iter().chain(frequencies.map(|angle| angle.sin() * length));
                for (got, want) in got.row(0).iter().zip(want) {
                    assert!((got - want).abs() <= 2e-6 * want.abs(), "{table} in {place}: {got}, not {want}");
                }
            }
        }
    }
}
