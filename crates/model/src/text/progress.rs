//! Where one sequence stands: its tokens, how many of them are in the cache, and the blocks it holds.
//!
//! It can lose its blocks at any time and be read again: the tokens are kept, those of the answer included.

use std::ops::Range;

use crate::error::CacheError;
use crate::prompt::stretch;
use crate::text::blocks::parts::{BlockCopy, Part};
use crate::text::blocks::{BlockKey, BlockTable, Blocks, Cacheable, PlacedImage};

/// The progress of one sequence through a pool.
#[derive(Debug)]
pub struct Progress {
    tokens: Vec<u32>,
    images: Vec<PlacedImage>,
    tokens_per_image: usize,
    /// Keys of the prompt's full blocks.
    keys: Vec<BlockKey>,
    /// Parts of them, up to the end of an image.
    parts: Vec<Part>,
    published: usize,
    cached: usize,
    table: BlockTable,
}

impl Progress {
    /// A sequence that has a prompt and no memory yet, for a pool of blocks of `block_tokens`.
    pub fn new(prompt: &Cacheable, block_tokens: usize) -> Self {
        let keys = prompt.keys(block_tokens);
        Self {
            tokens: prompt.tokens.to_vec(),
            images: prompt.images.to_vec(),
            tokens_per_image: prompt.tokens_per_image,
            parts: prompt.parts(block_tokens, &keys),
            keys,
            published: 0,
            cached: 0,
            table: BlockTable::default(),
        }
    }

    /// Takes over what the pool knows of the prompt's beginning: blocks that cut no image and leave at least one token to
    /// read, the last of them up to the end of an image if need be. Returns how many tokens that is, and what has to be
    /// copied before anything else is done with the pool.
    #[must_use = "what is not copied is not there"]
    pub fn begin(&mut self, blocks: &mut Blocks) -> (usize, Vec<BlockCopy>) {
        if self.cached > 0 || !self.table.blocks().is_empty() {
            return (0, Vec::new());
        }
        let (tokens, per_image) = (self.tokens.len(), self.tokens_per_image);
        let images = &self.images;
        let whole = |end: usize| {
            let cut = |image: &PlacedImage| image.first < end && end < image.first + per_image;
            end < tokens && !images.iter().any(cut)
        };
        let known = (self.keys.as_slice(), self.parts.as_slice());
        let (table, cached, copies) = blocks.share(known, whole);
        (self.table, self.cached) = (table, cached);
        self.published = cached / blocks.block_tokens();
        (cached, copies)
    }

    /// Tokens of prompt and answer.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub const fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Tokens whose keys and values are in the cache.
    pub const fn cached(&self) -> usize {
        self.cached
    }

    /// Tokens that are not in the cache; a sequence that only writes has one.
    pub fn left(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Blocks that are missing to hold all tokens and one more, as far as they are held at a time.
    pub fn blocks_missing(&self, blocks: &Blocks) -> usize {
        blocks.missing(&self.table, self.cached, self.tokens.len() + 1)
    }

    /// The next stretch to compute: at most `tokens_max` long unless a single image is longer, and no image is cut.
    pub fn next(&self, tokens_max: usize) -> Range<usize> {
        let firsts = self.images.iter().map(|image| image.first);
        let runs = firsts.map(|first| first..first + self.tokens_per_image);
        stretch(runs, self.tokens.len(), self.cached, tokens_max)
    }

    /// Indices of the images whose run begins in a stretch.
    pub fn images_in(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let placed = self.images.iter().enumerate();
        let range = range.clone();
        placed
            .map(|(index, image)| (index, image.first))
            .filter(move |(_, first)| range.contains(first))
    }

    /// Takes the blocks that positions up to `end` need.
    ///
    /// # Errors
    /// [`CacheError::OutOfBlocks`]; nothing is taken then.
    pub fn reserve(&mut self, blocks: &mut Blocks, end: usize) -> Result<(), CacheError> {
        blocks.reserve(&mut self.table, end)
    }

    /// Positions up to `end` are in the cache now; full blocks of the prompt can be found by others from here on, and what
    /// local layers see no more is given back.
    pub fn advance(&mut self, blocks: &mut Blocks, end: usize) {
        self.cached = end.min(self.tokens.len());
        while let Some(key) = self.keys.get(self.published)
            && (self.published + 1) * blocks.block_tokens() <= self.cached
        {
            blocks.publish(&self.table, self.published, *key);
            let of_block = self
                .parts
                .iter()
                .filter(|part| part.block == self.published);
            of_block.for_each(|part| blocks.publish(&self.table, part.block, part.key));
            self.published += 1;
        }
        blocks.trim(&mut self.table, self.cached);
    }

    /// Gives back the blocks that were taken for tokens beyond those in the cache.
    pub fn shrink(&mut self, blocks: &mut Blocks) {
        blocks.shrink(&mut self.table, self.cached);
    }

    /// Nobody finds what was computed of it any more, or what it took over from others: it is of no use.
    pub fn forget(&self, blocks: &mut Blocks) {
        let whole = self.keys.iter().take(self.published).copied();
        // Of the block in which it goes on by itself, a part may have been copied.
        let parts = self.parts.iter();
        let parts = parts.filter(|part| part.block <= self.published);
        blocks.forget(&self.table, whole.chain(parts.map(|part| part.key)));
    }

    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Gives all blocks back; the sequence can begin again.
    pub fn give_back(&mut self, blocks: &mut Blocks) {
        blocks.release(std::mem::take(&mut self.table));
        (self.cached, self.published) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::Digest;

    use super::*;
    use crate::text::blocks::BlockLayout;

    /// 20 tokens with an image of 4 at `first`; blocks of 4.
    fn sequence(first: usize) -> Progress {
        let tokens: Vec<u32> = (0..20).collect();
        let images = [PlacedImage {
            first,
            digest: Digest::new([7; 32]),
        }];
        let prompt = Cacheable {
            scope: Digest::new([0; 32]),
            tokens: &tokens,
            images: &images,
            tokens_per_image: 4,
        };
        Progress::new(&prompt, 4)
    }

    fn read_all(sequence: &mut Progress, blocks: &mut Blocks) {
        while sequence.left() > 0 {
            let range = sequence.next(3);
            sequence.reserve(blocks, range.end).unwrap();
            sequence.advance(blocks, range.end);
        }
    }

    fn check(first: usize, expected: usize) {
        let mut blocks = Blocks::new(32, BlockLayout::global(4));
        let mut one = sequence(first);
        assert_eq!(one.begin(&mut blocks).0, 0, "nothing is known yet");
        read_all(&mut one, &mut blocks);
        let mut two = sequence(first);
        assert_eq!(two.begin(&mut blocks).0, expected, "image at {first}");
        let shared = expected / 4;
        let (of_one, of_two) = (one.table().blocks(), two.table().blocks());
        assert_eq!(of_two[..shared], of_one[..shared]);
        // A block of its own holds the end of an image that lies inside one.
        assert_eq!(of_two.len(), expected.div_ceil(4));
        assert!(of_two[shared..].iter().all(|block| !of_one.contains(block)));
    }

    #[test]
    fn a_prefix_is_taken_over_without_cutting_an_image_and_one_token_is_left() {
        // All five blocks are full; the last token must be read for its logits.
        check(0, 16);
        check(5, 16);
        // An image across positions 14..18: the block edge at 16 lies inside it, and it ends inside the next block.
        check(14, 18);
        check(16, 16);
    }

    #[test]
    fn what_was_copied_of_another_is_forgotten_too() {
        let mut blocks = Blocks::new(32, BlockLayout::global(4));
        let mut one = sequence(14);
        read_all(&mut one, &mut blocks);
        let mut two = sequence(14);
        assert_eq!(two.begin(&mut blocks).0, 18, "two positions were copied");
        two.forget(&mut blocks);
        let mut again = sequence(14);
        assert_eq!(again.begin(&mut blocks).0, 0);
        read_all(&mut again, &mut blocks);
        let (tokens, copies) = sequence(14).begin(&mut blocks);
        assert_eq!((tokens, copies.len()), (18, 1));
        assert_eq!(copies[0].from, again.table().blocks()[4]);
    }

    #[test]
    fn what_is_given_back_is_read_again_with_its_answer() {
        let mut blocks = Blocks::new(8, BlockLayout::global(4));
        let mut one = sequence(5);
        read_all(&mut one, &mut blocks);
        one.push(77);
        one.give_back(&mut blocks);
        assert_eq!((one.cached(), one.left(), blocks.available()), (0, 21, 8));
        assert_eq!(one.blocks_missing(&blocks), 6);
        // Its own prompt is still known.
        assert_eq!(one.begin(&mut blocks).0, 20);
        assert_eq!((one.next(8), one.tokens()[20]), (20..21, 77));
    }

    #[test]
    fn stretches_never_cut_an_image() {
        let mut blocks = Blocks::new(8, BlockLayout::global(4));
        let mut one = sequence(5);
        let mut ranges = Vec::new();
        while one.left() > 0 {
            let range = one.next(3);
            one.reserve(&mut blocks, range.end).unwrap();
            one.advance(&mut blocks, range.end);
            ranges.push((range.clone(), one.images_in(&range).count()));
        }
        let expected = [
            (0..3, 0),
            (3..5, 0),
            (5..9, 1),
            (9..12, 0),
            (12..15, 0),
            (15..18, 0),
            (18..20, 0),
        ];
        assert_eq!(ranges, expected);
    }
}
