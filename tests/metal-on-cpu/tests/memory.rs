//! What a rank has in a device's reach: its weights, each byte once, and nothing else of the files.

use std::path::Path;
use std::sync::{Arc, Mutex};

use metal_on_cpu::{Constants, Emulator, Options};
use tbshard::backend::{Fence, Metal};
use tbshard::engine::{Engine, Wanted};
use tbshard::error::Result;
use tbshard::models::Blueprint;
use tbshard::partition::Plan;
use tbshard::weights::{NewShard, NewTensor, Piece, Share, TensorInfo};

use crate::models::checkpoints;
use crate::ranks::{Emulators, Parts, layout, try_task, usual};

/// Tensors that kernels have as f32, whatever they are stored in.
const CONSTANTS: [&str; 7] =
    ["norm.weight", ".bias", "conv1d.weight", "A_log", "dt_bias", "e_score_correction_bias", "layernorm.weight"];
/// Bytes of a page of this machine at most.
const PAGE: usize = 64 << 10;

/// The bytes of a rank's matrices.
fn bytes(share: &Share) -> usize {
    let matrices = share.tensors().filter(|(name, _)| !CONSTANTS.iter().any(|end| name.ends_with(end)));
    let held = matrices.flat_map(|(_, pieces)| pieces).filter(|piece| !piece.looked_up);
    held.map(Piece::bytes).sum::<u64>() as usize
}

fn are_whole_pages(constants: &Constants) -> bool {
    (constants.bytes..=constants.bytes + 2 * PAGE * constants.buffers).contains(&constants.memory)
}

/// A prompt and a token.
fn two_passes(engine: &mut Engine) -> Result<Vec<u32>> {
    let mut sequence = engine.start()?;
    engine.forward(&mut [(&mut sequence, &[1, 2, 3])], Wanted::Nothing, None)?;
    engine.forward(&mut [(&mut sequence, &[4])], Wanted::Last, None)?;
    engine.end(sequence);
    Ok(Vec::new())
}

#[test]
fn a_rank_has_what_it_owns_and_has_it_once() {
    for dir in checkpoints() {
        for ranks in 1..=3 {
            let blueprint = Blueprint::open(&dir).unwrap();
            let layout = layout(ranks, 1);
            let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, &layout).unwrap();
            let mut owned: Vec<usize> = (0..ranks).map(|rank| bytes(&blueprint.share(&plan, rank).unwrap())).collect();
            let emulators = Emulators::new(Options::default());
            let parts = Parts { fence: Fence::default(), emulators: &emulators, endpoint: &usual };
            let ended = try_task(&dir, &layout, &parts, &two_passes);
            assert!(ended.iter().all(Result::is_ok), "{ended:?}");
            let found: Vec<Constants> = emulators.all().iter().map(|emulator| emulator.constants()).collect();
            assert!(found.iter().all(are_whole_pages), "{found:?}");
            let mut had: Vec<usize> = found.iter().map(|constants| constants.bytes).collect();
            had.sort_unstable();
            owned.sort_unstable();
            assert_eq!(had, owned, "{} on {ranks} ranks", dir.display());
        }
    }
}

#[test]
fn loading_leaves_nothing_for_the_first_token() {
    for name in ["qwen3_moe", "qwen3-fp8", "kimi_k25-int4", "mlx-qwen3-mixed"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny").join(name);
        let blueprint = Blueprint::open(&dir).unwrap();
        let plan = Plan::new(blueprint.geometry.layers, blueprint.geometry.heads, &layout(2, 1)).unwrap();
        let mut model = blueprint.load(&plan, 1, &|_, _| ()).unwrap();
        let emulator = Arc::new(Emulator::new(Options::default()).unwrap());
        let told = Mutex::new(Vec::new());
        let metal = Metal::new(emulator.clone());
        model
            .keep(&metal, &|copied, all| {
                told.lock().unwrap().push((copied, all));
                true
            })
            .unwrap();
        assert_eq!(emulator.constants().bytes, bytes(&model.share), "{name}");
        let told = told.into_inner().unwrap();
        let &(copied, all) = told.last().unwrap();
        assert!(told.is_sorted() && copied < all && all == model.share.bytes(), "{name}: {told:?}");
    }
}

/// Bytes of memory that what is mapped of `file` takes of this process.
fn resident(file: &Path) -> usize {
    let (maps, name) = (std::fs::read_to_string("/proc/self/smaps").unwrap(), file.to_str().unwrap());
    let own = maps.split(name).skip(1).map(|own| own.split_once("Rss:").unwrap().1);
    own.map(|rss| rss.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10).sum()
}

#[test]
fn what_was_copied_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tiny/llama/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    (config["intermediate_size"], config["hidden_size"]) = (8192.into(), 256.into());
    let random = Blueprint::random(&config, Some(1), 0).unwrap();
    let tensors = random.tensors().unwrap();
    let new = |info: &TensorInfo| NewTensor { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone() };
    let shard = NewShard::create(&file, &tensors.iter().map(new).collect::<Vec<_>>(), "pt").unwrap();
    tensors.iter().for_each(|info| shard.write(&info.name, 0, &random.tensor(info).unwrap().bytes).unwrap());
    shard.finish().unwrap();
    std::fs::write(dir.path().join("config.json"), random.config().to_string()).unwrap();
    let plan = Plan::new(1, random.geometry.heads, &layout(2, 1)).unwrap();
    let mut model = Blueprint::open(dir.path()).unwrap().load(&plan, 0, &|_, _| ()).unwrap();
    model.read_ahead(u64::MAX, &|_, _| true).unwrap();
    let before = resident(&file);
    let metal = Metal::new(Arc::new(Emulator::new(Options::default()).unwrap()));
    model.keep(&metal, &|_, _| true).unwrap();
    let (after, down) = (resident(&file), 8192 * 256 * 2);
    println!("{before} bytes of the file before, {after} after");
    assert!(before > down && after + down - 4 * PAGE <= before, "{before} {after}");
    // what is there already is not read again, nor what was copied
    model.read_ahead(u64::MAX, &|_, _| true).unwrap();
    assert!(resident(&file) <= after + 4 * PAGE);
}
