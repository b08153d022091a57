//! How the work is cut up changes nothing: chunks and the whole, many sequences and one, blocks in any order. With kernels
//! of our own not even a bit, which is why an engine may choose the length of a prompt's stretches by what they take.
//! Over the tiny checkpoint and the matrix, whose windows and images no chunk size suits.

use std::ops::Range;

use candle_core::Tensor;
use medfleet_kernels::Kernels;

use super::fixtures::{CASES, Case, Fixtures, tiny, tiny_dir};
use super::matrix::matrix;
use super::proposals::bits;
use super::{TOLERANCE, difference, on};
use crate::sampling::{Situation, choose};
use crate::{
    BlockTable, Chunk, ComputeDevice, Dtype, FolderSource, ImageSpan, KvOptions, KvPool, LayerKind,
    LogitRows, Model, Sampling, Want,
};

/// A pool for `positions`, whatever the length of a block.
pub(super) fn pool(model: &Model, block_tokens: usize, positions: usize) -> KvPool {
    let budget_bytes = positions.next_multiple_of(block_tokens) * model.kv_position_bytes();
    model
        .kv_pool(KvOptions {
            block_tokens,
            budget_bytes,
        })
        .unwrap()
}

/// The images whose run starts in `range`, at offsets from its start.
pub(super) fn spans<'a>(case: &'a Case, range: &Range<usize>) -> Vec<ImageSpan<'a>> {
    let placed = case.prompt.images().iter().zip(&case.images);
    let inside = placed.filter(|(first, _)| range.contains(first));
    inside
        .map(|(first, tokens)| ImageSpan {
            offset: first - range.start,
            tokens,
        })
        .collect()
}

/// All logits of one sequence in one chunk.
pub(super) fn whole(model: &Model, tokens: &[u32], case: &Case) -> Vec<Vec<f32>> {
    let mut pool = pool(model, 16, tokens.len());
    let mut table = BlockTable::default();
    pool.reserve(&mut table, tokens.len()).unwrap();
    let images = spans(case, &(0..tokens.len()));
    let chunk = Chunk {
        tokens,
        images: &images,
        start: 0,
        table: &table,
        want: Want::All,
    };
    model.forward(&mut pool, &[chunk]).unwrap().remove(0).rows
}

/// Tokens of the answer that a schedule goes through one at a time.
const STEPS: usize = 10;

/// The next positions of a case: a piece of the prompt, then one token of the answer at a time.
fn next(case: &Case, done: usize, size: usize) -> Range<usize> {
    if done < case.prompt.tokens().len() {
        case.prompt.chunk(done, size)
    } else {
        done..done + 1
    }
}

/// Logits of every position of the cases, all in one pool at once and out of step with each other: each prefills in
/// chunks of its own size and then decodes, so that batches mix prompts, images and single tokens, and tables interleave.
fn scheduled(model: &Model, cases: &[(&Case, usize)], block: usize) -> Vec<Vec<Vec<f32>>> {
    let all: Vec<Vec<u32>> = cases.iter().map(|(case, _)| case.tokens(STEPS)).collect();
    let positions = all.iter().map(|t| t.len().next_multiple_of(block)).sum();
    let mut pool = pool(model, block, positions);
    let mut tables: Vec<BlockTable> = cases.iter().map(|_| BlockTable::default()).collect();
    let mut rows: Vec<Vec<Vec<f32>>> = cases.iter().map(|_| Vec::new()).collect();
    loop {
        let active: Vec<usize> = (0..cases.len())
            .filter(|i| rows[*i].len() < all[*i].len())
            .collect();
        if active.is_empty() {
            return rows;
        }
        let ranges: Vec<Range<usize>> = active
            .iter()
            .map(|i| next(cases[*i].0, rows[*i].len(), cases[*i].1))
            .collect();
        for (i, range) in active.iter().zip(&ranges) {
            pool.reserve(&mut tables[*i], range.end).unwrap();
        }
        let images: Vec<_> = active
            .iter()
            .zip(&ranges)
            .map(|(i, range)| spans(cases[*i].0, range))
            .collect();
        let chunks: Vec<Chunk> = active
            .iter()
            .zip(&ranges)
            .zip(&images)
            .map(|((i, range), images)| Chunk {
                tokens: &all[*i][range.clone()],
                images,
                start: range.start,
                table: &tables[*i],
                want: Want::All,
            })
            .collect();
        let found = model.forward(&mut pool, &chunks).unwrap();
        for (i, found) in active.iter().zip(found) {
            rows[*i].extend(found.rows);
        }
    }
}

/// The same logits within the tolerance, or, where each row is computed by itself, to the bit; and the same greedy choice at
/// every step of the answer.
fn check_same(
    what: &str,
    (model, case): (&Model, &Case),
    found: &[Vec<f32>],
    expected: &[Vec<f32>],
) {
    let off = difference(found, expected);
    assert!(off <= TOLERANCE, "{what}: {off}");
    if model.rows_stand_alone() {
        assert!(bits(found) == bits(expected), "{what}: other bits, {off}");
    }
    let answer = case.prompt.tokens().len() - 1..found.len() - 1;
    for (row, token) in found[answer].iter().zip(&case.greedy) {
        let choice = choose(row, &Sampling::greedy(), &Situation::default()).unwrap();
        assert_eq!(choice.token, *token, "{what}");
    }
}

/// Alone in chunks of each size (with its block length), then all together.
fn check_schedules(name: &str, model: &Model, cases: &[Case], sizes: &[(usize, usize)]) {
    let expected: Vec<_> = cases
        .iter()
        .map(|case| whole(model, &case.tokens(STEPS), case))
        .collect();
    for (case, expected) in cases.iter().zip(&expected) {
        for (size, block) in sizes {
            let found = scheduled(model, &[(case, *size)], *block).remove(0);
            check_same(
                &format!("{name} in chunks of {size}"),
                (model, case),
                &found,
                expected,
            );
        }
    }
    let together: Vec<_> = cases
        .iter()
        .zip(sizes.iter().cycle())
        .map(|(case, (size, _))| (case, *size))
        .collect();
    let found = scheduled(model, &together, 8);
    for ((case, found), expected) in cases.iter().zip(&found).zip(&expected) {
        let what = format!("{name} in a batch");
        check_same(&what, (model, case), found, expected);
    }
}

#[test]
fn chunks_and_batches_change_nothing() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let cases = CASES.map(|name| fixtures.case(&model, name));
    // Below, at and above the window of 12; blocks that divide neither.
    let sizes = [(1, 7), (5, 16), (12, 3), (13, 5), (30, 16)];
    check_schedules("tiny", &model, &cases, &sizes);
}

/// The same bits with as many rows of a prompt and as many sequences in a pass as these, on one thread and on two: at every
/// level of this machine, in every form that its kernels multiply.
#[test]
fn rows_sequences_and_threads_change_no_bit_at_any_level() {
    let fixtures = Fixtures::read();
    for kernels in Kernels::all() {
        for (dtype, quantised) in [
            (Dtype::F32, false),
            (Dtype::Bf16, false),
            (Dtype::F32, true),
            (Dtype::Bf16, true),
        ] {
            let source = FolderSource {
                quantised,
                ..FolderSource::new(tiny_dir())
            };
            let options = on(ComputeDevice::CpuAt(kernels.level()), dtype);
            let model = Model::load_folder(&source, options).unwrap();
            assert!(model.rows_stand_alone());
            let case = fixtures.case(&model, "one_image");
            let expected = bits(&whole(&model, &case.tokens(STEPS), &case));
            for threads in [1, 2] {
                let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
                let threads_of = builder.build().unwrap();
                for count in [1, 2, 7, 16] {
                    let cases = vec![(&case, count); count];
                    let found = threads_of.install(|| scheduled(&model, &cases, 16));
                    let level = kernels.level();
                    let what = format!("{level}, {dtype}, {count} rows, {threads} threads");
                    for found in found {
                        assert!(bits(&found) == expected, "{what}, quantised: {quantised}");
                    }
                }
            }
        }
    }
}

fn check_checkpoint(checkpoint: &str) {
    let model = matrix().model(checkpoint, Dtype::F32);
    let cases: Vec<Case> = matrix()
        .case_names(checkpoint)
        .iter()
        .map(|name| matrix().case(&model, checkpoint, name, ""))
        .collect();
    // Left-over pieces shorter than a block, chunks that end within a block, windows that begin in a chunk.
    let sizes: &[(usize, usize)] = if model.config().text.window == 8 {
        &[(3, 5), (8, 16), (9, 7), (100, 16)]
    } else {
        &[(500, 16), (1025, 48)]
    };
    check_schedules(checkpoint, &model, &cases, sizes);
}

mod change_nothing {
    over_the_matrix!(check_checkpoint);
}

/// What lies before a local layer's window may be anything: it is not read, with the window's own limit exact.
#[test]
fn local_layers_read_only_their_window() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "text");
    let prompt = case.prompt.tokens();
    let (text, end) = (&model.config().text, prompt.len());
    let mut pool = pool(&model, 16, end + 1);
    let mut table = BlockTable::default();
    pool.reserve(&mut table, end + 1).unwrap();
    let run = |pool: &mut KvPool, tokens: &[u32], start: usize| {
        let chunk = Chunk {
            tokens,
            images: &[],
            start,
            table: &table,
            want: Want::Last,
        };
        model.forward(pool, &[chunk]).unwrap().remove(0).rows
    };
    run(&mut pool, prompt, 0);
    let expected = run(&mut pool, &case.greedy[..1], end);
    let spoil = |pool: &mut KvPool, positions: Range<usize>| {
        let shape = (positions.len(), text.kv_heads, text.head_dim);
        let nothing = Tensor::full(f32::NAN, shape, pool.device()).unwrap();
        for (layer, kind) in text.layers.iter().enumerate() {
            if *kind == LayerKind::Local {
                let kv = (&nothing, &nothing);
                pool.write(layer, &table, positions.start, kv).unwrap();
            }
        }
    };
    let first_seen = end + 1 - text.window;
    spoil(&mut pool, 0..first_seen);
    assert_eq!(run(&mut pool, &case.greedy[..1], end), expected);
    spoil(&mut pool, first_seen..first_seen + 1);
    assert!(run(&mut pool, &case.greedy[..1], end)[0][0].is_nan());
}

/// Logits cost a product with the whole vocabulary, so only those asked for are computed.
#[test]
fn logits_come_only_where_asked() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "short");
    let tokens = case.prompt.tokens();
    let all = whole(&model, tokens, &case);
    let mut pool = pool(&model, 16, 3 * tokens.len().next_multiple_of(16));
    let mut tables = [(); 3].map(|()| BlockTable::default());
    for table in &mut tables {
        pool.reserve(table, tokens.len()).unwrap();
    }
    let wants = [Want::Nothing, Want::Last, Want::All];
    let chunks = [0, 1, 2].map(|i| Chunk {
        tokens,
        images: &[],
        start: 0,
        table: &tables[i],
        want: wants[i],
    });
    let found = model.forward(&mut pool, &chunks).unwrap();
    assert!(found[0].rows.is_empty());
    assert_eq!(found[1].rows.len(), 1);
    assert!(difference(&found[1].rows, &all[all.len() - 1..]) <= TOLERANCE);
    assert!(difference(&found[2].rows, &all) <= TOLERANCE);
}

/// Who takes the likeliest token gets the one that the logits give, whether the device has found it or leaves it to `choose`;
/// beside it others get their logits.
#[test]
fn the_likeliest_token_is_that_of_the_logits() {
    let (fixtures, model) = (Fixtures::read(), tiny());
    let case = fixtures.case(&model, "short");
    let tokens = case.prompt.tokens();
    let mut pool = pool(&model, 16, 4 * tokens.len().next_multiple_of(16));
    let mut tables = [(); 4].map(|()| BlockTable::default());
    for table in &mut tables {
        pool.reserve(table, tokens.len()).unwrap();
    }
    let wants = [Want::Last, Want::Likeliest, Want::All, Want::Likeliest];
    let chunks = [0, 1, 2, 3].map(|i| Chunk {
        tokens: &tokens[..tokens.len() - i / 2],
        images: &[],
        start: 0,
        table: &tables[i],
        want: wants[i],
    });
    let found = model.forward(&mut pool, &chunks).unwrap();
    assert_eq!(found[0].rows.len(), 1);
    assert_eq!(found[2].rows.len(), tokens.len() - 1);
    for (chunk, logits) in [
        (1, &found[0].rows[0]),
        (3, &found[2].rows[tokens.len() - 2]),
    ] {
        let situation = Situation {
            forbidden: model.forbidden_tokens(),
            ..Situation::default()
        };
        let choose = |logits: &[f32]| choose(logits, &Sampling::greedy(), &situation).unwrap();
        let expected = choose(logits);
        let LogitRows { rows, likeliest } = &found[chunk];
        let got = likeliest.unwrap_or_else(|| choose(&rows[0]));
        assert_eq!(rows.len(), usize::from(likeliest.is_none()));
        assert_eq!(got.token, expected.token);
        assert!((got.logprob - expected.logprob).abs() <= TOLERANCE);
    }
}
