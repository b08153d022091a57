//! Who sees whom: causal, and both ways within one image, on all layers; local layers look back no further than their
//! window, within an image too (transformers 5.23: window AND (causal OR same image)).

use std::ops::Range;

use candle_core::{Device, Tensor};
use medfleet_kernels::KeyRange;

use crate::error::BackendError;

/// The visibility rule of one chunk on one kind of layer. Positions count from the start of the sequence.
pub(crate) struct Visible<'a> {
    /// Positions seen by a local layer, own included; none on a global layer.
    pub(crate) window: Option<usize>,
    /// The images of the chunk.
    pub(crate) runs: &'a [Range<usize>],
}

impl Visible<'_> {
    /// Whether the query at `q` sees the key at `k`.
    fn sees(&self, q: usize, k: usize, run: Option<&Range<usize>>) -> bool {
        let known = k <= q || run.is_some_and(|run| run.contains(&k));
        known && self.window.is_none_or(|window| k + window > q)
    }

    /// What the query at `q` sees: always one stretch, since its image reaches behind it without a gap.
    pub(crate) fn range(&self, q: usize) -> KeyRange {
        let run = self.runs.iter().find(|run| run.contains(&q));
        KeyRange {
            first: self.first_key(q),
            end: run.map_or(q + 1, |run| run.end),
        }
    }

    /// The first key that any query from `start` on can see.
    pub(crate) fn first_key(&self, start: usize) -> usize {
        self.window
            .map_or(0, |window| (start + 1).saturating_sub(window))
    }

    /// Additive mask [1, queries, keys] f32: 0 or −∞; nothing where every query sees every key.
    pub(crate) fn mask(
        &self,
        queries: Range<usize>,
        keys: Range<usize>,
        device: &Device,
    ) -> Result<Option<Tensor>, BackendError> {
        let mut values = Vec::with_capacity(queries.len() * keys.len());
        let mut open = true;
        for q in queries.clone() {
            let run = self.runs.iter().find(|run| run.contains(&q));
            for k in keys.clone() {
                let sees = self.sees(q, k, run);
                open &= sees;
                values.push(if sees { 0.0 } else { f32::NEG_INFINITY });
            }
        }
        if open {
            return Ok(None);
        }
        Ok(Some(Tensor::from_vec(
            values,
            (1, queries.len(), keys.len()),
            device,
        )?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row per query, one column per key, `x` where it sees.
    #[allow(clippy::single_range_in_vec_init)]
    fn check(
        window: Option<usize>,
        runs: &[Range<usize>],
        queries: Range<usize>,
        expected: &[&str],
    ) {
        let visible = Visible { window, runs };
        let keys = visible.first_key(queries.start)..queries.end;
        let row = |q: usize| {
            let run = runs.iter().find(|run| run.contains(&q));
            keys.clone()
                .map(|k| {
                    let range = visible.range(q);
                    let sees = visible.sees(q, k, run);
                    assert_eq!((range.first..range.end).contains(&k), sees, "{q} sees {k}");
                    if sees { 'x' } else { '.' }
                })
                .collect::<String>()
        };
        assert_eq!(queries.map(row).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn text_is_causal() {
        check(None, &[], 0..3, &["x..", "xx.", "xxx"]);
        check(None, &[], 2..4, &["xxx.", "xxxx"]);
    }

    #[test]
    fn a_window_counts_its_own_position() {
        check(Some(2), &[], 0..4, &["x...", "xx..", ".xx.", "..xx"]);
        check(Some(2), &[], 3..5, &["xx.", ".xx"]);
    }

    #[test]
    fn an_image_sees_itself_whole_and_nothing_later() {
        let image = 1..4;
        check(
            None,
            std::slice::from_ref(&image),
            0..5,
            &["x....", "xxxx.", "xxxx.", "xxxx.", "xxxxx"],
        );
        check(
            Some(2),
            &[image],
            0..5,
            &["x....", "xxxx.", ".xxx.", "..xx.", "...xx"],
        );
    }

    #[test]
    fn neighbouring_images_stay_apart() {
        check(None, &[0..2, 2..4], 0..4, &["xx..", "xx..", "xxxx", "xxxx"]);
    }

    #[test]
    fn a_decode_step_needs_no_mask() {
        let visible = Visible {
            window: Some(4),
            runs: &[],
        };
        assert!(
            visible
                .mask(9..10, visible.first_key(9)..10, &Device::Cpu)
                .unwrap()
                .is_none()
        );
    }
}
