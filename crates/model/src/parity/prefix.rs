//! What was read for another request is as good as read again: sharing the beginning of a prompt, images included,
//! changes no token and no logit.

use medfleet_core::Digest;

use super::fixtures::{CASES, Case, Fixtures, tiny};
use super::schedules::{pool, whole};
use super::{TOLERANCE, difference};
use crate::{
    Cacheable, Chunk, ImageSpan, KvOptions, KvPool, Model, PlacedImage, Progress, Prompt, Want,
};

/// Positions of a pool that holds two sequences of every case.
const POSITIONS: usize = 1200;

/// A case's prompt, of which nothing is read.
pub(super) fn progress(model: &Model, case: &Case, block_tokens: usize) -> Progress {
    let placed = case.prompt.images().iter().zip(&case.images);
    let images: Vec<PlacedImage> = placed
        .map(|(first, image)| PlacedImage {
            first: *first,
            digest: Digest::new(*blake3::hash(image.as_bytes()).as_bytes()),
        })
        .collect();
    let prompt = Cacheable {
        scope: Digest::new([0; 32]),
        tokens: case.prompt.tokens(),
        images: &images,
        tokens_per_image: model.image_shape().map_or(0, |[tokens, _]| tokens),
    };
    Progress::new(&prompt, block_tokens)
}

/// What is known of its beginning, ready to be used.
fn begin(pool: &mut KvPool, one: &mut Progress) -> usize {
    let (tokens, copies) = one.begin(pool.blocks_mut());
    pool.copy(&copies).unwrap();
    tokens
}

/// Computes the next stretch, with the logits that are wanted.
pub(super) fn read(
    model: &Model,
    pool: &mut KvPool,
    case: &Case,
    one: &mut Progress,
    (size, want): (usize, Want),
) -> Vec<Vec<f32>> {
    let range = one.next(size);
    one.reserve(pool.blocks_mut(), range.end).unwrap();
    let images = one.images_in(&range).map(|(index, first)| ImageSpan {
        offset: first - range.start,
        tokens: &case.images[index],
    });
    let images: Vec<ImageSpan> = images.collect();
    let chunk = Chunk {
        tokens: &one.tokens()[range.clone()],
        images: &images,
        start: range.start,
        table: one.table(),
        want,
    };
    let rows = model.forward(pool, &[chunk]).unwrap().remove(0).rows;
    one.advance(pool.blocks_mut(), range.end);
    rows
}

/// Computes all that is left, in stretches of this size.
pub(super) fn read_all(
    model: &Model,
    pool: &mut KvPool,
    case: &Case,
    one: &mut Progress,
    stretch: (usize, Want),
) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    while one.left() > 0 {
        rows.extend(read(model, pool, case, one, stretch));
    }
    rows
}

fn check(name: &str, block_tokens: usize, size: usize) -> usize {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, name);
    let expected = whole(&model, &case.tokens(32), &case);
    let mut pool = pool(&model, block_tokens, POSITIONS);
    let mut first = progress(&model, &case, block_tokens);
    assert_eq!(first.begin(pool.blocks_mut()).0, 0);
    read_all(&model, &mut pool, &case, &mut first, (size, Want::Nothing));
    // The first is still there and writes on while the second shares its beginning.
    let mut second = progress(&model, &case, block_tokens);
    let shared = begin(&mut pool, &mut second);
    let mut rows = read_all(&model, &mut pool, &case, &mut second, (size, Want::All));
    for token in &case.greedy[..32] {
        for one in [&mut first, &mut second] {
            one.push(*token);
        }
        read(&model, &mut pool, &case, &mut first, (1, Want::Nothing));
        rows.extend(read(&model, &mut pool, &case, &mut second, (1, Want::All)));
    }
    let found = difference(&rows, &expected[shared..]);
    assert!(
        found <= TOLERANCE,
        "{name} in blocks of {block_tokens}: {found}"
    );
    shared
}

#[test]
fn a_shared_beginning_changes_nothing() {
    for name in CASES {
        let tokens = Fixtures::read().case(&tiny(), name).prompt.tokens().len();
        for (block_tokens, size) in [(16, 512), (4, 9), (7, 13)] {
            let shared = check(name, block_tokens, size);
            assert!(shared < tokens && shared.is_multiple_of(block_tokens));
            assert!(
                shared > 0 || tokens < 24,
                "{name}: nothing of {tokens} shared"
            );
        }
    }
}

/// In a pool that holds the sequence only because local layers give back what they see no more.
#[test]
fn what_local_layers_give_back_changes_nothing() {
    const STRETCH: usize = 9;
    let (fixtures, model) = (Fixtures::read(), tiny());
    let longest_stretch = STRETCH.max(model.image_shape().unwrap()[0]);
    for name in CASES {
        let case = fixtures.case(&model, name);
        let tokens = case.tokens(case.greedy.len());
        let expected = whole(&model, &tokens, &case);
        let mut roomy = pool(&model, 4, POSITIONS);
        roomy.limit_stretches(longest_stretch);
        let layout = roomy.blocks().layout();
        let needed = layout.blocks_of(tokens.len());
        let whole = layout.groups() * tokens.len().div_ceil(4);
        assert!(needed < whole || tokens.len() < 64, "{needed} of {whole}");
        let options = KvOptions {
            block_tokens: 4,
            budget_bytes: needed * roomy.block_bytes(),
        };
        let mut pool = model.kv_pool(options).unwrap();
        pool.limit_stretches(longest_stretch);
        assert_eq!(pool.blocks().total(), needed);
        let mut one = progress(&model, &case, 4);
        let mut rows = read_all(&model, &mut pool, &case, &mut one, (STRETCH, Want::All));
        for token in &case.greedy {
            one.push(*token);
            rows.extend(read(&model, &mut pool, &case, &mut one, (1, Want::All)));
        }
        let found = difference(&rows, &expected);
        assert!(found <= TOLERANCE, "{name}: {found}");
        one.give_back(pool.blocks_mut());
        assert_eq!(pool.blocks().available(), needed);
    }
}

/// What is looked up by tokens alone would take another patient's image.
#[test]
fn another_image_shares_only_what_comes_before_it() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "one_image");
    let mut pool = pool(&model, 4, POSITIONS);
    let mut first = progress(&model, &case, 4);
    read_all(&model, &mut pool, &case, &mut first, (512, Want::Nothing));
    let mut other = fixtures.case(&model, "one_image");
    other.images = fixtures.case(&model, "two_images").images[1..].to_vec();
    assert_ne!(case.images[0], other.images[0]);
    let mut second = progress(&model, &other, 4);
    let shared = begin(&mut pool, &mut second);
    assert!(shared <= case.prompt.images()[0]);
    let rows = read_all(&model, &mut pool, &other, &mut second, (512, Want::All));
    let expected = whole(&model, other.prompt.tokens(), &other);
    assert!(difference(&rows, &expected[shared..]) <= TOLERANCE);
    let wrong = whole(&model, case.prompt.tokens(), &case);
    assert!(difference(&rows, &wrong[shared..]) >= 100.0 * TOLERANCE);
}

/// Another question about the same images reads the question alone, wherever the images end within a block.
#[test]
fn another_question_shares_the_images_to_their_end() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let per_image = model.image_shape().unwrap()[0];
    let mut inside = 0;
    for name in ["one_image", "two_images", "grey_first_last"] {
        for block_tokens in [16, 7, 5, 4] {
            let case = fixtures.case(&model, name);
            let last = case.prompt.images().last().unwrap() + per_image;
            let mut pool = pool(&model, block_tokens, POSITIONS);
            // A block's worth of tokens behind the images, so that the block with their end is full.
            let asking = |token: u32| {
                let mut tokens = case.prompt.tokens()[..last].to_vec();
                tokens.extend(vec![token; block_tokens + 3]);
                let images = case.prompt.images().to_vec();
                Case {
                    prompt: Prompt::from_tokens(tokens, images, per_image),
                    ..fixtures.case(&model, name)
                }
            };
            let (one, other) = (asking(20), asking(30));
            let mut first = progress(&model, &one, block_tokens);
            read_all(&model, &mut pool, &one, &mut first, (512, Want::Nothing));
            let mut second = progress(&model, &other, block_tokens);
            let shared = begin(&mut pool, &mut second);
            assert_eq!(shared, last, "{name} in blocks of {block_tokens}");
            inside += usize::from(!last.is_multiple_of(block_tokens));
            let rows = read_all(&model, &mut pool, &other, &mut second, (3, Want::All));
            let expected = whole(&model, other.prompt.tokens(), &other);
            let found = difference(&rows, &expected[shared..]);
            assert!(found <= TOLERANCE, "{name}: {found}");
            // The first goes on as if nobody had shared anything of it.
            first.push(20);
            let rows = read(&model, &mut pool, &one, &mut first, (1, Want::All));
            let mut tokens = one.prompt.tokens().to_vec();
            tokens.push(20);
            let expected = whole(&model, &tokens, &one);
            assert!(difference(&rows, &expected[tokens.len() - 1..]) <= TOLERANCE);
        }
    }
    assert!(inside > 4, "ends fell inside blocks");
}
