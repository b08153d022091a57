//! Which block belongs to whom: a fixed number of key-value blocks, handed out, shared and taken back. Pure bookkeeping,
//! without tensors, so that a model without weights counts its memory by the same rules.
//!
//! A block that holds a full stretch of a prompt can be published under a key that says everything its contents depend
//! on. It stays findable after its last user is gone, until its memory is wanted: least recently used goes first. Sharing
//! copies nothing, and nobody writes to a shared block, because a sequence only writes behind what it shares.
//!
//! Layers come in groups of equal size, and a block is of one group: the first group sees everything, the others see only
//! a window and give back what has left it. So a long sequence costs most layers no more than their window.

use std::collections::{BTreeMap, HashMap};

use medfleet_core::Digest;

use crate::error::CacheError;

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
    /// Token ids.
    pub tokens: &'a [u32],
    /// Its images, in order.
    pub images: &'a [PlacedImage],
    /// Length of an image's run.
    pub tokens_per_image: usize,
}

impl Cacheable<'_> {
    /// A key for each full block of `block_tokens` positions, in order. Each covers all blocks before it.
    #[must_use]
    pub fn keys(&self, block_tokens: usize) -> Vec<BlockKey> {
        let mut parent = *self.scope.as_bytes();
        let blocks = self.tokens.chunks_exact(block_tokens.max(1));
        blocks
            .enumerate()
            .map(|(index, tokens)| {
                let mut hasher = blake3::Hasher::new_derive_key("medfleet key-value block v1");
                hasher.update(&parent);
                for token in tokens {
                    hasher.update(&token.to_le_bytes());
                }
                let range = index * block_tokens..(index + 1) * block_tokens;
                // An image sees itself whole: a block with any part of it depends on all of it.
                for image in self.images {
                    let run = image.first..image.first + self.tokens_per_image;
                    if run.start < range.end && range.start < run.end {
                        hasher.update(&(image.first as u64).to_le_bytes());
                        hasher.update(image.digest.as_bytes());
                    }
                }
                parent = *hasher.finalize().as_bytes();
                BlockKey(parent)
            })
            .collect()
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
    #[must_use]
    pub const fn global(block_tokens: usize) -> Self {
        Self {
            block_tokens,
            local_groups: 0,
            window: 1,
            stretch_tokens: 1,
        }
    }

    /// Groups in all.
    #[must_use]
    pub const fn groups(&self) -> usize {
        1 + self.local_groups
    }

    /// Most blocks that a sequence of `positions` holds at a time.
    #[must_use]
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
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        self.groups.first().map_or(&[], |run| &run.blocks)
    }

    /// Blocks held, of all groups.
    #[must_use]
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
    key: Option<(BlockKey, usize)>,
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
    #[must_use]
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
    #[must_use]
    pub const fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// Positions per block.
    #[must_use]
    pub const fn block_tokens(&self) -> usize {
        self.layout.block_tokens
    }

    /// Blocks in all.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be handed out: those that hold nothing, and those that are only kept to be found.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that a table, computed as far as `cached`, lacks to reach `positions`, given what it gives back on the way.
    #[must_use]
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
        if let Some(key) = self.blocks[block as usize].key.take() {
            self.index.remove(&key);
        }
        Some(block)
    }

    /// A table of the longest known run of `keys` that ends where `may_end` allows, given the number of positions. Of local
    /// groups only what the next position sees has to be known.
    pub fn share(&mut self, keys: &[BlockKey], may_end: impl Fn(usize) -> bool) -> BlockTable {
        let block_tokens = self.layout.block_tokens;
        let known = |group: usize, index: usize| self.index.get(&(keys[index], group)).copied();
        let first_of = |end: usize| self.layout.first_needed(end * block_tokens) / block_tokens;
        let whole = (0..keys.len()).take_while(|index| known(0, *index).is_some());
        let mut end = whole.count();
        while end > 0 {
            let mut locals = 1..self.layout.groups();
            let covered = |group| (first_of(end)..end).all(|index| known(group, index).is_some());
            if may_end(end * block_tokens) && locals.all(covered) {
                break;
            }
            end -= 1;
        }
        if end == 0 {
            return BlockTable::default();
        }
        let groups = (0..self.layout.groups()).map(|group| {
            let dropped = if group == 0 { 0 } else { first_of(end) };
            let blocks = (dropped..end).filter_map(|index| known(group, index));
            Run {
                dropped,
                blocks: blocks.collect(),
            }
        });
        let groups: Vec<Run> = groups.collect();
        for number in groups.iter().flat_map(|run| &run.blocks) {
            let block = &mut self.blocks[*number as usize];
            if block.users == 0 {
                self.idle.remove(&block.idle_since);
            }
            block.users += 1;
        }
        BlockTable { groups }
    }

    /// Makes block `index` of a table findable, in every group that holds it; it is full and will not be written again.
    /// Where the key is known already, the block that has it stays the one that is found.
    pub fn publish(&mut self, table: &BlockTable, index: usize, key: BlockKey) {
        for (group, run) in table.groups.iter().enumerate() {
            let Some(number) = run.get(index) else {
                continue;
            };
            let block = &mut self.blocks[number as usize];
            if block.key.is_none() && !self.index.contains_key(&(key, group)) {
                block.key = Some((key, group));
                self.index.insert((key, group), number);
            }
        }
    }

    /// Gives back what no local group needs any more, once `cached` positions are computed.
    pub fn trim(&mut self, table: &mut BlockTable, cached: usize) {
        let first = self.layout.first_needed(cached) / self.layout.block_tokens;
        for run in table.groups.iter_mut().skip(1) {
            let count = first.saturating_sub(run.dropped).min(run.blocks.len());
            run.dropped += count;
            for number in run.blocks.drain(..count) {
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
        if block.key.is_some() {
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
mod tests {
    use super::*;

    const SCOPE: Digest = Digest::new([1; 32]);

    fn keys(tokens: &[u32], images: &[PlacedImage]) -> Vec<BlockKey> {
        keys_in(SCOPE, tokens, images)
    }

    fn keys_in(scope: Digest, tokens: &[u32], images: &[PlacedImage]) -> Vec<BlockKey> {
        let cacheable = Cacheable {
            scope,
            tokens,
            images,
            tokens_per_image: 4,
        };
        cacheable.keys(4)
    }

    fn image(first: usize, shade: u8) -> PlacedImage {
        PlacedImage {
            first,
            digest: Digest::new([shade; 32]),
        }
    }

    #[test]
    fn a_key_says_everything_that_a_block_depends_on() {
        let tokens: Vec<u32> = (0..14).collect();
        let base = keys(&tokens, &[image(6, 1)]);
        assert_eq!(base.len(), 3, "only full blocks have keys");
        let equal = |other: &[BlockKey]| {
            let same = base.iter().zip(other).map(|(a, b)| a == b);
            same.collect::<Vec<_>>()
        };
        // The image lies in the second and third block: both depend on all of it, the first does not.
        assert_eq!(
            equal(&keys(&tokens, &[image(6, 2)])),
            [true, false, false],
            "another image"
        );
        let mut changed = tokens.clone();
        changed[1] = 99;
        assert_eq!(equal(&keys(&changed, &[image(6, 1)])), [false; 3]);
        changed.clone_from(&tokens);
        changed[11] = 99;
        assert_eq!(
            equal(&keys(&changed, &[image(6, 1)])),
            [true, true, false],
            "the last block's own token"
        );
        let scope = Digest::new([2; 32]);
        assert_eq!(
            equal(&keys_in(scope, &tokens, &[image(6, 1)])),
            [false; 3],
            "another scope shares nothing"
        );
    }

    #[test]
    fn what_was_published_is_shared_and_survives_its_user() {
        let mut blocks = Blocks::new(4, BlockLayout::global(4));
        let tokens: Vec<u32> = (0..12).collect();
        let keys = keys(&tokens, &[]);
        let mut first = BlockTable::default();
        blocks.reserve(&mut first, 12).unwrap();
        for (index, key) in keys.iter().enumerate() {
            blocks.publish(&first, index, *key);
        }
        let second = blocks.share(&keys, |end| end < 12);
        assert_eq!(second.blocks(), &first.blocks()[..2], "cut where allowed");
        assert_eq!(blocks.available(), 1);
        blocks.release(first);
        assert_eq!(blocks.available(), 2, "two are still used");
        blocks.release(second);
        assert_eq!(blocks.available(), 4);
        let third = blocks.share(&keys, |_| true);
        assert_eq!(third.blocks().len(), 3, "still known");
        blocks.release(third);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_end_before_the_beginning() {
        let mut blocks = Blocks::new(4, BlockLayout::global(4));
        let of = |from: u32| keys(&(from..from + 8).collect::<Vec<u32>>(), &[]);
        let (old, new) = (of(0), of(100));
        for keys in [&old, &new] {
            let mut table = BlockTable::default();
            blocks.reserve(&mut table, 8).unwrap();
            keys.iter()
                .enumerate()
                .for_each(|(index, key)| blocks.publish(&table, index, *key));
            blocks.release(table);
        }
        let known = |blocks: &mut Blocks, keys: &[BlockKey]| {
            let table = blocks.share(keys, |_| true);
            let length = table.blocks().len();
            blocks.release(table);
            length
        };
        let mut taken = BlockTable::default();
        blocks.reserve(&mut taken, 4).unwrap();
        assert_eq!((known(&mut blocks, &old), known(&mut blocks, &new)), (1, 2));
        // Both were just looked at, the old one first: its beginning goes next.
        blocks.reserve(&mut taken, 8).unwrap();
        assert_eq!((known(&mut blocks, &old), known(&mut blocks, &new)), (0, 2));
        let refused = blocks.reserve(&mut BlockTable::default(), 12);
        let (needed, free, total) = (3, 2, 4);
        assert_eq!(
            refused,
            Err(CacheError::OutOfBlocks {
                needed,
                free,
                total
            })
        );
    }

    /// Blocks of 4, one global group and two local ones with a window of 5.
    fn windowed(total: u32) -> Blocks {
        let layout = BlockLayout {
            block_tokens: 4,
            local_groups: 2,
            window: 5,
            stretch_tokens: 4,
        };
        Blocks::new(total, layout)
    }

    #[test]
    fn local_groups_give_back_what_has_left_their_window() {
        let mut blocks = windowed(20);
        let mut table = BlockTable::default();
        for cached in (0..40).step_by(4) {
            blocks.reserve(&mut table, cached + 4).unwrap();
            assert!(table.held() <= blocks.layout().blocks_of(cached + 4));
            assert_eq!(blocks.capacity(&table, cached), cached + 4);
            blocks.trim(&mut table, cached + 4);
        }
        // Position 40 sees 36 on: the tenth block of each local group, and all ten of the other.
        assert_eq!((table.blocks().len(), table.held()), (10, 12));
        assert_eq!(blocks.available(), 8);
        assert_eq!(table.block(1, 8), None);
        assert!(table.block(1, 9).is_some() && table.block(0, 0).is_some());
        assert_eq!(blocks.capacity(&table, 39), 0, "35 is gone");
        blocks.release(table);
        assert_eq!(blocks.available(), 20);
    }

    #[test]
    fn a_shared_beginning_needs_of_local_groups_only_the_window() {
        let mut blocks = windowed(18);
        let tokens: Vec<u32> = (0..20).collect();
        let keys = keys(&tokens, &[]);
        let mut first = BlockTable::default();
        for (index, key) in keys.iter().enumerate() {
            let end = (index + 1) * 4;
            blocks.reserve(&mut first, end).unwrap();
            blocks.publish(&first, index, *key);
            blocks.trim(&mut first, end);
        }
        // Five global ones and the last of each local group are held; what was given back can still be found.
        assert_eq!((first.held(), blocks.available()), (7, 11));
        let shared = |blocks: &mut Blocks, most: usize| {
            let table = blocks.share(&keys, |end| end <= most);
            let found = (table.blocks().len(), table.held());
            assert_eq!(blocks.capacity(&table, found.0 * 4), found.0 * 4);
            blocks.release(table);
            found
        };
        assert_eq!(shared(&mut blocks, 20), (5, 7));
        assert_eq!(shared(&mut blocks, 12), (3, 5));
        // Memory is wanted: the local blocks that were left are forgotten, and with them every shorter beginning.
        let mut other = BlockTable::default();
        blocks.reserve(&mut other, 12).unwrap();
        assert_eq!(shared(&mut blocks, 20), (5, 7));
        blocks.reserve(&mut other, 13).unwrap_err();
        blocks.release(other);
        let mut other = BlockTable::default();
        blocks.reserve(&mut other, 12).unwrap();
        assert_eq!(shared(&mut blocks, 4), (0, 0));
    }
}
