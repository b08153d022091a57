//! Handing out, sharing, giving back: the bookkeeping alone.

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

/// Of tokens that count up, without an image.
fn counting(tokens: Range<u32>) -> Vec<BlockKey> {
    keys(&tokens.collect::<Vec<u32>>(), &[])
}

fn image(first: usize, shade: u8) -> PlacedImage {
    PlacedImage {
        first,
        digest: Digest::new([shade; 32]),
    }
}

fn share(blocks: &mut Blocks, keys: &[BlockKey], may_end: impl Fn(usize) -> bool) -> BlockTable {
    let (table, _, copies) = blocks.share((keys, &[]), may_end);
    assert!(copies.is_empty(), "there are no parts");
    table
}

/// Reads a prompt a block at a time. Gives the table, and which block of the second group each stretch was written to.
fn read(blocks: &mut Blocks, keys: &[BlockKey]) -> (BlockTable, Vec<Option<u32>>) {
    let (mut table, mut written) = (BlockTable::default(), Vec::new());
    for (index, key) in keys.iter().enumerate() {
        let end = (index + 1) * 4;
        blocks.reserve(&mut table, end).expect("there is room");
        written.push(table.block(1, index));
        blocks.publish(&table, index, *key);
        blocks.trim(&mut table, end);
    }
    (table, written)
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
    let keys = counting(0..12);
    let (first, _) = read(&mut blocks, &keys);
    let second = share(&mut blocks, &keys, |end| end < 12);
    assert_eq!(second.blocks(), &first.blocks()[..2], "cut where allowed");
    assert_eq!(blocks.available(), 1);
    blocks.release(first);
    assert_eq!(blocks.available(), 2, "two are still used");
    blocks.release(second);
    assert_eq!(blocks.available(), 4);
    let third = share(&mut blocks, &keys, |_| true);
    assert_eq!(third.blocks().len(), 3, "still known");
    blocks.release(third);
}

#[test]
fn the_least_recently_used_goes_first_and_the_end_before_the_beginning() {
    let mut blocks = Blocks::new(4, BlockLayout::global(4));
    let (old, new) = (counting(0..8), counting(100..108));
    for keys in [&old, &new] {
        let (table, _) = read(&mut blocks, keys);
        blocks.release(table);
    }
    let known = |blocks: &mut Blocks, keys: &[BlockKey]| {
        let table = share(blocks, keys, |_| true);
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
    let keys = counting(0..20);
    let (first, _) = read(&mut blocks, &keys);
    // Five global ones and the last of each local group are held; what was given back can still be found.
    assert_eq!((first.held(), blocks.available()), (7, 11));
    let shared = |blocks: &mut Blocks, most: usize| {
        let table = share(blocks, &keys, |end| end <= most);
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

#[test]
fn what_was_taken_for_nothing_is_given_back_in_every_group() {
    let mut blocks = windowed(20);
    let mut table = BlockTable::default();
    for cached in (0..20).step_by(4) {
        blocks.reserve(&mut table, cached + 4).unwrap();
        blocks.trim(&mut table, cached + 4);
    }
    // Position 20 sees 16 on: five blocks of one group, one of each other.
    let before = (table.held(), blocks.available());
    assert_eq!(before, (7, 13));
    blocks.reserve(&mut table, 29).unwrap();
    assert_eq!((table.held(), blocks.available()), (16, 4));
    // 22 positions came of it: the block that holds the last two stays.
    blocks.shrink(&mut table, 22);
    assert_eq!((table.held(), blocks.available()), (10, 10));
    assert_eq!(blocks.capacity(&table, 22), 24);
    blocks.shrink(&mut table, 20);
    assert_eq!((table.held(), blocks.available()), before);
    blocks.shrink(&mut table, 40);
    assert_eq!((table.held(), blocks.available()), before, "takes nothing");
    // A window that has left the block behind: only the first group still has it.
    blocks.shrink(&mut table, 8);
    assert_eq!(table.held(), 2);
    blocks.release(table);
    assert_eq!(blocks.available(), 20);
}

#[test]
fn what_is_forgotten_is_found_no_more_and_its_memory_is_free() {
    let mut blocks = Blocks::new(4, BlockLayout::global(4));
    let keys = counting(0..8);
    let (table, _) = read(&mut blocks, &keys);
    let shared = share(&mut blocks, &keys, |_| true);
    assert_eq!(shared.blocks().len(), 2);
    blocks.forget(&table, keys.iter().copied());
    blocks.release(table);
    blocks.release(shared);
    assert_eq!(blocks.available(), 4);
    let shared = share(&mut blocks, &keys, |_| true);
    assert!(shared.blocks().is_empty());
}

#[test]
fn what_local_groups_have_given_back_is_forgotten_with_its_beginning() {
    let mut blocks = windowed(18);
    let keys = counting(0..20);
    let (wrong, _) = read(&mut blocks, &keys);
    blocks.forget(&wrong, keys.iter().copied());
    blocks.release(wrong);
    let (right, written) = read(&mut blocks, &keys);
    // Of the local groups, position 12 needs the third block alone.
    let shared = share(&mut blocks, &keys, |end| end <= 12);
    assert_eq!(shared.blocks().len(), 3);
    assert_eq!(shared.block(1, 2), written[2]);
    blocks.release(right);
    blocks.release(shared);
    assert_eq!(blocks.available(), 18);
}
