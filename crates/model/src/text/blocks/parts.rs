//! Beginnings that end inside a block, where an image does: the questions that are asked about the images of one study
//! differ from there on, and no cut falls into an image, so without this a block that holds an image's last tokens and a
//! question's first ones would cost the whole image.
//!
//! The block itself goes on differently, so its part is copied into a block of the new sequence's own.

use super::{BlockKey, BlockTable, Blocks, Cacheable};

/// A part of a prompt's block, from its start to the end of an image in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) block: usize,
    /// Positions of it.
    pub(crate) tokens: usize,
    pub(crate) key: BlockKey,
}

/// Positions at the start of a block that another block gets, keys and values of its group's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The group of layers.
    pub group: usize,
    /// The block that has them.
    pub from: u32,
    /// The block that gets them.
    pub to: u32,
    pub tokens: usize,
}

impl Cacheable<'_> {
    /// The parts of its blocks, in order: of each block in which an image ends, up to the last such end. `keys` are those of
    /// its full blocks.
    pub(crate) fn parts(&self, block_tokens: usize, keys: &[BlockKey]) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for image in self.images {
            let end = image.first + self.tokens_per_image;
            let (block, tokens) = (end / block_tokens, end % block_tokens);
            let parent = match block.checked_sub(1) {
                None => Some(BlockKey(*self.scope.as_bytes())),
                Some(before) => keys.get(before).copied(),
            };
            let Some(parent) = parent.filter(|_| tokens > 0 && end <= self.tokens.len()) else {
                continue;
            };
            let hasher = blake3::Hasher::new_derive_key("medfleet key-value part of a block v1");
            let key = self.key(hasher, parent, block * block_tokens..end);
            parts.retain(|part| part.block != block);
            parts.push(Part { block, tokens, key });
        }
        parts
    }
}

impl Blocks {
    /// A table of the longest known beginning that ends where `may_end` allows, given the number of positions: a run of whole
    /// blocks, and on to the end of an image inside a block where that is known. Of local groups only what the next position
    /// sees has to be known. With it how many positions it holds, and what is to be copied before they are used.
    pub(crate) fn share(
        &mut self,
        (keys, parts): (&[BlockKey], &[Part]),
        may_end: impl Fn(usize) -> bool,
    ) -> (BlockTable, usize, Vec<BlockCopy>) {
        let block_tokens = self.layout.block_tokens;
        let known = self.known(keys, &may_end);
        let whole = known * block_tokens;
        let end_of = |part: &Part| part.block * block_tokens + part.tokens;
        let further = parts.iter().rev();
        let mut further = further.filter(|part| end_of(part) > whole && may_end(end_of(part)));
        let found = further.find_map(|part| Some((*part, self.sources(keys, part)?)));
        let Some((part, sources)) = found else {
            return (self.hold_whole(keys, known), whole, Vec::new());
        };
        let first = self.first_seen(end_of(&part));
        let mut table = self.hold(keys, part.block, first);
        // What is copied from must not be what is taken.
        sources.iter().for_each(|number| self.join(*number));
        let room = self.available() >= sources.len();
        let mut copies = Vec::with_capacity(sources.len());
        for (group, from) in sources.iter().enumerate().filter(|_| room) {
            let Some(to) = self.take() else { break };
            self.blocks[to as usize].users = 1;
            table.groups[group].blocks.push(to);
            copies.push(BlockCopy {
                group,
                from: *from,
                to,
                tokens: part.tokens,
            });
        }
        sources.iter().for_each(|number| self.leave(*number));
        if !room {
            self.release(table);
            return (self.hold_whole(keys, known), whole, Vec::new());
        }
        (table, end_of(&part), copies)
    }

    /// The block of each group that has a part, where all that comes before it is known.
    fn sources(&self, keys: &[BlockKey], part: &Part) -> Option<Vec<u32>> {
        let before = keys.get(..part.block)?;
        let end = part.block * self.layout.block_tokens + part.tokens;
        if self.run_of(before) < before.len() || !self.locals_have(before, self.first_seen(end)) {
            return None;
        }
        let groups = 0..self.layout.groups();
        groups.map(|group| self.find(part.key, group)).collect()
    }
}

#[cfg(test)]
mod tests {
    use medfleet_core::Digest;

    use super::super::{BlockLayout, PlacedImage};
    use super::*;

    /// Seven tokens, an image of four at 5, and `after`; blocks of 4: the image ends one position into the third block.
    fn prompt(shade: u8, after: &[u32]) -> (Vec<u32>, [PlacedImage; 1]) {
        let tokens = [1, 2, 3, 4, 5, 0, 0, 0, 0].into_iter();
        let image = PlacedImage {
            first: 5,
            digest: Digest::new([shade; 32]),
        };
        (tokens.chain(after.iter().copied()).collect(), [image])
    }

    fn keyed(shade: u8, after: &[u32]) -> (Vec<BlockKey>, Vec<Part>) {
        let (tokens, images) = prompt(shade, after);
        let cacheable = Cacheable {
            scope: Digest::new([1; 32]),
            tokens: &tokens,
            images: &images,
            tokens_per_image: 4,
        };
        let keys = cacheable.keys(4);
        let parts = cacheable.parts(4, &keys);
        (keys, parts)
    }

    const QUESTIONS: [[u32; 5]; 2] = [[7, 7, 7, 7, 7], [8, 8, 8, 8, 8]];

    #[test]
    fn a_part_depends_on_its_image_and_not_on_what_follows() {
        let (keys, parts) = keyed(1, &QUESTIONS[0]);
        assert_eq!((keys.len(), parts.len()), (3, 1));
        assert_eq!((parts[0].block, parts[0].tokens), (2, 1));
        let (other_keys, other) = keyed(1, &QUESTIONS[1]);
        assert_eq!(parts, other);
        assert_ne!(keys[2], other_keys[2]);
        assert_ne!(parts[0].key, keys[2]);
        assert_ne!(parts, keyed(2, &QUESTIONS[0]).1, "another image");
        // Where it ends with a block there is no part, and where the prompt does, one.
        let (tokens, _) = prompt(1, &[]);
        let at = |first: usize, count: usize| {
            let image = PlacedImage {
                first,
                digest: Digest::new([1; 32]),
            };
            let cacheable = Cacheable {
                scope: Digest::new([1; 32]),
                tokens: &tokens[..count],
                images: &[image],
                tokens_per_image: 4,
            };
            cacheable.parts(4, &cacheable.keys(4)).len()
        };
        assert_eq!((at(4, 9), at(5, 9), at(0, 9), at(1, 9)), (0, 1, 0, 1));
    }

    /// One sequence has read its prompt; blocks of 4, one global group and a local one with a window of 6.
    fn read(total: u32) -> Blocks {
        let layout = BlockLayout {
            block_tokens: 4,
            local_groups: 1,
            window: 6,
            stretch_tokens: 16,
        };
        let mut blocks = Blocks::new(total, layout);
        let (keys, parts) = keyed(1, &QUESTIONS[0]);
        let mut table = BlockTable::default();
        blocks.reserve(&mut table, 14).unwrap();
        for (index, key) in keys.iter().enumerate() {
            blocks.publish(&table, index, *key);
        }
        blocks.publish(&table, 2, parts[0].key);
        blocks.release(table);
        assert_eq!(blocks.available(), total as usize);
        blocks
    }

    fn shared(blocks: &mut Blocks, shade: u8, question: usize) -> (usize, usize, usize) {
        let (keys, parts) = keyed(shade, &QUESTIONS[question]);
        let whole = |end: usize| end < 14 && !(6..9).contains(&end);
        let (table, tokens, copies) = blocks.share((&keys, &parts), whole);
        for copy in &copies {
            assert_ne!(copy.from, copy.to);
            assert_eq!(table.block(copy.group, 2), Some(copy.to));
        }
        let found = (tokens, table.held(), copies.len());
        assert!(tokens == 0 || blocks.capacity(&table, tokens) >= tokens);
        blocks.release(table);
        found
    }

    #[test]
    fn another_question_about_an_image_shares_it_and_the_same_one_all() {
        let mut blocks = read(20);
        // Position 9 sees 4 on: of the local group, one block less.
        assert_eq!(shared(&mut blocks, 1, 1), (9, 5, 2));
        assert_eq!(shared(&mut blocks, 1, 0), (12, 5, 0));
        assert_eq!(shared(&mut blocks, 2, 0), (4, 2, 0), "another image");
        assert_eq!(blocks.available(), 20);
    }

    #[test]
    fn where_there_is_no_block_for_a_copy_whole_ones_are_shared() {
        // Eight blocks held the first prompt, of which the last of each group is free again.
        let mut blocks = read(8);
        assert_eq!(shared(&mut blocks, 1, 1), (9, 5, 2));
        let mut blocks = read(8);
        let mut other = BlockTable::default();
        // Those are taken: all that is left holds the beginning itself.
        blocks.reserve(&mut other, 1).unwrap();
        let before = blocks.available();
        assert_eq!(shared(&mut blocks, 1, 1), (4, 2, 0));
        assert_eq!(blocks.available(), before);
    }

    #[test]
    fn a_part_goes_with_its_block() {
        let mut blocks = read(8);
        let mut other = BlockTable::default();
        // The end is forgotten before the beginning.
        blocks.reserve(&mut other, 8).unwrap();
        let (tokens, _, copies) = shared(&mut blocks, 1, 1);
        assert_eq!((tokens, copies), (4, 0));
        blocks.release(other);
        assert_eq!(blocks.available(), 8);
    }
}
