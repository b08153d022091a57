//! Whether a request can ever fit, with the arithmetic for whoever asked too much; and whether it fits now, beside others.

use std::collections::HashSet;

use medfleet_core::Class;
use medfleet_model::BlockTable;

use super::taken::Taken;
use crate::backend::{DecodeBackend, Description, EngineError, KvMemory, PromptSize};

/// Tokens around an image, not fewer than any prompt has: what marks its begin and end, breaks, the number of a slice.
const AROUND_IMAGE: u64 = 12;
/// Tokens of a prompt's words, more than any task's own have.
const WORDS: u64 = 1024;

/// Tokens of a prompt with so many images and a text, from above: before there is a prompt.
pub fn prompt_tokens(images: u32, tokens_per_image: u32, text: u32) -> u64 {
    u64::from(images) * (u64::from(tokens_per_image) + AROUND_IMAGE) + WORDS + u64::from(text)
}

/// The most images, of this many, that a prompt may have to be written about alone, where it is memory that holds no more: neither
/// where all of them fit, nor where it is the context that ends before.
pub(super) fn images_held(
    kv: &KvMemory,
    description: &Description,
    images: u32,
    text: u32,
) -> Option<u32> {
    let most = |fits: &dyn Fn(u64) -> bool| {
        let tokens = |images: u32| prompt_tokens(images, description.tokens_per_image, text);
        let mut counts = (1..=images).rev();
        counts.find(|images| fits(tokens(*images))).unwrap_or(0)
    };
    let context = most(&|tokens| tokens <= u64::from(description.context_tokens_max));
    let held = most(&|tokens| kv.blocks_of(tokens) <= kv.blocks);
    (held < context).then_some(held)
}

/// Looks whether a prompt of this size and a text of so many tokens fit the model's context, and its memory when they are alone.
pub(super) fn fit(
    backend: &dyn DecodeBackend,
    size: PromptSize,
    text: u32,
) -> Result<(), EngineError> {
    let total = u64::from(size.tokens) + u64::from(text);
    let context = backend.description().context_tokens_max;
    let asked = format!(
        "the prompt has {} tokens ({} of images) and the text may have {text}: {total}",
        size.tokens, size.image_tokens
    );
    if total > u64::from(context) {
        let arithmetic = format!("{asked} tokens; the model's context is {context}");
        return Err(EngineError::TooLong { arithmetic });
    }
    let kv = backend.kv();
    let blocks = kv.blocks_of(total);
    if blocks > kv.blocks {
        let bytes = (blocks as u64).saturating_mul(kv.block_bytes);
        let arithmetic = format!(
            "{asked} tokens take {blocks} blocks of {} bytes, {bytes} bytes of KV memory; the budget of {} bytes holds {} blocks",
            kv.block_bytes, kv.budget_bytes, kv.blocks
        );
        return Err(EngineError::TooLong { arithmetic });
    }
    Ok(())
}

/// Whether one that waits finds a place, and its prompt memory, beside the first `stay` of the active ones, were the others
/// suspended. One place more than `sequences_max` is there for STAT: whoever is in it takes none from the others.
pub(super) fn has_room(
    backend: &dyn DecodeBackend,
    next: &Taken,
    active: &[Taken],
    stay: usize,
    sequences_max: usize,
) -> bool {
    let beside = active.get(..stay).unwrap_or(active);
    let is_stat = |taken: &Taken| taken.place().0 == Class::Stat;
    let has_stat = is_stat(next) || beside.first().is_some_and(is_stat);
    let places = sequences_max + usize::from(has_stat);
    let kv = backend.kv();
    let available = if beside.len() == active.len() {
        kv.available
    } else {
        let tables = beside
            .iter()
            .filter_map(|taken| backend.table(taken.sequence));
        kv.blocks.saturating_sub(held(tables))
    };
    let beside_missing = beside
        .iter()
        .map(|taken| backend.blocks_missing(taken.sequence));
    let promised: usize = beside_missing.sum();
    let needed = backend.blocks_missing(next.sequence);
    beside.is_empty() || (beside.len() < places && promised + needed <= available)
}

/// Blocks that these tables hold together, shared ones once.
fn held<'a>(tables: impl Iterator<Item = &'a BlockTable>) -> usize {
    let blocks: HashSet<u32> = tables.flat_map(BlockTable::numbers).collect();
    blocks.len()
}

#[cfg(test)]
mod tests {
    use medfleet_core::Digest;
    use medfleet_model::{BlockLayout, Blocks, Cacheable, Progress};

    use super::*;
    use crate::simulated::{Simulated, SimulatedShape, SimulatedTiming};

    /// A prompt of so many tokens, of which the first 32 are those of every other, read to its end.
    fn read(blocks: &mut Blocks, tokens: u32, salt: u32) -> Progress {
        let tokens: Vec<u32> = (0..tokens)
            .map(|token| if token < 32 { token } else { token + salt })
            .collect();
        let prompt = Cacheable {
            scope: Digest::new([0; 32]),
            tokens: &tokens,
            images: &[],
            tokens_per_image: 4,
        };
        let mut progress = Progress::new(&prompt, blocks.block_tokens());
        let (_, copies) = progress.begin(blocks);
        assert!(copies.is_empty(), "there is no image to end within a block");
        progress
            .reserve(blocks, tokens.len())
            .expect("there is room");
        progress.advance(blocks, tokens.len());
        progress
    }

    /// Reads three prompts, the third of which gives way, with this much of them held by the first two.
    fn check(layout: BlockLayout, expected: usize) {
        let mut blocks = Blocks::new(100, layout);
        let lengths = [(40, 1000), (56, 2000)];
        let stay = lengths.map(|(tokens, salt)| read(&mut blocks, tokens, salt));
        let mut last = read(&mut blocks, 72, 3000);
        let found = held(stay.iter().map(Progress::table));
        last.give_back(&mut blocks);
        let truly = blocks.total() - blocks.available();
        assert_eq!((found, truly), (expected, expected), "{layout:?}");
    }

    #[test]
    fn memory_that_holds_fewer_images_than_the_context_is_told_by_how_many() {
        let model = Simulated::new(SimulatedShape::default(), SimulatedTiming::default());
        // 256 tokens an image, 320 KiB a block of 16.
        let check = |mebibytes: u64, images: u32, expected: Option<u32>| {
            let backend = model.decoder(mebibytes << 20);
            let found = images_held(&backend.kv(), backend.description(), images, 1024);
            assert_eq!(found, expected, "{mebibytes} MiB, {images} images");
        };
        check(2048, 128, None);
        check(1024, 128, None);
        // 3276 blocks, 52,416 tokens, of which 2048 are words and text.
        check(1024, 256, Some(187));
        check(0, 1, Some(0));
        // The context has 131,072 tokens.
        check(4096, 1000, None);
    }

    #[test]
    fn what_others_leave_is_known_before_they_give_way() {
        // Blocks of 16: the first holds three, the second two of them and two of its own.
        check(BlockLayout::global(16), 5);
        let windowed = |window| BlockLayout {
            local_groups: 2,
            window,
            stretch_tokens: 72,
            ..BlockLayout::global(16)
        };
        // Nothing has left the window: thrice as many.
        check(windowed(64), 15);
        // Groups that see a window share none any more: two each.
        check(windowed(16), 13);
    }
}
