//! What the fleet makes of a picture: 8 bits, a square, the model's side.

use medfleet_resample::antialiased;

use crate::render::Picture;

/// The bytes [side, side] of the frame that a model with MedGemma's convention sees of the picture as a PNG: padded with
/// black around the centre, the odd pixel at the end, and brought to `side` pixels with antialiasing.
pub(crate) fn frame(picture: &Picture, side: usize) -> Vec<u8> {
    let long = picture.columns.max(picture.rows);
    let (left, top) = ((long - picture.columns) / 2, (long - picture.rows) / 2);
    let mut square = vec![0; long * long];
    let rows = square.chunks_exact_mut(long).skip(top);
    for (to, from) in rows.zip(picture.grey().chunks_exact(picture.columns)) {
        to[left..left + picture.columns].copy_from_slice(from);
    }
    antialiased(&square, long, 1, side).expect("the square has long * long pixels")
}
