//! Ranks that are threads of this process, and what a model computes on them.

use sha2::{Digest, Sha256};
use tbshard::backend::{Arithmetic, Cpu};
use tbshard::comm::{Algorithm, Communicator, Ranks};
use tbshard::engine::{Engine, Room, Wanted};
use tbshard::models::Blueprint;
use tbshard::partition::{Layout, Plan};
use tbshard::transport::{Endpoint, loopback};

/// What connects ranks without a fabric.
pub fn mesh(world_size: usize) -> Vec<Box<dyn Endpoint>> {
    loopback::mesh(world_size).into_iter().map(|end| Box::new(end) as _).collect()
}

/// Runs `work` on rank 0 of the ranks that `mesh` connects, threads of this process; returns what it does.
pub fn on_ranks<T: Send>(
    mesh: Vec<Box<dyn Endpoint>>,
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    (layout, algorithm): (&Layout, Algorithm),
    cpu: &(dyn Fn() -> Cpu + Sync),
    room: Room,
    work: &(dyn Fn(&mut Engine) -> T + Sync),
) -> T {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = mesh
            .into_iter()
            .map(|endpoint| {
                scope.spawn(move || {
                    let blueprint = blueprint();
                    let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, layout).unwrap();
                    let world = Communicator::new(endpoint, None).with_algorithm(algorithm);
                    let ranks = Ranks::new(world, &plan).unwrap();
                    let rank = ranks.world.rank();
                    let model = blueprint.load(&plan, rank, &|_, _| ()).unwrap();
                    let mut engine = Engine::with_ranks(model, Box::new(cpu()), room, ranks).unwrap();
                    if rank > 0 {
                        engine.follow().unwrap();
                        return None;
                    }
                    let result = work(&mut engine);
                    engine.stop().unwrap();
                    Some(result)
                })
            })
            .collect();
        ranks.into_iter().filter_map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

const TOKENS: usize = 45;

fn tokens(vocab: usize) -> Vec<u32> {
    (0..TOKENS).map(|i| ((i * i * 7 + 3 * i + 1) % vocab.min(290)) as u32).collect()
}

fn hash_of(engine: &mut Engine, chunk: usize) -> String {
    let tokens = tokens(engine.model().geometry.vocab);
    let mut sequence = engine.start().unwrap();
    let mut hash = Sha256::new();
    for chunk in tokens.chunks(chunk) {
        let logits = engine.forward(&mut [(&mut sequence, chunk)], Wanted::All, None).unwrap();
        assert_eq!(logits.rows(), chunk.len());
        logits.data().iter().for_each(|logit| hash.update(logit.to_bits().to_le_bytes()));
    }
    engine.end(sequence);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hashes of rank 0 for every chunk size, with the ranks as threads of this process.
pub fn run(
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    layout: &Layout,
    algorithm: Algorithm,
    mesh: Vec<Box<dyn Endpoint>>,
) -> Vec<String> {
    run_in(Arithmetic::Exact, blueprint, layout, algorithm, mesh)
}

/// The same in an arithmetic.
pub fn run_in(
    arithmetic: Arithmetic,
    blueprint: &(dyn Fn() -> Blueprint + Sync),
    layout: &Layout,
    algorithm: Algorithm,
    mesh: Vec<Box<dyn Endpoint>>,
) -> Vec<String> {
    let cpu = || Cpu::new(1).unwrap().computing(arithmetic);
    let hashes = |engine: &mut Engine| [1, 7, TOKENS].map(|chunk| hash_of(engine, chunk)).to_vec();
    on_ranks(mesh, blueprint, (layout, algorithm), &cpu, Room::of(128, 1).unwrap(), &hashes)
}
