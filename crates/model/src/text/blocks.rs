//! Which block belongs to whom: a fixed number of key-value blocks, handed out, shared and taken back. Pure bookkeeping,
//! without tensors, so that a model without weights counts its memory by the same rules.
//!
//! A block that holds a full stretch of a prompt can be published under a key that says everything its contents depend
//! on. It stays findable after its last user is gone, until its memory is wanted: least recently used goes first. Sharing
//! copies nothing, and nobody writes to a shared block, because a sequence only writes behind what it shares.

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

/// The blocks of one sequence, in order of position. Not copyable: give it back with [`Blocks::release`].
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(super) blocks: Vec<u32>,
}

impl BlockTable {
    /// Block numbers, in order of position.
    #[must_use]
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

#[derive(Debug, Clone, Default)]
struct Block {
    users: u32,
    key: Option<BlockKey>,
    /// When its last user left: its place in `idle`.
    idle_since: u64,
}

/// All blocks of a pool.
#[derive(Debug, Clone)]
pub struct Blocks {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Blocks that hold nothing.
    free: Vec<u32>,
    /// Blocks that nobody uses and that are still findable, by when their last user left.
    idle: BTreeMap<u64, u32>,
    index: HashMap<BlockKey, u32>,
    clock: u64,
}

impl Blocks {
    /// `total` blocks of `block_tokens` positions, all free.
    #[must_use]
    pub fn new(total: u32, block_tokens: usize) -> Self {
        Self {
            block_tokens: block_tokens.max(1),
            blocks: vec![Block::default(); total as usize],
            // Taken from the end: low numbers first.
            free: (0..total).rev().collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            clock: 0,
        }
    }

    /// Positions per block.
    #[must_use]
    pub const fn block_tokens(&self) -> usize {
        self.block_tokens
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

    /// Lets `table` reach `positions`, taking blocks as needed: all or none.
    ///
    /// # Errors
    /// [`CacheError::OutOfBlocks`]; the table is unchanged then.
    pub fn reserve(&mut self, table: &mut BlockTable, positions: usize) -> Result<(), CacheError> {
        let held = table.blocks.len();
        let needed = positions.div_ceil(self.block_tokens).saturating_sub(held);
        if needed > self.available() {
            return Err(CacheError::OutOfBlocks {
                needed,
                free: self.available(),
                total: self.total(),
            });
        }
        for _ in 0..needed {
            let Some(block) = self.take() else {
                break;
            };
            self.blocks[block as usize].users = 1;
            table.blocks.push(block);
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

    /// A table of the longest known run of `keys` that ends where `may_end` allows, given the number of positions.
    pub fn share(&mut self, keys: &[BlockKey], may_end: impl Fn(usize) -> bool) -> BlockTable {
        let known = keys.iter().map_while(|key| self.index.get(key).copied());
        let mut blocks: Vec<u32> = known.collect();
        while !blocks.is_empty() && !may_end(blocks.len() * self.block_tokens) {
            blocks.pop();
        }
        for number in &blocks {
            let block = &mut self.blocks[*number as usize];
            if block.users == 0 {
                self.idle.remove(&block.idle_since);
            }
            block.users += 1;
        }
        BlockTable { blocks }
    }

    /// Makes block `index` of a table findable; it is full and will not be written again.
    /// Where the key is known already, the block that has it stays the one that is found.
    pub fn publish(&mut self, table: &BlockTable, index: usize, key: BlockKey) {
        let Some(number) = table.blocks.get(index).copied() else {
            return;
        };
        let block = &mut self.blocks[number as usize];
        if block.key.is_none() && !self.index.contains_key(&key) {
            block.key = Some(key);
            self.index.insert(key, number);
        }
    }

    /// Takes a table's blocks back. Of one sequence the end is forgotten before the beginning, which more can share.
    pub fn release(&mut self, table: BlockTable) {
        for number in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[number as usize];
            block.users = block.users.saturating_sub(1);
            if block.users > 0 {
                continue;
            }
            if block.key.is_some() {
                self.clock += 1;
                block.idle_since = self.clock;
                self.idle.insert(self.clock, number);
            } else {
                self.free.push(number);
            }
        }
    }

    /// Positions a table reaches; none where it names a block that is not of this pool.
    pub(super) fn capacity(&self, table: &BlockTable) -> usize {
        let known = |block: &u32| (*block as usize) < self.blocks.len();
        if table.blocks.iter().all(known) {
            table.blocks.len() * self.block_tokens
        } else {
            0
        }
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
        let mut blocks = Blocks::new(4, 4);
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
        let mut blocks = Blocks::new(4, 4);
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
}
