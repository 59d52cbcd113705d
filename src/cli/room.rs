//! How large the KV cache of many sequences may be: as large as they could ever need, or as memory has room for.

use super::load::{ModelArgs, Opened};
use super::ui;
use crate::backend::PAGE;
use crate::cluster::facts::free_memory;
use crate::engine::pages;
use crate::error::Result;
use crate::partition::Layout;

/// Settles how many tokens the cache has room for, where several sequences share it and nothing is said.
pub(super) fn settle(model: &mut ModelArgs, opened: &Opened, layout: &Layout, ranks_here: usize) -> Result<()> {
    if model.sequences < 2 || model.cache_tokens.is_some() {
        return Ok(());
    }
    let room = opened.room(model)?;
    let least = pages(room.context, 1)?;
    let plan = opened.blueprint.plan(layout, least, room.states())?;
    let bytes = |pages: usize| -> Result<Vec<u64>> {
        let sizes = opened.blueprint.sizes(&plan, pages, room.states())?;
        Ok(sizes.iter().enumerate().map(|(rank, sizes)| plan.bytes(rank, sizes)).collect())
    };
    let (without, with) = (bytes(0)?, bytes(1)?);
    let mut most = room.pages as u64;
    let mut bound = |memory: u64, without: u64, page: u64| {
        most = most.min(memory.saturating_sub(without).checked_div(page).unwrap_or(u64::MAX));
    };
    for (rank, memory) in layout.memory.iter().enumerate() {
        bound(*memory, without[rank], with[rank] - without[rank]);
    }
    if let Some(free) = free_memory() {
        // a tenth is left for everything else
        let here = |bytes: &[u64]| bytes.iter().take(ranks_here).sum::<u64>();
        bound(free / 10 * 9, here(&without), here(&with) - here(&without));
    }
    let most = (most as usize).max(least);
    if most < room.pages && !model.quiet {
        let (tokens, all) = (most * PAGE, room.pages * PAGE);
        ui::whisper(format_args!(
            "memory has room for {tokens} tokens of KV cache, not the {all} of {} sequences of {}: some may have to wait",
            room.sequences, room.context
        ));
    }
    model.cache_tokens = Some(most * PAGE);
    Ok(())
}
