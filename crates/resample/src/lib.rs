//! Square 8-bit pictures at another size, by the two rules that the models were trained with: antialiased as Pillow's
//! `BILINEAR`, and without antialiasing as TensorFlow's `tf.image.resize`.
//!
//! Our own, and not a library's: both are to give the very bytes of the reference, since a model sees every difference.
//! Pixels are row-major, the samples of a pixel together.

/// Bits behind the point of a weight. Pillow keeps what 32 bits leave beside 8 of the sample and 2 of headroom.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// A picture that has not the size that it is said to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongSize {
    /// Bytes of `side × side × channels`.
    pub expected: usize,
    /// Bytes of the picture.
    pub found: usize,
}

impl std::fmt::Display for WrongSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { expected, found } = self;
        write!(f, "a picture has {found} bytes, expected {expected}")
    }
}

impl std::error::Error for WrongSize {}

/// `pixels` [side, side, channels] → [to, to, channels], each target pixel the mean of the source pixels that it covers,
/// weighted by a triangle: Pillow's `Image.resize((to, to), Resampling.BILINEAR)`, byte for byte (Pillow 13,
/// `Resample.c`: weights in doubles, rounded to 22 bits; rows first, then columns, with 8 bits in between).
pub fn antialiased(
    pixels: &[u8],
    side: usize,
    channels: usize,
    to: usize,
) -> Result<Vec<u8>, WrongSize> {
    check(pixels, side, channels)?;
    if side == to {
        return Ok(pixels.to_vec());
    }
    let targets = targets(side, to);
    let along = rows(pixels, side, channels, &targets);
    Ok(columns(&along, to * channels, &targets))
}

/// `pixels` [side, side, channels] → [to, to, channels], each target pixel mixed from the four source pixels nearest to
/// its centre, however much the picture shrinks: `tf.image.resize(…, "bilinear", antialias=False)`, then a cast to uint8,
/// which cuts fractions off.
pub fn sampled(
    pixels: &[u8],
    side: usize,
    channels: usize,
    to: usize,
) -> Result<Vec<u8>, WrongSize> {
    check(pixels, side, channels)?;
    if side == to {
        return Ok(pixels.to_vec());
    }
    let scale = side as f32 / to as f32;
    // Per target position: the two source positions and the weight of the second.
    let places: Vec<(usize, usize, f32)> = (0..to)
        .map(|i| {
            let at = (i as f32 + 0.5) * scale - 0.5;
            let low = at.floor().max(0.0);
            let high = at.ceil().clamp(0.0, (side - 1) as f32);
            (low as usize, high as usize, at - at.floor())
        })
        .collect();
    let mut out = Vec::with_capacity(to * to * channels);
    for &(top, bottom, down) in &places {
        for &(left, right, along) in &places {
            for channel in 0..channels {
                let sample =
                    |y: usize, x: usize| f32::from(pixels[(y * side + x) * channels + channel]);
                let mix = |y| sample(y, left) + (sample(y, right) - sample(y, left)) * along;
                let (upper, lower) = (mix(top), mix(bottom));
                out.push((upper + (lower - upper) * down) as u8);
            }
        }
    }
    Ok(out)
}

fn check(pixels: &[u8], side: usize, channels: usize) -> Result<(), WrongSize> {
    let (expected, found) = (side * side * channels, pixels.len());
    if found == expected {
        Ok(())
    } else {
        Err(WrongSize { expected, found })
    }
}

/// What one target position is made of.
struct Target {
    /// First source position.
    first: usize,
    /// Weights of the source positions from there on, of [`WEIGHT_BITS`] each; together 1.
    weights: Vec<i32>,
}

fn targets(side: usize, to: usize) -> Vec<Target> {
    let scale = side as f64 / to as f64;
    // Growing pictures are interpolated between neighbours, shrinking ones covered.
    let support = scale.max(1.0);
    (0..to)
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(side);
            let weight = |source: usize| {
                let distance = (source as f64 - centre + 0.5) * (1.0 / support);
                (1.0 - distance.abs()).max(0.0)
            };
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                // Never negative: adding one half rounds.
                (0.5 + weight / sum * f64::from(1 << WEIGHT_BITS)) as i32
            };
            Target {
                first,
                weights: weights.iter().map(fixed).collect(),
            }
        })
        .collect()
}

/// The sum of samples times weights, rounded, as a sample.
const fn sample_of(sum: i32) -> u8 {
    let value = sum >> WEIGHT_BITS;
    if value > 255 {
        255
    } else if value < 0 {
        0
    } else {
        value as u8
    }
}

/// One half, to round.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// [rows, side, channels] → [rows, targets, channels].
fn rows(pixels: &[u8], side: usize, channels: usize, targets: &[Target]) -> Vec<u8> {
    match channels {
        1 => rows_of::<1>(pixels, side, targets),
        3 => rows_of::<3>(pixels, side, targets),
        _ => {
            // Any other number, a channel at a time.
            let mut out = vec![0; pixels.len() / side * targets.len()];
            for channel in 0..channels {
                let one: Vec<u8> = pixels
                    .iter()
                    .skip(channel)
                    .step_by(channels)
                    .copied()
                    .collect();
                let made = rows_of::<1>(&one, side, targets);
                for (to, from) in out.iter_mut().skip(channel).step_by(channels).zip(made) {
                    *to = from;
                }
            }
            out
        }
    }
}

fn rows_of<const CHANNELS: usize>(pixels: &[u8], side: usize, targets: &[Target]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / side * targets.len());
    for row in pixels.chunks_exact(side * CHANNELS) {
        for target in targets {
            let mut sums = [HALF; CHANNELS];
            let sources = row[target.first * CHANNELS..].chunks_exact(CHANNELS);
            for (source, weight) in sources.zip(&target.weights) {
                for (sum, sample) in sums.iter_mut().zip(source) {
                    *sum += i32::from(*sample) * weight;
                }
            }
            out.extend(sums.map(sample_of));
        }
    }
    out
}

/// [side, width] → [targets, width].
fn columns(pixels: &[u8], width: usize, targets: &[Target]) -> Vec<u8> {
    let mut out = Vec::with_capacity(targets.len() * width);
    let mut sums = vec![HALF; width];
    for target in targets {
        sums.fill(HALF);
        let sources = pixels[target.first * width..].chunks_exact(width);
        for (source, weight) in sources.zip(&target.weights) {
            for (sum, sample) in sums.iter_mut().zip(source) {
                *sum += i32::from(*sample) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| sample_of(*sum)));
    }
    out
}

#[cfg(test)]
mod tests;
