//! One test on a loaded model: warmed up, repeated, timed, and its answers checked.

use std::fmt::{Display, Formatter};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::answers::Answers;
use crate::backend::Tensor;
use crate::engine::{Engine, Phase, Report, Sequence, Wanted};
use crate::error::{Error, Result};
use crate::weights::hex;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A prompt, many tokens a pass.
    Prompt,
    /// An answer, token by token.
    Answer,
}

/// A test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) kind: Kind,
    /// Tokens of every sequence.
    pub(super) tokens: usize,
    /// Tokens that every sequence holds before.
    pub(super) depth: usize,
    /// Sequences at once.
    pub(super) batch: usize,
}

impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let kind = if self.kind == Kind::Prompt { "pp" } else { "tg" };
        write!(f, "{kind}{}", self.tokens)?;
        if self.depth > 0 {
            write!(f, " @ d{}", self.depth)?;
        }
        if self.batch > 1 { write!(f, " b{}", self.batch) } else { Ok(()) }
    }
}

/// What a rank did in one repetition.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    /// Bytes of weights that it holds.
    pub(super) weights: u64,
    /// Seconds.
    pub(super) compute: f64,
    /// Seconds.
    pub(super) wire: f64,
    /// Seconds.
    pub(super) wait: f64,
    /// Bytes.
    pub(super) sent: f64,
}

/// What came of a test.
pub(super) struct Measured {
    /// Of every repetition.
    pub(super) seconds: Vec<f64>,
    /// The mean of the repetitions, by rank.
    pub(super) work: Vec<Work>,
    /// Of the first sequence.
    pub(super) checksum: String,
}

/// Runs `test` once to warm up and `reps` times to be timed; `done` is told of each. `place` says for `answers` where it runs.
pub(super) fn measure(
    engine: &mut Engine,
    test: &Test,
    reps: usize,
    (answers, place): (&mut Answers, &str),
    done: &dyn Fn(),
) -> Result<Measured> {
    let mut measured = Measured { seconds: Vec::new(), work: Vec::new(), checksum: String::new() };
    for rep in 0..=reps {
        let run = once(engine, test)?;
        for (sequence, digest) in run.digests.iter().enumerate() {
            let place = format!("sequence {sequence} of {test}, {place}, repetition {rep}");
            answers.check(test, prompt_of(sequence, test.batch), digest, place)?;
        }
        if rep > 0 {
            measured.seconds.push(run.seconds);
            measured.work.resize(run.work.len(), Work::default());
            for (sum, work) in measured.work.iter_mut().zip(&run.work) {
                let part = |value: f64| value / reps as f64;
                sum.weights = work.weights;
                sum.compute += part(work.compute);
                sum.wire += part(work.wire);
                sum.wait += part(work.wait);
                sum.sent += part(work.sent);
            }
        }
        measured.checksum = run.digests.into_iter().next().unwrap_or_default();
        done();
    }
    Ok(measured)
}

/// One repetition.
struct Run {
    seconds: f64,
    work: Vec<Work>,
    // of every sequence's answer
    digests: Vec<String>,
}

fn once(engine: &mut Engine, test: &Test) -> Result<Run> {
    let vocab = engine.model().geometry.vocab;
    let tokens = |from: usize, count: usize| -> Vec<Vec<u32>> {
        let of = |sequence| (from..from + count).map(|at| token(prompt_of(sequence, test.batch), at, vocab)).collect();
        (0..test.batch).map(of).collect()
    };
    let (before, timed) = (tokens(0, test.depth), tokens(test.depth, test.tokens));
    let mut sequences = (0..test.batch).map(|_| engine.start()).collect::<Result<Vec<_>>>()?;
    if test.depth > 0 {
        prefill(engine, &mut sequences, &before)?;
    }
    let reports = engine.reports()?;
    let start = Instant::now();
    let (chosen, logits) = match test.kind {
        Kind::Prompt => (Vec::new(), prefill(engine, &mut sequences, &timed)?),
        Kind::Answer => answer(engine, &mut sequences, &timed)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let work = reports.iter().zip(&engine.reports()?).map(|(before, after)| work(before, after)).collect();
    let digests = (0..test.batch).map(|sequence| digest(&chosen, sequence, &logits)).collect();
    sequences.into_iter().for_each(|sequence| engine.end(sequence));
    Ok(Run { seconds, work, digests })
}

fn prefill(engine: &mut Engine, sequences: &mut [Sequence], tokens: &[Vec<u32>]) -> Result<Tensor> {
    let mut prompts: Vec<(&mut Sequence, &[u32])> =
        sequences.iter_mut().zip(tokens).map(|(sequence, tokens)| (sequence, &tokens[..])).collect();
    let logits = engine.prefill_batch(&mut prompts, &mut |_| true)?;
    logits.ok_or_else(|| Error::msg("a prompt was not run to its end"))
}

/// Runs the answers' tokens one by one; returns what would have been chosen after each, greedily, and the last logits. The
/// tokens are given, as llama-bench does it: an end token ends nothing, and a mixture of experts meets many experts.
fn answer(engine: &mut Engine, sequences: &mut [Sequence], tokens: &[Vec<u32>]) -> Result<(Vec<Vec<u32>>, Tensor)> {
    let mut chosen = Vec::new();
    let mut logits = Tensor::zeros(0, 0);
    for at in 0..tokens[0].len() {
        let mut step: Vec<(&mut Sequence, &[u32])> =
            sequences.iter_mut().zip(tokens).map(|(sequence, tokens)| (sequence, &tokens[at..=at])).collect();
        if at + 1 < tokens[0].len() {
            chosen.push(engine.next_tokens(&mut step)?);
        } else {
            logits = engine.forward(&mut step, Wanted::Last, None)?;
            chosen.push(logits.rows_iter().map(likeliest).collect());
        }
    }
    Ok((chosen, logits))
}

/// The likeliest token, the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let better = |best: (usize, f32), (id, logit): (usize, f32)| if logit > best.1 { (id, logit) } else { best };
    logits.iter().copied().enumerate().fold((0, f32::NEG_INFINITY), better).0 as u32
}

/// SHA-256 of what a sequence chose, step by step, and of the bits of its last logits.
fn digest(chosen: &[Vec<u32>], sequence: usize, logits: &Tensor) -> String {
    let mut hash = Sha256::new();
    chosen.iter().for_each(|step| hash.update(step[sequence].to_le_bytes()));
    logits.row(sequence).iter().for_each(|logit| hash.update(logit.to_bits().to_le_bytes()));
    hex(hash)[..16].to_owned()
}

/// Which prompt a sequence runs: each its own, but the last one that of the first, whose answer it must repeat.
fn prompt_of(sequence: usize, batch: usize) -> usize {
    if sequence + 1 == batch { 0 } else { sequence }
}

/// The token at a position of a prompt: the same in every test, and not all the same.
fn token(prompt: usize, at: usize, vocab: usize) -> u32 {
    ((prompt * 1_000_003 + at).wrapping_mul(2_654_435_761) % vocab) as u32
}

/// What a rank did between two reports.
fn work(before: &Report, after: &Report) -> Work {
    let phases = |report: &Report| [report.usage.prompt, report.usage.decode];
    let sum = |value: fn(&Phase) -> f64| {
        let all = |report: &Report| phases(report).iter().map(value).sum::<f64>();
        all(after) - all(before)
    };
    Work {
        weights: after.bytes,
        compute: sum(|phase| phase.computed().as_secs_f64()),
        wire: sum(|phase| phase.wire.as_secs_f64()),
        wait: sum(|phase| phase.waited.as_secs_f64()),
        sent: sum(|phase| phase.sent as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_short_names() {
        let test = |kind, depth, batch| Test { kind, tokens: 16, depth, batch }.to_string();
        assert_eq!(test(Kind::Prompt, 0, 1), "pp16");
        assert_eq!(test(Kind::Answer, 4096, 4), "tg16 @ d4096 b4");
    }

    #[test]
    fn the_last_of_several_sequences_repeats_the_first() {
        let prompts = |batch| (0..batch).map(|sequence| prompt_of(sequence, batch)).collect::<Vec<_>>();
        assert_eq!((prompts(1), prompts(2), prompts(4)), (vec![0], vec![0, 0], vec![0, 1, 2, 0]));
        assert_ne!(token(0, 5, 1000), token(1, 5, 1000));
        assert_ne!(token(0, 5, 1000), token(0, 6, 1000));
    }

    #[test]
    fn a_digest_is_of_every_choice_and_every_bit() {
        let logits = |value: f32| Tensor::from_vec(2, 2, vec![0.0, 1.0, 2.0, value]).unwrap();
        let of = |chosen: [u32; 2], value| digest(&[vec![1, chosen[0]], vec![2, chosen[1]]], 1, &logits(value));
        let one = of([3, 4], 0.0);
        assert_eq!(one, of([3, 4], 0.0));
        assert_ne!(one, of([4, 3], 0.0));
        assert_ne!(one, of([3, 4], -0.0));
        assert_eq!(likeliest(&[0.0, 2.0, 2.0, -1.0]), 1);
    }
}
