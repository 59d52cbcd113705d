//! Comparisons: within a bound, or bit for bit.

use std::sync::OnceLock;

use tbshard::backend::cpu::Isa;
use tbshard::backend::{Arithmetic, Backend, Cpu};

use super::reference::Bound;

/// A backend on every instruction set of this processor with one, two and three threads.
fn machines(arithmetic: Arithmetic) -> &'static [Cpu] {
    static MACHINES: [OnceLock<Vec<Cpu>>; 2] = [const { OnceLock::new() }; 2];
    MACHINES[arithmetic as usize].get_or_init(|| {
        let threads = |isa| [1, 2, 3].map(|threads| Cpu::with_isa(threads, isa).unwrap().computing(arithmetic));
        Isa::available().into_iter().flat_map(threads).collect()
    })
}

/// The backend that is compared with candle, and runs rows alone: the widest instruction set, one thread.
pub fn cpu() -> &'static Cpu {
    cpu_in(Arithmetic::Exact)
}

/// The same in another arithmetic.
pub fn cpu_in(arithmetic: Arithmetic) -> &'static Cpu {
    static CPUS: [OnceLock<Cpu>; 2] = [const { OnceLock::new() }; 2];
    CPUS[arithmetic as usize].get_or_init(|| Cpu::new(1).unwrap().computing(arithmetic))
}

/// Fails if any value of `got` is farther from its reference than the bound.
pub fn near(what: &str, got: &[f32], want: &Bound) {
    let (values, errors) = want.flat();
    assert_eq!(got.len(), values.len(), "{what}: the number of values");
    for (i, ((got, want), error)) in got.iter().zip(values).zip(errors).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off <= error, "{what}: value {i} is {got}, not {want} ± {error:e}");
    }
}

/// Fails if the values differ in any bit.
pub fn same(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: the number of values");
    if let Some(i) = (0..got.len()).find(|i| got[*i].to_bits() != want[*i].to_bits()) {
        panic!("{what}: value {i} is {:e}, not {:e}: other bits", got[i], want[i]);
    }
}

/// Fails if `run` gives different bits on any instruction set or number of threads; returns its values.
pub fn same_everywhere(what: &str, run: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    same_everywhere_in(Arithmetic::Exact, what, run)
}

/// The same in another arithmetic.
pub fn same_everywhere_in(arithmetic: Arithmetic, what: &str, run: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let [reference, others @ ..] = machines(arithmetic) else { panic!("there is no machine") };
    let first = run(reference);
    for machine in others {
        same(&format!("{what} on {}", machine.name()), &run(machine), &first);
    }
    first
}
