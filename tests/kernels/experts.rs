//! Mixtures of experts: the chosen experts of every token, the shared one, and ranks that hold columns of them.

use std::ops::Range;

use tbshard::backend::{Arithmetic, Backend, Cpu, ExpertWeights, Experts, Routes, SharedExpert, Tensor};
use tbshard::partition::{Fold, Leaves};

use super::run_of;

use super::check::{cpu, cpu_in, near, same, same_everywhere_in};
use super::linear::{Subtrees, depth, finish, runs};
use super::order;
use super::random::Rng;
use super::reference::{Bound, Exact, exact};
use super::stored::{Format, Stored};

const TOKENS: [usize; 7] = [1, 70, 2, 9, 5, 40, 20];
const HIDDEN: [usize; 5] = [40, 16, 1100, 129, 300];
const INNER: [usize; 6] = [48, 200, 16, 130, 33, 384];

/// gate and up `[inner, hidden]`, down `[hidden, inner]`.
struct Expert {
    gate: Stored,
    up: Stored,
    down: Stored,
    leaves: Leaves,
}

impl Expert {
    fn random(rng: &mut Rng, format: Format, hidden: usize, leaves: &Leaves) -> Self {
        let inner = leaves.len();
        let mut stored = |out, inner| Stored::random(rng, format, out, inner);
        let (gate, up, down) = (stored(inner, hidden), stored(inner, hidden), stored(hidden, inner));
        Self { gate, up, down, leaves: leaves.clone() }
    }

    /// What the rank with the leaves `run` holds.
    fn cut(&self, run: &Range<usize>) -> Self {
        let cols = match run.is_empty() {
            true => 0..0,
            false => self.leaves.columns(run.start).start..self.leaves.columns(run.end - 1).end,
        };
        Self {
            gate: self.gate.cut(cols.clone(), 0..self.gate.inner),
            up: self.up.cut(cols.clone(), 0..self.up.inner),
            down: self.down.cut(0..self.down.out, cols),
            leaves: self.leaves.clone(),
        }
    }

    /// silu(gate · x) · up · x of every token, by operations that have tests of their own.
    fn inner(&self, x: &Tensor, arithmetic: Arithmetic) -> Tensor {
        let fold = Fold::whole(Leaves::unsharded(x.cols()));
        let project = |w: &Stored| cpu_in(arithmetic).linear(x, &w.matrix(), &fold).unwrap();
        cpu().swiglu(project(&self.gate), &project(&self.up))
    }

    /// The product of one leaf of one row of `down` with what [`Expert::inner`] says of a token.
    fn down(&self, arithmetic: Arithmetic) -> impl Fn(&[f32], usize, usize) -> f32 {
        let (values, leaves, width) = (self.down.widened(), self.leaves.clone(), self.down.inner);
        let codes: Option<Vec<_>> = (0..self.down.out).map(|row| self.down.codes(row)).collect();
        move |inner, leaf, output| {
            let columns = leaves.columns(leaf);
            match &codes {
                _ if arithmetic == Arithmetic::Exact => {
                    order::leaf(&inner[columns.clone()], &values[output * width..][columns])
                }
                Some(codes) => order::int8_leaf(&inner[columns.clone()], &codes[output][columns]),
                None => order::paired_leaf(&inner[columns.clone()], &values[output * width..][columns]),
            }
        }
    }

    /// down · (silu(gate · x) · up · x) of one token.
    fn reference(&self, x: &Bound, more: usize) -> candle_core::Result<Bound> {
        let roundings = depth(&Leaves::unsharded(self.gate.inner));
        let gate = x.linear(&self.gate.exact(), roundings)?.silu()?;
        let inner = gate.times(&x.linear(&self.up.exact(), roundings)?)?;
        inner.linear(&self.down.exact(), depth(&self.leaves) + more)
    }
}

struct Case {
    what: String,
    x: Tensor,
    routes: Routes,
    routed: Vec<Expert>,
    shared: Option<Expert>,
    /// `[tokens, 1]`.
    shared_weights: Option<Tensor>,
}

fn case(case: usize) -> Case {
    let mut rng = Rng::new(case as u64);
    let (format, shared) = (Format::of(case), !case.is_multiple_of(3));
    let (tokens, top_k) = (TOKENS[case % 7], case % 8 + 1);
    let (hidden, inner) = match tokens * top_k {
        ..100 => (HIDDEN[case % 5], INNER[case % 6]),
        _ => (HIDDEN[case % 2], INNER[case % 5]),
    };
    let (hidden, inner) = (format.width(hidden), format.width(inner));
    let count = top_k + rng.pick(&[0, 0, 1, 3, 9]);
    let unit = format.cut_unit(rng.pick(&[1, 16, 24, 128]));
    // both are cut into as many leaves
    let shared_inner = format.width(if case % 4 < 2 { 2 * inner + 1 } else { inner.div_ceil(2) });
    let parts = inner.div_ceil(unit).min(if shared { shared_inner.div_ceil(unit) } else { 32 }).min(32);
    let leaves = |inner| Leaves::into_parts(inner, unit, parts);

    let weights = rng.values(tokens * top_k, 1.0);
    let chosen: Vec<u32> = (0..tokens).flat_map(|_| rng.shuffled(count)[..top_k].to_vec()).collect();
    let routes = Routes::new(top_k, &chosen, weights).unwrap();
    let what = format!("case {case}: {format:?}, {tokens} tokens of {hidden}, {top_k} of {count} experts of {inner}");
    Case {
        what: format!("{what}, shared: {shared}"),
        x: rng.tensor(tokens, hidden, 1.0),
        routes,
        routed: (0..count).map(|_| Expert::random(&mut rng, format, hidden, &leaves(inner))).collect(),
        shared: shared.then(|| Expert::random(&mut rng, format, hidden, &leaves(shared_inner))),
        shared_weights: (case % 3 == 2).then(|| rng.tensor(tokens, 1, 4.0)),
    }
}

impl Case {
    fn leaves(&self) -> &Leaves {
        &self.routed[0].leaves
    }

    /// The outputs of the leaves `run`: a block a subtree, and the subtrees.
    fn run(&self, cpu: &Cpu, run: Range<usize>, tokens: &[usize]) -> (Tensor, Vec<Range<usize>>) {
        let parts: Vec<Expert> = self.routed.iter().map(|expert| expert.cut(&run)).collect();
        let all = |part: fn(&Expert) -> &Stored| parts.iter().map(|expert| part(expert).matrix()).collect();
        let routed = ExpertWeights { gate: all(|e| &e.gate), up: all(|e| &e.up), down: all(|e| &e.down) };
        let shared = self.shared.as_ref().map(|expert| expert.cut(&run));
        let shared = shared.map(|e| (e.gate.matrix(), e.up.matrix(), e.down.matrix(), run_of(e.leaves, run.clone())));
        let weights = || self.shared_weights.as_ref().map(|weights| weights.select_rows(cpu, tokens));
        let shared =
            shared.as_ref().map(|(gate, up, down, fold)| SharedExpert { gate, up, down, fold, weights: weights() });
        let fold = run_of(self.leaves().clone(), run);
        let experts = Experts { routed: &routed, fold: &fold, shared };
        let y = cpu.experts(&self.x.select_rows(cpu, tokens), &self.routes_of(tokens), &experts).unwrap();
        (y, fold.roots)
    }

    fn whole(&self, cpu: &Cpu) -> Vec<f32> {
        let tokens: Vec<usize> = (0..self.x.rows()).collect();
        self.run(cpu, 0..self.leaves().count(), &tokens).0.data().to_vec()
    }

    fn routes_of(&self, tokens: &[usize]) -> Routes {
        let top_k = self.routes.top_k();
        let pairs = || tokens.iter().flat_map(|token| token * top_k..(token + 1) * top_k);
        let experts: Vec<u32> = pairs().map(|pair| self.routes.experts()[pair]).collect();
        Routes::new(top_k, &experts, pairs().map(|pair| self.routes.weights.data()[pair]).collect()).unwrap()
    }

    /// Every token by itself, its experts one after another.
    fn reference(&self) -> candle_core::Result<Bound> {
        let (x, top_k) = (exact(&self.x), self.routes.top_k());
        // a product is weighed, then passes the sums of the other experts
        let more = top_k + 2;
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        for token in 0..self.x.rows() {
            let x = Bound::exactly(x.narrow(0, token, 1)?);
            let mut sum = Bound::exactly(x.value.zeros_like()?);
            for pair in token * top_k..(token + 1) * top_k {
                let expert = &self.routed[self.routes.experts()[pair] as usize];
                sum = sum.plus(&expert.reference(&x, more)?.scaled(f64::from(self.routes.weights.data()[pair]))?)?;
            }
            if let Some(shared) = &self.shared {
                let y = shared.reference(&x, more)?;
                sum = sum.plus(&match &self.shared_weights {
                    None => y,
                    Some(weights) => {
                        let weight = Bound::exactly(exact(weights).narrow(0, token, 1)?.broadcast_as(y.value.shape())?);
                        y.times(&weight.sigmoid()?)?
                    }
                })?;
            }
            values.push(sum.value);
            errors.push(sum.error);
        }
        Ok(Bound { value: Exact::cat(&values, 0)?, error: Exact::cat(&errors, 0)? })
    }
}

#[test]
fn add_in_the_order_of_the_routers_ranking() {
    for (case, arithmetic) in (0..CASES).flat_map(|n| [(case(n), Arithmetic::Exact), (case(n), Arithmetic::Fast)]) {
        let leaves = case.leaves().count();
        let whole = case.whole(cpu_in(arithmetic));
        let every = || case.routed.iter().chain(&case.shared);
        let inner: Vec<Tensor> = every().map(|expert| expert.inner(&case.x, arithmetic)).collect();
        let down: Vec<_> = every().map(|expert| expert.down(arithmetic)).collect();
        let mut gates = Tensor::from_vec(case.x.rows(), 1, vec![1.0; case.x.rows()]).unwrap();
        if let Some(weights) = &case.shared_weights {
            cpu().gate_sigmoid(&mut gates, weights);
        }
        for (token, whole) in whole.chunks(case.x.cols()).enumerate() {
            let routes = case.routes_of(&[token]);
            // the weights of its experts and their products, the shared one's last
            let mut chosen: Vec<(usize, f32)> =
                routes.experts().iter().map(|e| *e as usize).zip(routes.weights.data().iter().copied()).collect();
            chosen.extend(case.shared.iter().map(|_| (case.routed.len(), gates.row(token)[0])));
            let leaf_sum = |leaf, output| {
                let product = |e: usize| down[e](inner[e].row(token), leaf, output);
                chosen.iter().fold(0.0, |sum, (e, weight)| weight.mul_add(product(*e), sum))
            };
            let output = |output| {
                let sums: Vec<f32> = (0..leaves).map(|leaf| leaf_sum(leaf, output)).collect();
                order::tree(0..leaves, &sums)
            };
            let want: Vec<f32> = (0..case.x.cols()).map(output).collect();
            same(&format!("{}: token {token}, {arithmetic:?}", case.what), whole, &want);
        }
    }
}

const CASES: usize = 32;

#[test]
fn agree_with_candle() {
    for case in (0..CASES).map(case) {
        near(&case.what, &case.whole(cpu()), &case.reference().unwrap());
    }
}

#[test]
fn have_the_same_bits_everywhere_and_alone() {
    for (case, arithmetic) in (0..CASES).flat_map(|n| [(case(n), Arithmetic::Exact), (case(n), Arithmetic::Fast)]) {
        let whole = same_everywhere_in(arithmetic, &case.what, |cpu| case.whole(cpu));
        for (token, whole) in whole.chunks(case.x.cols()).enumerate() {
            let (alone, _) = case.run(cpu_in(arithmetic), 0..case.leaves().count(), &[token]);
            same(&format!("{}: token {token} alone", case.what), alone.data(), whole);
        }
    }
}

#[test]
fn ranks_that_share_the_leaves_make_up_the_whole() {
    for (number, case) in (0..CASES).map(case).enumerate() {
        let mut rng = Rng::new(number as u64);
        let (tokens, hidden) = (case.x.rows(), case.x.cols());
        let every: Vec<usize> = (0..tokens).collect();
        for ranks in [2, 3, 8] {
            let mut subtrees = Subtrees::new();
            for run in runs(&mut rng, case.leaves().count(), ranks) {
                let (part, roots) = case.run(cpu(), run, &every);
                assert_eq!((part.rows(), part.cols()), (roots.len() * tokens, hidden));
                subtrees.extend(roots.into_iter().zip(part.data().chunks(tokens * hidden).map(<[f32]>::to_vec)));
            }
            let what = format!("{} on {ranks} ranks", case.what);
            same(&what, &finish(0..case.leaves().count(), &subtrees), &case.whole(cpu()));
        }
    }
}
