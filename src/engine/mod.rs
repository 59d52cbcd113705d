//! Running a model: sequences and their pages, prefill and decode, sampling, scoring.

mod command;
mod defaults;
mod follow;
mod generate;
mod job;
mod logits;
mod output;
mod pages;
mod prefill;
mod prefix;
mod sampler;
mod scheduler;
mod score;
mod sequence;
mod session;
mod usage;

pub use defaults::Defaults;
pub use generate::{Event, Finish, Generated, Request, Timings, generate};
pub use job::{Chosen, Constraint, Job, Logprobs, Update};
pub use pages::pages;
pub use sampler::{Sampler, Sampling};
pub use scheduler::{Counts, Groups, Limits, Scheduler};
pub use score::{Score, score};
pub use sequence::{Room, Sequence};
pub use session::{Engine, Wanted};
pub use usage::{Phase, Report, Usage};
