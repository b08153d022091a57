//! What findings do to pictures, and what sizes don't.

use medfleet_phantom::labels::{Label, Side};
use medfleet_phantom::{Phantom, Picture};

use crate::{SEED, phantoms, pixels};

const SIDE: usize = 224;

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f32>) -> (f32, f32) {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        sum += value;
        squares += value * value;
    }
    let mean = sum / count;
    (mean, (squares / count - mean * mean).max(0.0).sqrt())
}

fn difference(phantom: &Phantom) -> Vec<f32> {
    let with = phantom.render_square(SIDE as u32);
    let without = phantom.without_findings().render_square(SIDE as u32);
    with.values
        .iter()
        .zip(&without.values)
        .map(|(a, b)| a - b)
        .collect()
}

#[test]
fn a_finding_changes_its_box_on_its_side_in_its_direction() {
    let mut seen = Vec::new();
    for phantom in phantoms(150) {
        let [finding] = phantom.record().findings.as_slice() else {
            continue;
        };
        let [top, left, bottom, right] = pixels(finding, SIDE);
        assert!(top < bottom && left < right && bottom <= SIDE && right <= SIDE);
        let changes = difference(&phantom);
        let inside = |place: usize| {
            let (row, column) = (place / SIDE, place % SIDE);
            (top..bottom).contains(&row) && (left..right).contains(&column)
        };
        // The strongest changes in the direction of the finding.
        let sign = if finding.label.is_dark() { -1.0 } else { 1.0 };
        let (mean, _) = moments(
            (0..SIDE * SIDE)
                .filter(|at| inside(*at))
                .map(|at| changes[at]),
        );
        assert!(mean * sign > 0.0, "{finding:?}: mean change {mean}");
        let (outside, _) = moments(
            (0..SIDE * SIDE)
                .filter(|at| !inside(*at))
                .map(|at| changes[at]),
        );
        assert!(
            outside.abs() < mean.abs(),
            "{finding:?}: outside {outside}, inside {mean}"
        );
        let middle = (left + right) / 2;
        match finding.side {
            Side::Left => assert!(middle > SIDE / 2, "{finding:?}"),
            Side::Right => assert!(middle < SIDE / 2, "{finding:?}"),
            Side::Bilateral | Side::Midline => {
                assert!(left < SIDE / 2 + 20 && right > SIDE / 2 - 40)
            }
        }
        seen.push(finding.label);
    }
    assert!(
        Label::ALL.iter().all(|label| seen.contains(label)),
        "{seen:?}"
    );
}

#[test]
fn contrast_is_what_the_record_says() {
    let (mut count, mut wrong) = (0, Vec::new());
    for phantom in phantoms(200) {
        let [finding] = phantom.record().findings.as_slice() else {
            continue;
        };
        if !matches!(
            finding.label,
            Label::Nodule | Label::Consolidation | Label::Pneumothorax
        ) {
            continue;
        }
        let changes = difference(&phantom);
        let most = changes
            .iter()
            .map(|change| change.abs())
            .fold(0.0, f32::max);
        let region: Vec<usize> = (0..SIDE * SIDE)
            .filter(|at| changes[*at].abs() > most * 0.4)
            .collect();
        let (mean, _) = moments(region.iter().map(|at| changes[*at]));
        // The grey level of one unit of noise differs from picture to picture: only the order of magnitude is tested.
        let ratio = f64::from(mean.abs()) / finding.cnr;
        count += 1;
        if !(0.008..0.08).contains(&ratio) {
            wrong.push((finding.clone(), ratio));
        }
    }
    assert!(count > 10 && wrong.is_empty(), "{wrong:?}");
}

/// Mean of blocks of `times` pixels.
fn reduced(picture: &Picture, times: usize) -> Vec<f32> {
    let columns = picture.columns / times;
    (0..picture.rows / times * columns)
        .map(|at| {
            let (row, column) = (at / columns * times, at % columns * times);
            let block = (0..times * times)
                .map(|part| (row + part / times) * picture.columns + column + part % times);
            moments(block.map(|at| picture.values[at])).0
        })
        .collect()
}

#[test]
fn sizes_agree() {
    for phantom in phantoms(6) {
        let small = phantom.render_square(224);
        for times in [2, 4] {
            let large = reduced(&phantom.render_square(224 * times as u32), times);
            let off = small.values.iter().zip(&large).map(|(a, b)| a - b);
            let (mean, spread) = moments(off);
            assert!(mean.abs() < 0.01, "brightness differs by {mean} at {times}");
            assert!(spread < 0.03, "pixels differ by {spread} at {times}");
        }
    }
}

#[test]
fn noise_is_as_strong_at_every_size() {
    for phantom in phantoms(4) {
        // Far from edges: differences of neighbours see the noise and little else.
        let noise = |values: &[f32]| {
            let places = (40..180).flat_map(|row| (40..180).map(move |column| row * 224 + column));
            moments(places.map(|at| values[at] - values[at + 1])).1
        };
        let small = noise(&phantom.render_square(224).values);
        for times in [2, 4, 6] {
            let large = noise(&reduced(&phantom.render_square(224 * times as u32), times));
            let ratio = large / small;
            assert!((0.8..1.25).contains(&ratio), "{ratio} at {times}");
        }
    }
}

#[test]
fn small_pictures_are_made_too() {
    let phantom = Phantom::draw(SEED, 0, false);
    for side in [16, 64, 100] {
        assert_eq!(
            phantom.render_square(side).values.len(),
            (side * side) as usize
        );
    }
    assert!(
        phantom
            .render(64)
            .values
            .iter()
            .all(|value| (0.0..=1.0).contains(value))
    );
}

#[test]
fn shapes_follow_the_record() {
    for phantom in phantoms(12) {
        let record = phantom.record();
        let shape = f64::from(record.rows) / f64::from(record.cols);
        assert!((0.84..1.21).contains(&shape));
        let picture = phantom.render(320);
        let sized = phantom.record_at(320, None);
        assert_eq!((picture.columns, picture.rows), (320, sized.rows as usize));
        assert!((picture.rows as f64 / 320.0 - shape).abs() < 0.01);
    }
}

#[test]
fn the_padding_is_black() {
    let wide = phantoms(20).find(|phantom| phantom.record().cols > phantom.record().rows + 50);
    let picture = wide
        .expect("some pictures are wider than high")
        .render_square(224);
    assert!(picture.values[..224].iter().all(|value| *value == 0.0));
}
