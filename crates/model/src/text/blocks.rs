//! Which block belongs to whom: a fixed number of key-value blocks, handed out, shared and taken back. Pure bookkeeping,
//! without tensors, so that a model without weights counts its memory by the same rules.
//!
//! A block that holds a full stretch of a prompt can be published under a key that says everything its contents depend
//! on. It stays findable after its last user is gone, until its memory is wanted: least recently used goes first. Sharing
//! copies nothing, and nobody writes to a shared block, because a sequence only writes behind what it shares. A beginning
//! that ends with an image, inside a block, is shared as well ([`parts`]): that block's part is copied.
//!
//! Layers come in groups of equal size, and a block is of one group: the first group sees everything, the others see only
//! a window and give back what has left it. So a long sequence costs most layers no more than their window.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use medfleet_core::Digest;

use crate::error::CacheError;

pub(crate) mod parts;

/// What the keys and values of a full block depend on: every token up to its end, and every image that touches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey([u8; 32]);

/// An image in a sequence: the position of its first token, and the digest of what the vision tower made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedImage {
    /// Position of its first token.
    pub first: usize,
    /// Digest of its tokens' values.
    pub digest: Digest,
}

/// A prompt as the cache sees it.
#[derive(Debug, Clone, Copy)]
pub struct Cacheable<'a> {
    /// Who may share: sequences of different scopes never do, whatever they hold.
    pub scope: Digest,
    pub tokens: &'a [u32],
    /// Its images, in order.
    pub images: &'a [PlacedImage],
    /// Length of an image's run.
    pub tokens_per_image: usize,
}

impl Cacheable<'_> {
    /// A key for each full block of `block_tokens` positions, in order. Each covers all blocks before it.
    pub fn keys(&self, block_tokens: usize) -> Vec<BlockKey> {
        let mut parent = BlockKey(*self.scope.as_bytes());
        let blocks = self.tokens.len() / block_tokens.max(1);
        (0..blocks)
            .map(|index| {
                let hasher = blake3::Hasher::new_derive_key("medfleet key-value block v1");
                let range = index * block_tokens..(index + 1) * block_tokens;
                parent = self.key(hasher, parent, range);
                parent
            })
            .collect()
    }

    /// What positions of one block depend on, given the key of the block before.
    fn key(&self, mut hasher: blake3::Hasher, parent: BlockKey, range: Range<usize>) -> BlockKey {
        hasher.update(&parent.0);
        for token in &self.tokens[range.clone()] {
            hasher.update(&token.to_le_bytes());
        }
        // An image sees itself whole: a block with any part of it depends on all of it.
        for image in self.images {
            let run = image.first..image.first + self.tokens_per_image;
            if run.start < range.end && range.start < run.end {
                hasher.update(&(image.first as u64).to_le_bytes());
                hasher.update(image.digest.as_bytes());
            }
        }
        BlockKey(*hasher.finalize().as_bytes())
    }
}

/// Positions per block, and the groups of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    /// Positions per block; at least 1.
    pub block_tokens: usize,
    /// Groups that see only a window, besides the one that sees everything.
    pub local_groups: usize,
    /// Positions that those see, own included.
    pub window: usize,
    /// Longest stretch that is computed at once, in tokens: so far do local groups reach beyond their window.
    pub stretch_tokens: usize,
}

impl BlockLayout {
    /// One group that sees everything.
    pub const fn global(block_tokens: usize) -> Self {
        Self {
            block_tokens,
            local_groups: 0,
            window: 1,
            stretch_tokens: 1,
        }
    }

    pub const fn groups(&self) -> usize {
        1 + self.local_groups
    }

    /// Most blocks that a sequence of `positions` holds at a time.
    pub fn blocks_of(&self, positions: usize) -> usize {
        self.blocks_from(0, positions)
    }

    /// As [`BlockLayout::blocks_of`], of a sequence that is computed as far as `cached`: what is left may be less than the
    /// longest stretch.
    fn blocks_from(&self, cached: usize, positions: usize) -> usize {
        let whole = positions.div_ceil(self.block_tokens.max(1));
        let stretch = self.stretch_tokens.min(positions.saturating_sub(cached));
        // Window and stretch, from the middle of a block to the middle of another.
        let reach = (self.window.max(1) - 1).saturating_add(stretch);
        let local = reach.div_ceil(self.block_tokens.max(1)).saturating_add(1);
        whole + self.local_groups * whole.min(local)
    }

    /// The first position that a local group still needs once `cached` positions are computed.
    const fn first_needed(&self, cached: usize) -> usize {
        (cached + 1).saturating_sub(self.window)
    }
}

/// The blocks of one sequence, in order of position, group by group. Not copyable: give it back with [`Blocks::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    groups: Vec<Run>,
}

/// The blocks of one group: those at the front may have been given back.
#[derive(Debug, Default)]
struct Run {
    dropped: usize,
    blocks: Vec<u32>,
}

impl Run {
    /// Blocks up to here, dropped ones included.
    const fn end(&self) -> usize {
        self.dropped + self.blocks.len()
    }

    fn get(&self, index: usize) -> Option<u32> {
        let index = index.checked_sub(self.dropped)?;
        self.blocks.get(index).copied()
    }
}

impl BlockTable {
    /// Block numbers of the group that sees everything, in order of position.
    pub fn blocks(&self) -> &[u32] {
        self.groups.first().map_or(&[], |run| &run.blocks)
    }

    /// Numbers of all blocks held, group by group; no two groups share one.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.groups
            .iter()
            .flat_map(|run| run.blocks.iter().copied())
    }

    /// Blocks held, of all groups.
    pub fn held(&self) -> usize {
        self.groups.iter().map(|run| run.blocks.len()).sum()
    }

    /// The block of a group that holds a position of `index × block_tokens` on; none where it was given back.
    pub(super) fn block(&self, group: usize, index: usize) -> Option<u32> {
        self.groups.get(group)?.get(index)
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    /// By which it is found, with its group: as a whole, and as parts of it.
    keys: Vec<(BlockKey, usize)>,
    /// When its last user left: its place in `idle`.
    idle_since: u64,
}

/// All blocks of a pool.
#[derive(Debug, Clone)]
pub struct Blocks {
    layout: BlockLayout,
    blocks: Vec<Block>,
    /// Blocks that hold nothing.
    free: Vec<u32>,
    /// Blocks that nobody uses and that are still findable, by when their last user left.
    idle: BTreeMap<u64, u32>,
    /// By key and group.
    index: HashMap<(BlockKey, usize), u32>,
    clock: u64,
}

impl Blocks {
    /// `total` blocks, all free.
    pub fn new(total: u32, layout: BlockLayout) -> Self {
        Self {
            layout: BlockLayout {
                block_tokens: layout.block_tokens.max(1),
                window: layout.window.max(1),
                ..layout
            },
            blocks: vec![Block::default(); total as usize],
            // Taken from the end: low numbers first.
            free: (0..total).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
        }
    }

    /// Says that no stretch longer than this is ever computed at once.
    pub fn limit_stretches(&mut self, tokens: usize) {
        self.layout.stretch_tokens = tokens.max(1);
    }

    /// Positions per block, and the groups.
    pub const fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// Positions per block.
    pub const fn block_tokens(&self) -> usize {
        self.layout.block_tokens
    }

    pub const fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be handed out: those that hold nothing, and those that are only kept to be found.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that a table, computed as far as `cached`, lacks to reach `positions`, given what it gives back on the way.
    pub fn missing(&self, table: &BlockTable, cached: usize, positions: usize) -> usize {
        let needed = self.layout.blocks_from(cached, positions);
        needed.saturating_sub(table.held())
    }

    /// Lets every group of `table` reach `positions`, taking blocks as needed: all or none.
    ///
    /// # Errors
    /// [`CacheError::OutOfBlocks`]; the table holds what it held then.
    pub fn reserve(&mut self, table: &mut BlockTable, positions: usize) -> Result<(), CacheError> {
        table.groups.resize_with(self.layout.groups(), Run::default);
        let end = positions.div_ceil(self.layout.block_tokens);
        let runs = table.groups.iter();
        let needed = runs.map(|run| end.saturating_sub(run.end())).sum();
        if needed > self.available() {
            return Err(CacheError::OutOfBlocks {
                needed,
                free: self.available(),
                total: self.total(),
            });
        }
        for run in &mut table.groups {
            while run.end() < end
                && let Some(block) = self.take()
            {
                self.blocks[block as usize].users = 1;
                run.blocks.push(block);
            }
        }
        Ok(())
    }

    /// A free block, or the one that was left longest ago, which is forgotten.
    fn take(&mut self) -> Option<u32> {
        if let Some(block) = self.free.pop() {
            return Some(block);
        }
        let (_, block) = self.idle.pop_first()?;
        self.hide(block);
        Some(block)
    }

    fn hide(&mut self, block: u32) {
        for key in std::mem::take(&mut self.blocks[block as usize].keys) {
            self.index.remove(&key);
        }
    }

    /// Makes a table's blocks unfindable, those that it shares included, and what else is found by these keys: what local groups
    /// have given back of it would be found again as soon as somebody else has read its beginning.
    pub fn forget(&mut self, table: &BlockTable, keys: impl Iterator<Item = BlockKey>) {
        for number in table.groups.iter().flat_map(|run| &run.blocks) {
            self.hide(*number);
        }
        for key in keys {
            for group in 0..self.layout.groups() {
                if let Some(number) = self.find(key, group) {
                    self.hide(number);
                }
            }
        }
    }

    /// Holds the first `end` blocks, which [`Blocks::known`] has found.
    fn hold_whole(&mut self, keys: &[BlockKey], end: usize) -> BlockTable {
        if end == 0 {
            return BlockTable::default();
        }
        self.hold(keys, end, self.first_seen(end * self.layout.block_tokens))
    }

    /// How many whole blocks [`Blocks::share`] finds.
    fn known(&self, keys: &[BlockKey], may_end: impl Fn(usize) -> bool) -> usize {
        let block_tokens = self.layout.block_tokens;
        let mut end = self.run_of(keys);
        while end > 0 {
            let first = self.first_seen(end * block_tokens);
            if may_end(end * block_tokens) && self.locals_have(&keys[..end], first) {
                break;
            }
            end -= 1;
        }
        end
    }

    fn find(&self, key: BlockKey, group: usize) -> Option<u32> {
        self.index.get(&(key, group)).copied()
    }

    /// The first block that a local group needs once so many positions are computed.
    const fn first_seen(&self, cached: usize) -> usize {
        self.layout.first_needed(cached) / self.layout.block_tokens
    }

    /// How many of the first blocks the group that sees everything has.
    fn run_of(&self, keys: &[BlockKey]) -> usize {
        keys.iter()
            .take_while(|key| self.find(**key, 0).is_some())
            .count()
    }

    /// Whether every local group has the blocks of these keys from `first` on.
    fn locals_have(&self, keys: &[BlockKey], first: usize) -> bool {
        let mut locals = 1..self.layout.groups();
        let needed = keys.get(first..).unwrap_or_default();
        locals.all(|group| needed.iter().all(|key| self.find(*key, group).is_some()))
    }

    /// Holds the first `end` blocks, of local groups those from `first` on. All are known.
    fn hold(&mut self, keys: &[BlockKey], end: usize, first: usize) -> BlockTable {
        let groups = (0..self.layout.groups()).map(|group| {
            let dropped = if group == 0 { 0 } else { first.min(end) };
            let blocks = (dropped..end).filter_map(|index| self.find(keys[index], group));
            Run {
                dropped,
                blocks: blocks.collect(),
            }
        });
        let groups: Vec<Run> = groups.collect();
        for number in groups.iter().flat_map(|run| &run.blocks) {
            self.join(*number);
        }
        BlockTable { groups }
    }

    /// One user more.
    fn join(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        if block.users == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.users += 1;
    }

    /// Makes block `index` of a table findable, or a part of it, in every group that holds it; it is full and will not be
    /// written again. Where the key is known already, the block that has it stays the one that is found.
    pub fn publish(&mut self, table: &BlockTable, index: usize, key: BlockKey) {
        for (group, run) in table.groups.iter().enumerate() {
            let Some(number) = run.get(index) else {
                continue;
            };
            if let Entry::Vacant(place) = self.index.entry((key, group)) {
                place.insert(number);
                self.blocks[number as usize].keys.push((key, group));
            }
        }
    }

    /// Gives back what no local group needs any more, once `cached` positions are computed.
    pub fn trim(&mut self, table: &mut BlockTable, cached: usize) {
        let first = self.first_seen(cached);
        for run in table.groups.iter_mut().skip(1) {
            let count = first.saturating_sub(run.dropped).min(run.blocks.len());
            run.dropped += count;
            for number in run.blocks.drain(..count) {
                self.leave(number);
            }
        }
    }

    /// Gives back, in every group, the blocks that lie wholly behind `positions`: what was taken for tokens that were then not
    /// written. Nothing of a prompt is among them, so none of them was ever findable.
    pub fn shrink(&mut self, table: &mut BlockTable, positions: usize) {
        let end = positions.div_ceil(self.layout.block_tokens);
        for run in &mut table.groups {
            let kept = end.saturating_sub(run.dropped).min(run.blocks.len());
            for number in run.blocks.drain(kept..).rev() {
                self.leave(number);
            }
        }
    }

    /// Takes a table's blocks back. Of one sequence the end is forgotten before the beginning, which more can share.
    pub fn release(&mut self, table: BlockTable) {
        let end = table.groups.iter().map(Run::end).max().unwrap_or(0);
        for index in (0..end).rev() {
            for run in &table.groups {
                if let Some(number) = run.get(index) {
                    self.leave(number);
                }
            }
        }
    }

    /// One user less.
    fn leave(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        block.users = block.users.saturating_sub(1);
        if block.users > 0 {
            return;
        }
        if !block.keys.is_empty() {
            self.clock += 1;
            block.idle_since = self.clock;
            self.idle.insert(self.clock, number);
        } else {
            self.free.push(number);
        }
    }

    /// Positions that a table reaches when the next one is `start`; none where it names a block that is not of this pool,
    /// or has given back what that position sees.
    pub(super) fn capacity(&self, table: &BlockTable, start: usize) -> usize {
        let block_tokens = self.layout.block_tokens;
        let first = self.layout.first_needed(start) / block_tokens;
        let good = |(group, run): (usize, &Run)| {
            let needed = if group == 0 { 0 } else { first };
            let known = |block: &u32| (*block as usize) < self.blocks.len();
            run.dropped <= needed && run.blocks.iter().all(known)
        };
        if table.groups.len() != self.layout.groups() || !table.groups.iter().enumerate().all(good)
        {
            return 0;
        }
        let ends = table.groups.iter().map(Run::end);
        ends.min().unwrap_or(0) * block_tokens
    }
}

#[cfg(test)]
mod tests;
