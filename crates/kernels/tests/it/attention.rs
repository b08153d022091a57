//! Attention on every level against a plain reference: windows, image blocks, tables of slots, and the same bits however it is cut.

use half::bf16;
use medfleet_kernels::{Attention, Cached, Kernels, KeyRange, Number};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{bits, close, fuzz, halves, levels, numbers, on, reference, wide};

/// A sequence with its keys in order.
struct Sequence<T> {
    sizes: [usize; 3],
    query: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
    seen: Vec<KeyRange>,
    /// Whether it is known that every row sees all.
    sees_all: bool,
}

/// Causal with a window, the first rows seeing each other both ways.
fn ranges(rows: usize, start: usize, window: usize, image: usize) -> Vec<KeyRange> {
    let range = |row: usize| {
        let end = if row < image {
            start + image
        } else {
            start + row + 1
        };
        KeyRange {
            first: (start + row + 1).saturating_sub(window),
            end,
        }
    };
    (0..rows).map(range).collect()
}

impl<T: Number> Sequence<T> {
    fn scale(&self) -> f32 {
        2.0 / (self.sizes[2] as f32).sqrt()
    }

    fn attention(&self) -> Attention<'_, T> {
        Attention {
            query: &self.query,
            sizes: self.sizes,
            scale: self.scale(),
            cached: Cached {
                keys: &self.keys,
                values: &self.values,
                slots: None,
                first: 0,
            },
            seen: &self.seen,
            sees_all: self.sees_all,
        }
    }
}

impl Sequence<f32> {
    fn new(random: &mut SmallRng, sizes: [usize; 3], seen: Vec<KeyRange>) -> Self {
        let [heads, kv_heads, width] = sizes;
        let positions = seen.iter().map(|range| range.end).max().unwrap();
        Self {
            sizes,
            query: numbers(random, seen.len() * heads * width),
            keys: numbers(random, positions * kv_heads * width),
            values: numbers(random, positions * kv_heads * width),
            seen,
            sees_all: false,
        }
    }

    fn halved(&self) -> Sequence<bf16> {
        Sequence {
            sizes: self.sizes,
            query: halves(&self.query),
            keys: halves(&self.keys),
            values: halves(&self.values),
            seen: self.seen.clone(),
            sees_all: self.sees_all,
        }
    }

    fn expected(&self) -> Vec<f64> {
        let stored = (self.keys.as_slice(), self.values.as_slice());
        reference::attention(&self.query, stored, self.sizes, self.scale(), &self.seen)
    }

    /// The same with keys and values in slots of another order, and those before the first one seen gone.
    fn scattered(&self, kernels: Kernels, random: &mut SmallRng) -> Vec<f32> {
        let stride = self.sizes[1] * self.sizes[2];
        let first = self.seen.iter().map(|range| range.first).min().unwrap();
        let positions = self.keys.len() / stride;
        let mut slots: Vec<u32> = (0..2 * positions as u32).collect();
        for last in (1..slots.len()).rev() {
            slots.swap(last, random.random_range(0..=last));
        }
        slots.truncate(positions - first);
        let place = |from: &[f32]| {
            let mut stored = vec![f32::NAN; 2 * from.len()];
            for (at, slot) in slots.iter().enumerate() {
                let source = &from[(first + at) * stride..][..stride];
                stored[*slot as usize * stride..][..stride].copy_from_slice(source);
            }
            stored
        };
        let (keys, values) = (place(&self.keys), place(&self.values));
        let cached = Cached {
            keys: &keys,
            values: &values,
            slots: Some(&slots),
            first,
        };
        kernels.attend(&[Attention {
            cached,
            sees_all: false,
            ..self.attention()
        }])
    }
}

fn check(kernels: Kernels, random: &mut SmallRng, sizes: [usize; 3], seen: Vec<KeyRange>) {
    check_one(kernels, Sequence::new(random, sizes, seen), random);
}

fn check_one(kernels: Kernels, mut of: Sequence<f32>, random: &mut SmallRng) {
    let found = kernels.attend(&[of.attention()]);
    close(&found, &of.expected(), 2e-5);
    assert_eq!(bits(&of.scattered(kernels, random)), bits(&found));
    // In bf16: scores and results are rounded.
    let half = of.halved();
    let found = kernels.attend(&[half.attention()]);
    [of.query, of.keys, of.values] = [half.query, half.keys, half.values].map(|x| wide(&x));
    close(&wide(&found), &of.expected(), 0.03);
}

/// What every row sees of so many positions.
fn all(rows: usize, positions: usize) -> Vec<KeyRange> {
    let seen = KeyRange {
        first: 0,
        end: positions,
    };
    vec![seen; rows]
}

#[test]
fn the_shapes_of_the_models() {
    for kernels in levels() {
        let mut random = SmallRng::seed_from_u64(6);
        // SigLIP; MedGemma 4B and 27B, with windows and an image.
        check(kernels, &mut random, [3, 3, 72], all(300, 300));
        check(kernels, &mut random, [8, 4, 256], ranges(70, 130, 1024, 20));
        check(kernels, &mut random, [4, 2, 128], ranges(40, 300, 64, 0));
        check(kernels, &mut random, [4, 1, 256], ranges(1, 700, 512, 0));
    }
}

#[test]
fn random_shapes() {
    fuzz(|kernels, random| {
        let mut size = |most: usize| random.random_range(1..=most);
        let (kv_heads, group, width) = (size(3), size(4), size(140));
        let (rows, start, window, image) = (size(60), size(400) - 1, size(300), size(60));
        let seen = ranges(rows, start, window, image.min(rows) * (image % 2));
        check(kernels, random, [kv_heads * group, kv_heads, width], seen);
    });
}

#[test]
fn a_row_is_the_same_wherever_the_prompt_was_cut_and_whoever_is_beside_it() {
    for kernels in levels() {
        let mut random = SmallRng::seed_from_u64(7);
        let sizes = [4, 2, 80];
        let of = Sequence::new(&mut random, sizes, ranges(400, 0, 150, 0));
        let other = Sequence::new(&mut random, sizes, ranges(9, 33, 20, 5));
        cut(kernels, &of, &other);
        cut(kernels, &of.halved(), &other.halved());
    }
}

/// Rows that see all, as an encoder's: odd widths, more and fewer panels than are worked on at once, blocks that are not whole.
#[test]
fn all_see_all() {
    for kernels in levels() {
        let mut random = SmallRng::seed_from_u64(8);
        for (sizes, rows, positions) in [
            ([3, 3, 72], 300, 300),
            ([2, 2, 64], 130, 257),
            ([2, 1, 73], 50, 500),
            ([1, 1, 9], 7, 31),
            ([2, 2, 48], 1, 1),
            ([1, 1, 256], 49, 130),
        ] {
            let mut of = Sequence::new(&mut random, sizes, all(rows, positions));
            of.sees_all = true;
            check_one(kernels, of, &mut random);
        }
    }
}

#[test]
fn a_row_that_sees_all_is_the_same_whoever_is_beside_it() {
    for kernels in levels() {
        let mut random = SmallRng::seed_from_u64(9);
        let sizes = [4, 2, 80];
        let mut of = Sequence::new(&mut random, sizes, all(400, 400));
        let mut other = Sequence::new(&mut random, sizes, all(9, 42));
        (of.sees_all, other.sees_all) = (true, true);
        cut(kernels, &of, &other);
        cut(kernels, &of.halved(), &other.halved());
    }
}

/// A key that is no number spoils all rows, whatever sign the rest of its score has: −∞ would only count nothing.
#[test]
fn a_key_that_is_no_number_shows() {
    let (width, position) = (72, 70);
    for kernels in levels() {
        let mut random = SmallRng::seed_from_u64(10);
        let mut of = Sequence::new(&mut random, [1, 1, width], all(50, 130));
        of.sees_all = true;
        of.keys[position * width + 64] = f32::powi(2.0, 127);
        of.keys[position * width + 65] = f32::NAN;
        let of = of.halved();
        let found = kernels.attend(&[of.attention()]);
        assert!(found.iter().all(|value| value.is_nan()));
    }
}

/// Attention of `of` in parts, `other` around each.
fn cut<T: Number + PartialEq>(kernels: Kernels, of: &Sequence<T>, other: &Sequence<T>) {
    let whole = kernels.attend(&[of.attention()]);
    let width = of.sizes[0] * of.sizes[2];
    for threads in [1, 2] {
        for cut in [1, 2, 7, 16, 129] {
            let mut found = Vec::new();
            for from in (0..400).step_by(cut) {
                let end = 400.min(from + cut);
                let part = Attention {
                    query: &of.query[from * width..end * width],
                    seen: &of.seen[from..end],
                    ..of.attention()
                };
                let batch = [other.attention(), part, other.attention()];
                let mixed = on(threads, || kernels.attend(&batch));
                found.extend_from_slice(&mixed[9 * width..(9 + end - from) * width]);
            }
            assert!(found == whole, "cut every {cut}, {threads} threads");
        }
    }
}

#[test]
fn scores_of_any_size_are_weighed() {
    for kernels in levels() {
        let keys = [-1e4_f32, 3e4, 3e4, -3e38];
        let values = [1.0_f32, 2.0, 4.0, 8.0];
        let found = kernels.attend(&[Attention {
            query: &[1.0_f32],
            sizes: [1, 1, 1],
            scale: 1.0,
            cached: Cached {
                keys: &keys,
                values: &values,
                slots: None,
                first: 0,
            },
            seen: &[KeyRange { first: 0, end: 4 }],
            sees_all: true,
        }]);
        assert_eq!(found, [3.0]);
    }
}

#[test]
fn weights_are_rounded_in_bf16() {
    for kernels in levels() {
        // 1 / 1021 is 128.4 units in the last place, so that all weights together are 0.4 / 128.4 short of 1.
        const KEYS: usize = 1021;
        let found = kernels.attend(&[Attention {
            query: &[bf16::ONE],
            sizes: [1, 1, 1],
            scale: 1.0,
            cached: Cached {
                keys: &[bf16::ZERO; KEYS],
                values: &[bf16::ONE; KEYS],
                slots: None,
                first: 0,
            },
            seen: &[KeyRange {
                first: 0,
                end: KEYS,
            }],
            sees_all: true,
        }]);
        assert_eq!(wide(&found), [1.0 - 1.0 / 256.0]);
    }
}
