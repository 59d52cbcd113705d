//! Text on both sides of the model: tokenizer, chat template, streaming detokeniser, reasoning splitter.

mod alphabet;
mod clock;
mod message;
mod python;
mod reasoning;
mod stop;
mod stream;
mod template;
mod tiktoken;
mod tokenizer;
mod tools;
mod typescript;

pub use message::{Content, FunctionCall, Message, Role, ToolCall};
pub use reasoning::{Part, Reasoning};
pub use stop::StopStrings;
pub use stream::Stream;
pub use template::{RenderOptions, Template};
pub use tokenizer::Tokenizer;
pub use tools::{Call, CallForm, Calls, Piece};
