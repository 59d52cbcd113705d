//! From logits to a token: penalties, temperature, top-k, top-p, min-p, and randomness that is a function of position.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Wanted;
use super::logits::likeliest;
use super::output::Basis;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the most likely tokens until their probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Drop tokens less likely than this times the most likely one.
    pub min_p: f32,
    /// Subtracted from the logits of tokens that were generated already.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit as often as it was generated already.
    pub frequency_penalty: f32,
    /// Divides (or, below zero, multiplies) the logits of tokens that are in the prompt or were generated.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Equal seeds give equal texts.
    pub seed: u64,
}

impl Default for Sampling {
    /// The most likely token, always.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// The first value outside its range, and what it is called.
    pub fn impossible(&self) -> Option<(&'static str, f32)> {
        let ranges = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top-p", self.top_p, 0.0..=1.0),
            ("min-p", self.min_p, 0.0..=1.0),
            ("presence-penalty", self.presence_penalty, -100.0..=100.0),
            ("frequency-penalty", self.frequency_penalty, -100.0..=100.0),
            ("repetition-penalty", self.repetition_penalty, 0.01..=100.0),
        ];
        ranges.into_iter().find(|(_, value, range)| !range.contains(value)).map(|(what, value, _)| (what, value))
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    sequence: u64,
    seen: BTreeSet<u32>,
    /// How often.
    generated: BTreeMap<u32, u32>,
}

impl Sampler {
    /// A sampler for sequence number `sequence` of a run.
    pub fn new(sampling: Sampling, sequence: u64) -> Self {
        Self { sampling, sequence, seen: BTreeSet::new(), generated: BTreeMap::new() }
    }

    /// Counts `tokens` as part of the prompt.
    pub fn accept_prompt(&mut self, tokens: &[u32]) {
        self.seen.extend(tokens);
    }

    /// What it chooses from: where that is the token of the largest logit whatever was generated before, the token alone.
    pub(super) fn wanted(&self) -> Wanted {
        if self.sampling.temperature > 0.0 || self.changes_logits() { Wanted::Last } else { Wanted::Token }
    }

    /// Chooses the token at `position` from what was wanted, and counts it as generated.
    pub(super) fn choose_from(&mut self, basis: Basis<'_>, position: usize) -> u32 {
        match basis {
            Basis::Logits(logits) => self.choose(logits, position),
            Basis::Token(token) => self.count(token),
        }
    }

    /// Chooses the token at `position` from `logits` and counts it as generated.
    pub fn choose(&mut self, logits: &[f32], position: usize) -> u32 {
        let mut logits = Cow::Borrowed(logits);
        if self.changes_logits() {
            self.penalise(logits.to_mut());
        }
        let token = if self.sampling.temperature > 0.0 { self.draw(&logits, position) } else { argmax(&logits) };
        self.count(token)
    }

    fn count(&mut self, token: u32) -> u32 {
        self.seen.insert(token);
        *self.generated.entry(token).or_default() += 1;
        token
    }

    fn changes_logits(&self) -> bool {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.sampling;
        *repetition_penalty != 1.0 || *presence_penalty != 0.0 || *frequency_penalty != 0.0 || !logit_bias.is_empty()
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        let mut change = |token: u32, f: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f(*logit);
            }
        };
        if repetition_penalty != 1.0 {
            let penalised = |x: f32| if x < 0.0 { x * repetition_penalty } else { x / repetition_penalty };
            self.seen.iter().for_each(|token| change(*token, &penalised));
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (token, times) in &self.generated {
                change(*token, &|x| x - presence_penalty - frequency_penalty * *times as f32);
            }
        }
        for (token, bias) in &self.sampling.logit_bias {
            change(*token, &|x| x + bias);
        }
    }

    fn draw(&self, logits: &[f32], position: usize) -> u32 {
        let mut kept = self.candidates(logits);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut left = uniform(self.sampling.seed, self.sequence, position as u64) * total;
        for (token, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        kept.pop().map_or_else(|| argmax(logits), |(token, _)| token)
    }

    /// The tokens that may be drawn, most likely first, with weights relative to the first.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponent = |token: u32| f64::from(logits[token as usize] - best) / f64::from(temperature);
        // what is left out here is what sorting all of a large vocabulary would take its time for
        let mut order: Vec<u32> = (0..logits.len() as u32).filter(|token| exponent(*token) >= NEVER).collect();
        likeliest(logits, &mut order, if top_k > 0 { top_k } else { usize::MAX });
        let mut kept: Vec<(u32, f64)> = order.into_iter().map(|token| (token, libm::exp(exponent(token)))).collect();
        if top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let mut before = 0.0;
            let enough = |(_, weight): &(u32, f64)| {
                let reached = before >= f64::from(top_p) * total;
                before += weight;
                reached
            };
            let count = kept.iter().position(enough).unwrap_or(kept.len());
            kept.truncate(count.max(1));
        }
        kept.retain(|(_, weight)| *weight >= f64::from(min_p));
        kept
    }
}

/// Tokens less likely than e to this power, relative to the likeliest, are never drawn: one in 10^13 at most would be.
const NEVER: f64 = -44.0 * std::f64::consts::LN_2;

/// The largest logit, the lower index among equals: what [`Backend::argmax`](crate::backend::Backend::argmax) finds, too.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// A number in [0, 1) that is a function of its three arguments (SplitMix64's finaliser, chained).
fn uniform(seed: u64, sequence: u64, position: u64) -> f64 {
    let mix = |z: u64| {
        let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let word = mix(mix(mix(seed) ^ sequence) ^ position);
    (word >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, 0)
    }

    fn kept(sampling: Sampling) -> Vec<u32> {
        sampler(sampling).candidates(&LOGITS).into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(sampler(Sampling::default()).choose(&LOGITS, 0), 1);
    }

    #[test]
    fn logits_are_wanted_by_all_that_looks_at_them() {
        assert_eq!(sampler(Sampling { seed: 3, top_k: 5, top_p: 0.5, ..Sampling::default() }).wanted(), Wanted::Token);
        let base = Sampling::default;
        for looking in [
            Sampling { temperature: 0.1, ..base() },
            Sampling { presence_penalty: 0.1, ..base() },
            Sampling { frequency_penalty: -0.1, ..base() },
            Sampling { repetition_penalty: 0.9, ..base() },
            Sampling { logit_bias: [(1, 0.0)].into(), ..base() },
        ] {
            assert_eq!(sampler(looking.clone()).wanted(), Wanted::Last, "{looking:?}");
        }
        // a token that was chosen elsewhere is counted as one that was chosen here
        let mut sampler = sampler(base());
        assert_eq!(sampler.choose_from(Basis::Token(4), 0), 4);
        assert_eq!((sampler.generated[&4], sampler.seen.contains(&4)), (1, true));
    }

    #[test]
    fn filters_keep_what_they_say() {
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(kept(base.clone()), [1, 3, 2, 0, 4]);
        assert_eq!(kept(Sampling { top_k: 3, ..base.clone() }), [1, 3, 2]);
        // probabilities .399 .399 .147 .054 .007: two reach .7, three reach .8
        assert_eq!(kept(Sampling { top_p: 0.7, ..base.clone() }), [1, 3]);
        assert_eq!(kept(Sampling { top_p: 0.8, ..base.clone() }), [1, 3, 2]);
        assert_eq!(kept(Sampling { top_p: 0.0, ..base.clone() }), [1]);
        // relative to the best: 1, 1, .368, .135, .018
        assert_eq!(kept(Sampling { min_p: 0.2, ..base.clone() }), [1, 3, 2]);
        assert_eq!(kept(Sampling { min_p: 0.2, temperature: 0.5, ..base }), [1, 3]);
    }

    #[test]
    fn penalties_look_at_prompt_and_answer() {
        let mut sampler = sampler(Sampling { repetition_penalty: 2.0, presence_penalty: 2.5, ..Sampling::default() });
        sampler.accept_prompt(&[1]);
        // 1.5 for token 1 (prompt), so 3; then 3 has 3/2 - 2.5 and token 2 is the best
        assert_eq!(sampler.choose(&LOGITS, 0), 3);
        assert_eq!(sampler.choose(&LOGITS, 1), 2);
    }

    #[test]
    fn a_token_is_penalised_as_often_as_it_was_generated_and_biased_always() {
        let bias = [(4, 3.25)].into();
        let sampling =
            Sampling { frequency_penalty: 0.75, presence_penalty: 0.5, logit_bias: bias, ..Sampling::default() };
        let mut sampler = sampler(sampling);
        sampler.accept_prompt(&[1, 1, 1]);
        // 1 and 3 begin at 3, 4 at 2.25, 2 at 2; each time costs 0.75, the first 0.5 more
        let chosen: Vec<u32> = (0..7).map(|position| sampler.choose(&LOGITS, position)).collect();
        assert_eq!(chosen, [1, 3, 4, 2, 1, 3, 0]);
    }

    /// What the candidates are: all tokens sorted, then filtered.
    fn defined(sampling: &Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        order.truncate(if sampling.top_k > 0 { sampling.top_k } else { usize::MAX });
        let exponent = |token: &u32| {
            f64::from(logits[*token as usize] - logits[order[0] as usize]) / f64::from(sampling.temperature)
        };
        let weights = order.iter().map(|token| (*token, exponent(token)));
        let weights: Vec<(u32, f64)> =
            weights.filter(|(_, x)| *x >= NEVER).map(|(token, x)| (token, libm::exp(x))).collect();
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let (mut before, mut kept) = (0.0, Vec::new());
        for (token, weight) in weights {
            if kept.is_empty() || sampling.top_p == 1.0 || before < f64::from(sampling.top_p) * total {
                kept.push((token, weight));
            }
            before += weight;
        }
        kept.retain(|(_, weight)| *weight >= f64::from(sampling.min_p));
        kept
    }

    #[test]
    fn candidates_are_those_of_the_sorted_vocabulary_to_the_bit() {
        for round in 0..400u64 {
            let number = |index: u64| uniform(round, 0, index);
            let pick = |index: u64, from: &[f32]| from[(number(index) * from.len() as f64) as usize];
            let sampling = Sampling {
                temperature: pick(1, &[0.01, 0.3, 1.0, 2.0]),
                top_p: pick(2, &[0.0, 0.5, 0.95, 1.0, 1.0]),
                top_k: pick(3, &[0.0, 0.0, 1.0, 20.0, 5000.0]) as usize,
                min_p: pick(4, &[0.0, 0.0, 0.05]),
                ..Sampling::default()
            };
            let spread = pick(5, &[0.0, 1.0, 20.0, 300.0]);
            let logits: Vec<f32> = (0..3000)
                .map(|index| {
                    let x = number(10 + index);
                    if x < 0.1 { f32::NEG_INFINITY } else { ((x * 64.0).round() as f32 / 64.0 - 0.5) * spread }
                })
                .collect();
            assert_eq!(sampler(sampling.clone()).candidates(&logits), defined(&sampling, &logits), "{sampling:?}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let sampling = Sampling { temperature: 1.0, top_k: 3, ..Sampling::default() };
        let draw = |seed, position| {
            let sampling = Sampling { seed, ..sampling.clone() };
            sampler(sampling).choose(&LOGITS, position)
        };
        let drawn: Vec<u32> = (0..20_000).map(|position| draw(7, position)).collect();
        assert_eq!(drawn, (0..20_000).map(|position| draw(7, position)).collect::<Vec<_>>());
        assert_ne!(drawn, (0..20_000).map(|position| draw(8, position)).collect::<Vec<_>>());
        for (token, expected) in [(1, 0.4223), (3, 0.4223), (2, 0.1554)] {
            let share = drawn.iter().filter(|drawn| **drawn == token).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.015, "{token}: {share}");
        }
    }
}
