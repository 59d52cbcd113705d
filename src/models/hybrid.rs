//! What Qwen3-Next and Qwen3.5 share: gated delta nets with a gated attention layer between them.

use serde::Deserialize;

use super::common::{self, Common, bad_config, check_size};
use crate::backend::{DeltaShape, HeadGroups};
use crate::error::Result;
use crate::nn::{AttentionConfig, Centre, DeltaConfig, DeltaLayout, GatedDeltaNet, Loader, Mixer};

/// Keys of a hybrid decoder's config.
#[derive(Debug, Deserialize)]
pub(super) struct Hybrid {
    #[serde(flatten)]
    pub(super) common: Common,
    linear_conv_kernel_dim: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    #[serde(default = "four")]
    full_attention_interval: usize,
    layer_types: Option<Vec<String>>,
    #[serde(default = "common::yes")]
    attn_output_gate: bool,
}

fn four() -> usize {
    4
}

impl Hybrid {
    /// Checks what serde cannot.
    pub(super) fn validate(&self) -> Result<()> {
        self.common.validate()?;
        self.common.refuse_attention_bias()?;
        check_size("linear_num_key_heads", self.linear_num_key_heads)?;
        check_size("linear_num_value_heads", self.linear_num_value_heads)?;
        check_size("linear_key_head_dim", self.linear_key_head_dim)?;
        check_size("linear_conv_kernel_dim", self.linear_conv_kernel_dim)?;
        check_size("full_attention_interval", self.full_attention_interval)?;
        let (keys, values) = (self.linear_num_key_heads, self.linear_num_value_heads);
        if values % keys != 0 {
            let error = format!("linear_num_value_heads {values} is not a multiple of linear_num_key_heads {keys}");
            return Err(bad_config(error));
        }
        let width = self.linear_value_head_dim;
        check_size("linear_value_head_dim", width)?;
        if !width.is_multiple_of(16) {
            return Err(bad_config(format!("linear_value_head_dim {width} is not a multiple of 16")));
        }
        let layers = self.common.num_hidden_layers;
        match &self.layer_types {
            // a cut-down model keeps the list of the whole one
            Some(types) if types.len() < layers => {
                Err(bad_config(format!("layer_types names {} layers of {layers}", types.len())))
            }
            Some(types) => {
                let unknown =
                    types.iter().find(|kind| !["full_attention", "linear_attention"].contains(&kind.as_str()));
                unknown.map_or(Ok(()), |kind| Err(bad_config(format!("layer_types names the unknown `{kind}`"))))
            }
            None => Ok(()),
        }
    }

    fn is_full(&self, layer: usize) -> bool {
        match &self.layer_types {
            Some(types) => types[layer] == "full_attention",
            None => (layer + 1).is_multiple_of(self.full_attention_interval),
        }
    }

    /// Loads the mixer of layer `layer`.
    pub(super) fn mixer(
        &self,
        loader: &Loader<'_>,
        layer: usize,
        prefix: &str,
        layout: DeltaLayout,
    ) -> Result<Box<dyn Mixer>> {
        let eps = self.common.rms_norm_eps;
        if self.is_full(layer) {
            let qk_norm = Some((eps, Centre::One));
            let config = AttentionConfig { qk_norm, output_gate: self.attn_output_gate, ..self.common.attention() };
            return Common::load_attention(loader, prefix, config);
        }
        let shape = DeltaShape {
            heads: HeadGroups::whole(self.linear_num_value_heads, self.linear_num_key_heads),
            key_dim: self.linear_key_head_dim,
            value_dim: self.linear_value_head_dim,
        };
        let config =
            DeltaConfig { hidden: self.common.hidden_size, shape, kernel: self.linear_conv_kernel_dim, eps, layout };
        Ok(Box::new(GatedDeltaNet::load(loader, &format!("{prefix}.linear_attn"), config)?))
    }
}
