//! The embedded demo model: a small `qwen3_5_text` that tells stories (`scripts/train_demo.py` trains it).

/// What `--model` calls it.
pub const NAME: &str = "demo";

/// config.json.
pub const CONFIG: &str = include_str!("../../models/demo/config.json");

/// generation_config.json.
pub const GENERATION: &str = include_str!("../../models/demo/generation_config.json");

/// tokenizer.json.
pub const TOKENIZER: &[u8] = include_bytes!("../../models/demo/tokenizer.json");

/// chat_template.jinja.
pub const TEMPLATE: &str = include_str!("../../models/demo/chat_template.jinja");

/// model.safetensors.
pub const WEIGHTS: &[u8] = include_bytes!("../../models/demo/model.safetensors");
