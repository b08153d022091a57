//! Boxes: overlap, matching, and what is said of it.
//!
//! IoU is the area of the intersection over that of the union, of continuous coordinates (as torchvision's `box_iou`, without
//! the added pixel of PASCAL VOC). Boxes of one label are matched greedily, the best overlapping pair first (as COCO does
//! with scores, which drafts don't have).

use serde::{Deserialize, Serialize};

/// Top, left, bottom, right: 0..=1000 of the picture padded to a square.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "[f64; 4]", into = "[f64; 4]")]
pub struct Rect([f64; 4]);

/// Four numbers that are no box.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{numbers:?} is not top, left, bottom, right")]
pub struct NotRect {
    pub numbers: [f64; 4],
}

impl TryFrom<[f64; 4]> for Rect {
    type Error = NotRect;

    fn try_from(numbers: [f64; 4]) -> Result<Self, NotRect> {
        let [top, left, bottom, right] = numbers;
        if numbers.iter().all(|number| number.is_finite()) && top <= bottom && left <= right {
            Ok(Self(numbers))
        } else {
            Err(NotRect { numbers })
        }
    }
}

impl From<Rect> for [f64; 4] {
    fn from(rect: Rect) -> Self {
        rect.0
    }
}

impl Rect {
    /// From its edges.
    ///
    /// # Errors
    /// [`NotRect`] unless all are numbers, top isn't below bottom and left isn't right of right.
    pub fn new(top: f64, left: f64, bottom: f64, right: f64) -> Result<Self, NotRect> {
        Self::try_from([top, left, bottom, right])
    }

    fn area(&self) -> f64 {
        let [top, left, bottom, right] = self.0;
        (bottom - top) * (right - left)
    }

    /// Intersection over union, 0..=1; 0 where both are without area.
    pub fn iou(&self, other: &Self) -> f64 {
        let [top, left, bottom, right] = self.0;
        let [its_top, its_left, its_bottom, its_right] = other.0;
        let height = (bottom.min(its_bottom) - top.max(its_top)).max(0.0);
        let width = (right.min(its_right) - left.max(its_left)).max(0.0);
        let common = height * width;
        super::ratio(common, self.area() + other.area() - common)
    }
}

/// A box that counts as found.
pub(crate) const FOUND_IOU: f64 = 0.5;

/// The overlap of each true box with the box matched to it, 0 where none is; and how many said boxes matched none.
pub fn matched(truths: &[Rect], said: &[Rect]) -> (Vec<f64>, usize) {
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for (truth, true_box) in truths.iter().enumerate() {
        for (guess, said_box) in said.iter().enumerate() {
            let iou = true_box.iou(said_box);
            if iou > 0.0 {
                pairs.push((iou, truth, guess));
            }
        }
    }
    // Stable: ties keep their order.
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut overlaps: Vec<Option<f64>> = vec![None; truths.len()];
    let mut used = vec![false; said.len()];
    for (iou, truth, guess) in pairs {
        if overlaps[truth].is_none() && !used[guess] {
            overlaps[truth] = Some(iou);
            used[guess] = true;
        }
    }
    let spare = used.iter().filter(|used| !**used).count();
    let overlaps = overlaps.into_iter().map(|iou| iou.unwrap_or(0.0)).collect();
    (overlaps, spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rect(top: f64, left: f64, bottom: f64, right: f64) -> Rect {
        Rect::new(top, left, bottom, right).unwrap()
    }

    #[test]
    fn overlap() {
        let a = rect(0.0, 0.0, 10.0, 10.0);
        assert_eq!(a.iou(&a), 1.0);
        assert_eq!(a.iou(&rect(0.0, 5.0, 10.0, 15.0)), 1.0 / 3.0);
        assert_eq!(a.iou(&rect(10.0, 0.0, 20.0, 10.0)), 0.0);
        assert_eq!(rect(1.0, 1.0, 1.0, 1.0).iou(&rect(1.0, 1.0, 1.0, 1.0)), 0.0);
        assert!(Rect::new(5.0, 0.0, 1.0, 1.0).is_err());
        assert!(Rect::new(f64::NAN, 0.0, 1.0, 1.0).is_err());
    }

    #[test]
    fn the_best_pair_is_matched_first() {
        let truths = [rect(0.0, 0.0, 10.0, 10.0), rect(0.0, 4.0, 10.0, 14.0)];
        let said = [rect(0.0, 4.0, 10.0, 14.0), rect(50.0, 50.0, 60.0, 60.0)];
        let (overlaps, spare) = matched(&truths, &said);
        assert_eq!(overlaps, [0.0, 1.0]);
        assert_eq!(spare, 1);
        assert_eq!(matched(&truths, &[]), (vec![0.0, 0.0], 0));
    }
}
