//! Bad input: whatever is wrong with a model, one line names the file and the tensor or key, and a hint says what to do.

mod config;
mod files;
mod header;
mod kimi;
mod packed;
mod running;
mod tensors;
mod texts;
