//! Attention of a prompt's rows together and of the same rows a few at a time: here, where matrices add in the order in which the
//! other kernel does, they have the same bits.

use std::ops::Range;
use std::sync::Arc;

use metal_on_cpu::{Emulator, Options};
use tbshard::backend::{
    AttentionShape, Backend, Batch, HeadGroups, KvStore, LatentShape, LatentStore, Metal, PAGE, Tensor,
};

use crate::support::{random, schedules};

/// Attention of one kind of heads.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Query heads over shared ones, so many of the first group missing, values of a head.
    Heads(usize, usize, usize, usize),
    /// Query heads, values of a latent vector, and of a result.
    Latent(usize, usize, usize),
}

const KINDS: [Kind; 8] = [
    Kind::Heads(5, 2, 2, 64),
    Kind::Heads(2, 1, 0, 128),
    Kind::Heads(2, 2, 0, 256),
    Kind::Heads(4, 1, 0, 8),
    Kind::Heads(1, 1, 0, 96),
    Kind::Latent(2, 576, 512),
    Kind::Latent(3, 72, 64),
    Kind::Latent(1, 136, 128),
];

enum Store {
    Heads(KvStore),
    Latent(LatentStore),
}

/// What the first of `every` so many values is in some rows of queries (0), keys or latent vectors (1) and values (2).
struct Broken {
    rows: Range<usize>,
    tensors: Range<u64>,
    every: usize,
    value: f32,
}

impl Kind {
    fn store(self, backend: &dyn Backend, pages: usize) -> Store {
        match self {
            Self::Heads(_, shared, _, dim) => Store::Heads(KvStore::new(backend, pages, shared, dim).unwrap()),
            Self::Latent(_, width, _) => Store::Latent(LatentStore::new(backend, pages, width).unwrap()),
        }
    }

    /// The bits of what the rows of a batch become, random ones but for what is `broken`.
    fn run(self, backend: &Metal, store: &mut Store, batch: &Batch, seed: u64, broken: Option<&Broken>) -> Vec<u32> {
        let rows = batch.rows();
        let tensor = |i: u64, cols: usize| {
            let mut tensor = Tensor::from_vec(rows, cols, random(seed + i, rows * cols)).unwrap();
            if let Some(Broken { rows, every, value, .. }) = broken.filter(|broken| broken.tensors.contains(&i)) {
                let values = |row: usize| row * cols..(row + 1) * cols;
                for at in rows.clone().flat_map(|row| values(row).step_by(*every)) {
                    tensor.data_mut()[at] = *value;
                }
            }
            tensor
        };
        let y = match (self, store) {
            (Self::Heads(heads, shared, before, dim), Store::Heads(store)) => {
                let heads = HeadGroups { heads, shared, group: (heads + before).div_ceil(shared), before };
                let [q, k, v] = [(0, heads.heads), (1, shared), (2, shared)].map(|(i, n)| tensor(i, n * dim));
                backend.attention(&q, &k, &v, store, batch, &AttentionShape { heads, scale: 0.4 })
            }
            (Self::Latent(heads, width, values), Store::Latent(store)) => {
                let (q, latent) = (tensor(0, heads * width), tensor(1, width));
                let shape = LatentShape { heads, width, values, scale: 0.3 };
                backend.latent_attention(&q, &latent, store, batch, &shape)
            }
            _ => panic!("another kind's store"),
        };
        y.data().iter().map(|value| value.to_bits()).collect()
    }
}

/// Rows of one sequence as segments of so many.
fn batch(start: usize, parts: &[usize], pages: &[u32]) -> Batch {
    let (mut batch, mut at) = (Batch::default(), start);
    for count in parts {
        batch.push(0, at, *count, pages);
        at += count;
    }
    batch
}

fn metal(options: Options) -> Metal {
    Metal::new(Arc::new(Emulator::new(options).unwrap()))
}

#[test]
fn a_prompts_rows_have_the_bits_of_rows_alone() {
    // behind nothing and behind other positions, with and without a rest: rows, and the parts that they are cut into
    let prompts: [(usize, &[&[usize]]); 3] = [
        (0, &[&[16], &[15, 1]]),
        (45, &[&[75], &[15, 15, 15, 15, 15], &[32, 43], &[16, 16, 16, 16, 11], &[1, 47, 15, 12]]),
        (128, &[&[64], &[48, 16], &[15, 15, 15, 15, 4]]),
    ];
    let pages = [3, 0, 2, 1];
    for kind in KINDS {
        for (start, cuts) in prompts {
            let run = |parts: &[usize]| {
                let backend = metal(Options::default());
                let mut store = kind.store(&backend, pages.len());
                if start > 0 {
                    kind.run(&backend, &mut store, &batch(0, &[start], &pages), 1, None);
                }
                kind.run(&backend, &mut store, &batch(start, parts, &pages), 9, None)
            };
            let whole = run(cuts[0]);
            assert!(whole.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{kind:?}");
            for parts in &cuts[1..] {
                assert!(run(parts) == whole, "{kind:?} from {start} on in {parts:?}");
            }
        }
    }
}

#[test]
fn what_another_sequence_left_in_a_page_is_not_seen() {
    for kind in KINDS {
        for count in [5, 16, 41] {
            let run = |left: bool| {
                let backend = metal(Options::default());
                let mut store = kind.store(&backend, 1);
                if left {
                    let broken = Broken { rows: 0..PAGE, tensors: 0..3, every: 1, value: f32::NAN };
                    kind.run(&backend, &mut store, &batch(0, &[PAGE], &[0]), 1, Some(&broken));
                }
                kind.run(&backend, &mut store, &batch(0, &[count], &[0]), 5, None)
            };
            assert!(run(true) == run(false), "{kind:?}, {count} rows");
        }
    }
}

#[test]
fn what_is_no_number_is_seen_by_the_rows_after_it_alone() {
    let (count, pages, parts) = (41, [1, 0], [&[41][..], &[15, 15, 11]]);
    for kind in KINDS {
        for (start, row, every, value, tensors) in [
            (0, 0, 1, f32::NAN, 1..3),
            (0, 20, 8, f32::INFINITY, 2..3),
            (45, 9, 1, f32::NAN, 1..2),
            (45, 33, 8, f32::NAN, 1..3),
            (45, 40, 1, f32::INFINITY, 1..3),
        ] {
            let broken = Broken { rows: row..row + 1, tensors: tensors.clone(), every, value };
            let run = |parts: &[usize], broken: Option<&Broken>| {
                let backend = metal(Options::default());
                let mut store = kind.store(&backend, pages.len());
                if start > 0 {
                    kind.run(&backend, &mut store, &batch(0, &[start], &pages), 1, None);
                }
                kind.run(&backend, &mut store, &batch(start, parts, &pages), 9, broken)
            };
            let (sound, [together, apart]) = (run(parts[0], None), parts.map(|parts| run(parts, Some(&broken))));
            let before = row * sound.len() / count;
            assert!(together[..before] == sound[..before], "{kind:?}: {value} in row {row} from {start} on");
            let same = |(a, b): (&u32, &u32)| a == b || [a, b].iter().all(|bits| f32::from_bits(**bits).is_nan());
            assert!(together.iter().zip(&apart).all(same), "{kind:?}: {value} in row {row} from {start} on");
        }
    }
}

#[test]
fn no_schedule_changes_a_bit_of_a_prompts_attention() {
    for kind in KINDS {
        let run = |options| {
            let backend = metal(options);
            let mut store = kind.store(&backend, 2);
            kind.run(&backend, &mut store, &batch(0, &[70], &[1, 0]), 3, None)
        };
        let first = run(Options::default());
        for options in schedules() {
            assert!(run(options) == first, "{kind:?} {options:?}");
        }
    }
}

#[test]
fn there_are_no_races_in_a_prompts_attention() {
    for kind in KINDS {
        let backend = metal(Options { races: true, ..Options::default() });
        let mut store = kind.store(&backend, 2);
        kind.run(&backend, &mut store, &batch(0, &[70], &[1, 0]), 3, None);
        backend.finish().unwrap_or_else(|error| panic!("{kind:?}: {error:?}"));
    }
}
