//! Against Pillow 13.0.0's own output (`tests/reference/make_resample.py`), and where the answer is plain.

use super::*;

/// Side, channels, target side, FNV-1a of what Pillow makes of [`picture`].
const PILLOW: &[(usize, usize, usize, u64)] = &[
    (1, 1, 5, 0xd4657f55662f817f),
    (1, 3, 5, 0x7c5a946f2e706582),
    (2, 1, 1, 0xaf63bb4c8601b479),
    (2, 3, 1, 0xc79b311861eec18c),
    (5, 1, 7, 0xe4b974d8ded3b653),
    (5, 3, 7, 0x0ca194f2bb6aaee2),
    (7, 1, 5, 0x421d95bab6886fb5),
    (7, 3, 5, 0x1fe502f1d1ffa5de),
    (64, 1, 64, 0xf7d59fa4b71e3071),
    (64, 3, 64, 0x6c1d96496e163312),
    (100, 1, 30, 0x84d900e33600c9ed),
    (100, 3, 30, 0x44dae8a3a4659792),
    (31, 1, 100, 0xe709f14885c79e1f),
    (31, 3, 100, 0xe4b856608b7de72d),
    (333, 1, 224, 0x2ed2955335affe44),
    (333, 3, 224, 0x2acc349cd9adcf25),
    (1000, 1, 896, 0x67de081066fe094a),
    (1000, 3, 896, 0x3981ad9fc6d3de45),
    (2021, 1, 896, 0x7e50d8dcc4d6d6de),
    (2021, 3, 896, 0x2a5825aac0daea67),
    (3000, 1, 448, 0xa31358df01909a83),
    (3000, 3, 448, 0x476be6aea561a494),
];

fn picture(side: usize, channels: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(side * side * channels);
    for y in 0..side {
        for x in 0..side {
            pixels.extend((0..channels).map(|c| {
                ((x * (3 + c)) ^ ((y * 5) + x * y / 16 + (x * y * 7 + c * 31) % 97)) as u8
            }));
        }
    }
    pixels
}

/// 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
fn every_byte_is_pillows() {
    for &(side, channels, to, expected) in PILLOW {
        let made = antialiased(&picture(side, channels), side, channels, to).unwrap();
        assert_eq!(made.len(), to * to * channels);
        assert_eq!(fnv(&made), expected, "{side} to {to}, {channels} channels");
    }
}

#[test]
fn an_even_picture_stays_even() {
    for level in [0, 1, 127, 255] {
        for (side, to) in [(7, 3), (3, 7), (100, 33), (50, 128)] {
            let even = vec![level; side * side];
            for made in [antialiased(&even, side, 1, to), sampled(&even, side, 1, to)] {
                assert_eq!(made, Ok(vec![level; to * to]), "{side} to {to}");
            }
        }
    }
}

#[test]
fn sampling_takes_the_four_nearest_only() {
    // Every second pixel is white, and centres of the target lie between pixels 1 and 2, 5 and 6.
    let row = [0, 255, 0, 255, 0, 255, 0, 255];
    let stripes: Vec<u8> = (0..8).flat_map(|_| row).collect();
    assert_eq!(sampled(&stripes, 8, 1, 2), Ok(vec![127; 4]));
    let dot = |at: usize| {
        let mut pixels = vec![0; 64];
        pixels[at] = 255;
        pixels
    };
    assert_eq!(
        sampled(&dot(0), 8, 1, 2),
        Ok(vec![0; 4]),
        "a corner is not seen"
    );
    assert_ne!(antialiased(&dot(0), 8, 1, 2), Ok(vec![0; 4]), "but covered");
}

#[test]
fn channels_do_not_mix() {
    let grey = [picture(9, 1), vec![0; 81], vec![255; 81]];
    for channels in [2, 3] {
        let joint = (0..81).flat_map(|at| grey[..channels].iter().map(move |plane| plane[at]));
        let joint: Vec<u8> = joint.collect();
        let made = antialiased(&joint, 9, channels, 4).unwrap();
        for (channel, plane) in grey[..channels].iter().enumerate() {
            let found: Vec<u8> = made
                .iter()
                .skip(channel)
                .step_by(channels)
                .copied()
                .collect();
            assert_eq!(Ok(found), antialiased(plane, 9, 1, 4));
        }
    }
}

#[test]
fn another_number_of_bytes_is_refused() {
    let (expected, found) = (12, 11);
    let wrong = Err(WrongSize { expected, found });
    assert_eq!(antialiased(&[0; 11], 2, 3, 1), wrong);
    assert_eq!(sampled(&[0; 11], 2, 3, 1), wrong);
}
