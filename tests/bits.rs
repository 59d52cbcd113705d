//! Promise 1 on one rank: the same bits for any chunking, batching, thread count and instruction set.

use tbshard::backend::cpu::Isa;
use tbshard::backend::{Arithmetic, Cpu};
use tbshard::engine::{Engine, Wanted};

use crate::support::engine::{engine, model};
use crate::support::files;
use crate::support::tiny::tiny_checkpoints;

/// Tokens of a prompt that crosses tiles and pages.
fn prompt(len: usize, salt: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + salt * 31) % 300) as u32).collect()
}

/// The bits of all logits of `tokens`, run `chunk` at a time.
fn logits(engine: &mut Engine, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let mut sequence = engine.start().unwrap();
    let mut bits = Vec::new();
    for chunk in tokens.chunks(chunk) {
        let logits = engine.forward(&mut [(&mut sequence, chunk)], Wanted::All, None).unwrap();
        bits.extend(logits.data().iter().map(|logit| logit.to_bits()));
    }
    engine.end(sequence);
    bits
}

fn committed() -> Vec<std::path::PathBuf> {
    let mut dirs = tiny_checkpoints();
    dirs.retain(|dir| dir.starts_with(files::fixtures()));
    assert!(dirs.len() >= 16);
    dirs
}

#[test]
fn prefill_equals_single_steps_at_any_chunk_size() {
    for dir in committed() {
        let mut engine = engine(&dir, 1);
        let tokens = prompt(150, 1);
        let whole = logits(&mut engine, &tokens, tokens.len());
        for chunk in [1, 7, 64, 100] {
            assert!(logits(&mut engine, &tokens, chunk) == whole, "{} in chunks of {chunk}", dir.display());
        }
    }
}

#[test]
fn alone_or_in_a_batch() {
    for dir in committed() {
        let mut engine = engine(&dir, 3);
        let prompts = [prompt(70, 1), prompt(33, 2), prompt(5, 3)];
        let alone: Vec<Vec<u32>> = prompts.iter().map(|tokens| logits(&mut engine, tokens, 16)).collect();
        let mut sequences: Vec<_> = prompts.iter().map(|_| engine.start().unwrap()).collect();
        let mut together = vec![Vec::new(); prompts.len()];
        // steps of unequal length, so that prompts and single tokens meet in one pass
        for step in 0.. {
            let mut runs: Vec<(usize, &mut tbshard::engine::Sequence, &[u32])> = Vec::new();
            for (i, sequence) in sequences.iter_mut().enumerate() {
                let from = sequence.len();
                let to = (from + [16, 1, 2][(i + step) % 3]).min(prompts[i].len());
                if from < to {
                    runs.push((i, sequence, &prompts[i][from..to]));
                }
            }
            if runs.is_empty() {
                break;
            }
            let order: Vec<(usize, usize)> = runs.iter().map(|(i, _, tokens)| (*i, tokens.len())).collect();
            let mut runs: Vec<_> = runs.into_iter().map(|(_, sequence, tokens)| (sequence, tokens)).collect();
            let logits = engine.forward(&mut runs, Wanted::All, None).unwrap();
            let mut rows = logits.rows_iter();
            for (i, count) in order {
                together[i].extend(rows.by_ref().take(count).flatten().map(|logit| logit.to_bits()));
            }
        }
        assert!(together == alone, "{}", dir.display());
        sequences.into_iter().for_each(|sequence| engine.end(sequence));
    }
}

#[test]
fn prompts_of_any_lengths_are_prefilled_at_once() {
    for dir in committed() {
        let mut engine = engine(&dir, 3);
        let prompts = [prompt(33, 2), prompt(150, 1), prompt(1, 3)];
        let last = |engine: &mut Engine, tokens: &[u32]| {
            let bits = logits(engine, tokens, 16);
            bits[bits.len() / tokens.len() * (tokens.len() - 1)..].to_vec()
        };
        let alone: Vec<Vec<u32>> = prompts.iter().map(|tokens| last(&mut engine, tokens)).collect();
        let mut sequences: Vec<_> = prompts.iter().map(|_| engine.start().unwrap()).collect();
        let mut runs: Vec<(&mut tbshard::engine::Sequence, &[u32])> =
            sequences.iter_mut().zip(&prompts).map(|(sequence, tokens)| (sequence, &tokens[..])).collect();
        let mut told = Vec::new();
        let together = engine.prefill_batch(&mut runs, &mut |done| {
            told.push(done);
            true
        });
        let together = together.unwrap().unwrap();
        for (i, row) in together.rows_iter().enumerate() {
            assert!(row.iter().map(|logit| logit.to_bits()).eq(alone[i].iter().copied()), "{} {i}", dir.display());
        }
        assert!(told.is_sorted() && told.len() > 1 && told.last() == Some(&184), "{told:?}");
        assert_eq!(sequences.iter().map(|sequence| sequence.len()).collect::<Vec<_>>(), [33, 150, 1]);
        let mut again: Vec<(&mut tbshard::engine::Sequence, &[u32])> = Vec::new();
        assert!(engine.prefill_batch(&mut again, &mut |_| true).is_err());
    }
}

#[test]
fn any_thread_count_and_instruction_set() {
    let isas = Isa::available();
    println!("instruction sets: {isas:?}");
    for dir in committed() {
        let tokens = prompt(75, 4);
        let mut first: Option<Vec<u32>> = None;
        for (isa, threads) in isas.iter().flat_map(|isa| [1, 2, 5].map(|threads| (*isa, threads))) {
            if isa == Isa::Scalar && threads == 5 {
                continue;
            }
            let backend = Box::new(Cpu::with_isa(threads, isa).unwrap());
            let mut engine = Engine::new(model(&dir), backend, 128, 1).unwrap();
            let bits = logits(&mut engine, &tokens, 40);
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{} {isa:?} {threads} threads", dir.display());
        }
    }
}

#[test]
fn slots_and_pages_are_clean_when_they_come_back() {
    for dir in committed() {
        let mut engine = engine(&dir, 2);
        let tokens = prompt(90, 5);
        let fresh = logits(&mut engine, &tokens, 90);
        let mut other = engine.start().unwrap();
        engine.forward(&mut [(&mut other, &prompt(200, 6))], Wanted::Last, None).unwrap();
        assert!(logits(&mut engine, &tokens, 30) == fresh, "{}", dir.display());
        engine.end(other);
        assert!(logits(&mut engine, &tokens, 90) == fresh, "{}", dir.display());
    }
}

#[test]
fn a_token_of_an_answer_allocates_no_activations() {
    for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
        let model = tbshard::models::Model::random(&qwen3(), None, 0, &|_, _| ()).unwrap();
        let cpu = Cpu::new(2).unwrap().computing(arithmetic);
        let mut engine = Engine::new(model, Box::new(cpu), 512, 1).unwrap();
        let mut sequence = engine.start().unwrap();
        engine.forward(&mut [(&mut sequence, &prompt(100, 1))], Wanted::Last, None).unwrap();
        let mut step = |greedy: bool| match greedy {
            true => engine.next_tokens(&mut [(&mut sequence, &[1])]).unwrap()[0] as f32,
            false => engine.forward(&mut [(&mut sequence, &[1])], Wanted::Last, None).unwrap().data()[0],
        };
        step(true);
        step(false);
        for at in 0..30 {
            let (_, largest) = crate::fuzz::allocations::largest(|| step(at % 3 > 0));
            // lists of tasks and pages are allowed, a row of activations (8 KiB, or 4 in bf16) is not
            assert!(largest < 4096, "{arithmetic:?}: a token allocated {largest} bytes at once");
        }
    }
}

/// A model whose smallest activation is larger than any list of its work.
fn qwen3() -> serde_json::Value {
    serde_json::json!({
        "model_type": "qwen3", "hidden_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 3000, "intermediate_size": 3072,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6
    })
}
