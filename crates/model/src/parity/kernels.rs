//! What a device has kernels of its own for, beside what they are to give: at sizes that no block of theirs divides.

use candle_core::{DType, Device, Tensor};

use super::device;
use super::println_figure;
use crate::encoder::multi_head;
use crate::frame::Frame;

/// Of the rounding to bf16 alone it is 2 to 5 thousandths; with all keys seen alike it would be a fifth.
const ERROR_MAX: f32 = 1e-2;

/// A number in [−2, 2] that looks like chance.
fn chance(at: usize, seed: u32) -> f32 {
    let mut x = (at as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b1);
    x = (x ^ (x >> 15)).wrapping_mul(0x85eb_ca77);
    x ^= x >> 13;
    (x as f32 / u32::MAX as f32 - 0.5) * 4.0
}

#[test]
fn every_query_sees_every_key() {
    let on = device().open().unwrap();
    let none = Device::Cpu;
    for (width, heads, queries, keys) in [
        (72, 3, 131, 77),
        (72, 2, 300, 513),
        (72, 16, 1, 64),
        (64, 2, 64, 200),
        (48, 4, 129, 1),
        (12, 4, 64, 64),
    ] {
        let random = |rows: usize, seed: u32, mean: f32| {
            let values = (0..rows * heads * width).map(|at| mean + chance(at, seed));
            let values: Vec<f32> = values.collect();
            let tensor = Tensor::from_vec(values, (rows, heads * width), &none).unwrap();
            tensor.to_dtype(DType::BF16).unwrap()
        };
        let all = [
            random(queries, 0, 0.0),
            random(keys, 1 << 24, 0.0),
            random(keys, 1 << 25, 0.5),
        ];
        let values = |x: &Tensor| {
            let x = x.to_device(&none).unwrap().to_dtype(DType::F32).unwrap();
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let wide = all.each_ref().map(|x| x.to_dtype(DType::F32).unwrap());
        let there = all.each_ref().map(|x| x.to_device(&on).unwrap());
        let run = |[query, key, value]: &[Tensor; 3], kernels| {
            values(&multi_head(query, key, value, (heads, kernels)).unwrap())
        };
        let (expected, found) = (run(&wide, None), run(&there, device().kernels()));
        assert_eq!(found.len(), expected.len());
        let pairs = || found.iter().zip(&expected);
        let off: f32 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
        let error = (off / pairs().map(|(_, b)| b * b).sum::<f32>()).sqrt();
        let name = format!("{heads} heads of {width}, {queries} queries, {keys} keys");
        assert!(error <= ERROR_MAX, "{name}: {error}");
        println_figure(&name, error);
    }
}

#[test]
fn a_picture_is_cut_by_channel_row_and_column() {
    let (side, patch) = (42, 14);
    let on = device().open().unwrap();
    for channels in [1, 3] {
        let pixels: Vec<u8> = (0..side * side * channels)
            .map(|i| (i * 7 % 256) as u8)
            .collect();
        let mut expected = Vec::new();
        for at in 0..(side / patch) * (side / patch) {
            let (top, left) = (at / (side / patch) * patch, at % (side / patch) * patch);
            for i in 0..3 * patch * patch {
                let (channel, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
                let pixel = (top + y) * side + left + x;
                let sample = f32::from(pixels[pixel * channels + channel % channels]);
                expected.push((sample / 255.0 - 0.5) / 0.5);
            }
        }
        let frame = Frame::new(side, channels, pixels).unwrap();
        let found = frame.patches(side, patch, &on).unwrap();
        assert_eq!(found.dims(), [9, 3 * patch * patch]);
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, expected, "{channels} channels");
    }
}
