//! What is measured where nobody brings files: a chest film of 3.6 megapixels and a CT of 85 slices, 12 bits in 16, made up and
//! always the same.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use medfleet_phantom::Phantom;

/// As large as the NEMA's sample of a chest film.
const FILM_ROWS: u16 = 1955;
const FILM_COLUMNS: u16 = 1841;
const SLICES: u16 = 85;
const SLICE_SIDE: u16 = 512;
const LEVEL_MAX: u16 = 4095;

const CR: &str = "1.2.840.10008.5.1.4.1.1.1";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// Writes both, and gives their paths.
pub(super) fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    let series = folder.join("ct-raw");
    fs::create_dir_all(&series).with_context(|| format!("cannot make {}", series.display()))?;
    let film = folder.join("film-raw.dcm");
    put(&film, &chest())?;
    for number in 0..SLICES {
        put(&series.join(format!("{number:03}.dcm")), &slice(number))?;
    }
    Ok(vec![film, series])
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A phantom's chest, cut to the shape of a film.
fn chest() -> Vec<u8> {
    let (rows, columns) = (usize::from(FILM_ROWS), usize::from(FILM_COLUMNS));
    let picture = Phantom::draw(1, 0, false).render_square(u32::from(FILM_ROWS));
    let left = (picture.columns - columns) / 2;
    let levels = picture.levels(LEVEL_MAX);
    let cells = (0..rows).flat_map(|row| {
        let first = row * picture.columns + left;
        levels[first..first + columns].iter().copied()
    });
    let mut file = DataSet::default();
    file.image(CR, "CR", 0);
    file.text((0x0018, 0x5101), b"CS", "PA");
    file.pixels((FILM_ROWS, FILM_COLUMNS), cells);
    file.of_class(CR, 0)
}

/// A body, two lungs and a spine, with the noise of a scanner.
pub(in crate::command) fn slice(number: u16) -> Vec<u8> {
    let mut file = DataSet::default();
    file.image(CT, "CT", number);
    file.text(
        (0x0020, 0x0032),
        b"DS",
        &format!("-180\\-180\\{}", f64::from(number) * 2.5),
    );
    file.text((0x0020, 0x0037), b"DS", "1\\0\\0\\0\\1\\0");
    file.spacing = Some("0.703125\\0.703125");
    file.rescale = Some("-1024");
    let side = f64::from(SLICE_SIDE);
    let mut noise = u32::from(number).wrapping_mul(0x9e37_79b9) | 1;
    let cells = (0..u32::from(SLICE_SIDE) * u32::from(SLICE_SIDE)).map(|at| {
        let x = f64::from(at % u32::from(SLICE_SIDE)) / side - 0.5;
        let y = f64::from(at / u32::from(SLICE_SIDE)) / side - 0.5;
        // Marsaglia's xorshift; the sum of four bytes is about normal, with a deviation of 15 after the division.
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        let sum: i32 = noise
            .to_le_bytes()
            .iter()
            .map(|byte| i32::from(*byte))
            .sum();
        let units = tissue(x, y, f64::from(number) / f64::from(SLICES)) + (sum - 510) / 10;
        (units + 1024).clamp(0, i32::from(LEVEL_MAX)) as u16
    });
    file.pixels((SLICE_SIDE, SLICE_SIDE), cells);
    file.of_class(CT, number)
}

/// Hounsfield units at a place, from -0.5 to 0.5, and a height from 0 to 1.
fn tissue(x: f64, y: f64, z: f64) -> i32 {
    let within = |left: f64, top: f64, width: f64, height: f64| {
        ((x - left) / width).powi(2) + ((y - top) / height).powi(2) < 1.0
    };
    let lung = 0.6 + 0.4 * (z * std::f64::consts::PI).sin();
    if !within(0.0, 0.0, 0.45, 0.33) {
        -1000
    } else if within(0.0, 0.22, 0.06, 0.06) {
        400
    } else if within(-0.2, 0.0, 0.15 * lung, 0.22 * lung)
        || within(0.2, 0.0, 0.15 * lung, 0.22 * lung)
    {
        -820
    } else {
        45
    }
}

/// Elements in explicit little endian, in the order of their tags.
#[derive(Default)]
struct DataSet {
    elements: Vec<((u16, u16), Vec<u8>)>,
    spacing: Option<&'static str>,
    rescale: Option<&'static str>,
}

impl DataSet {
    fn put(&mut self, tag: (u16, u16), vr: &[u8; 2], value: &[u8]) {
        let mut bytes = Vec::with_capacity(value.len() + 13);
        bytes.extend(tag.0.to_le_bytes());
        bytes.extend(tag.1.to_le_bytes());
        bytes.extend(vr);
        let padded = value.len() + value.len() % 2;
        if matches!(vr, b"OB" | b"OW") {
            bytes.extend([0, 0]);
            bytes.extend((padded as u32).to_le_bytes());
        } else {
            bytes.extend((padded as u16).to_le_bytes());
        }
        bytes.extend(value);
        bytes.resize(
            bytes.len() + value.len() % 2,
            if vr == b"UI" { 0 } else { b' ' },
        );
        self.elements.push((tag, bytes));
    }

    fn text(&mut self, tag: (u16, u16), vr: &[u8; 2], text: &str) {
        self.put(tag, vr, text.as_bytes());
    }

    fn number(&mut self, tag: (u16, u16), number: u16) {
        self.put(tag, b"US", &number.to_le_bytes());
    }

    fn image(&mut self, class: &str, modality: &str, number: u16) {
        self.text((0x0008, 0x0008), b"CS", "ORIGINAL\\PRIMARY\\AXIAL");
        self.text((0x0008, 0x0016), b"UI", class);
        self.text((0x0008, 0x0018), b"UI", &instance(class, number));
        self.text((0x0008, 0x0020), b"DA", "20260101");
        self.text((0x0008, 0x0030), b"TM", "120000");
        self.text((0x0008, 0x0060), b"CS", modality);
        self.text((0x0010, 0x0010), b"PN", "PHANTOM^BENCH");
        self.text((0x0010, 0x0020), b"LO", "PHANTOM");
        self.text((0x0020, 0x000d), b"UI", "2.25.61");
        self.text((0x0020, 0x000e), b"UI", "2.25.62");
        self.text((0x0020, 0x0013), b"IS", &(number + 1).to_string());
    }

    fn pixels(&mut self, (rows, columns): (u16, u16), cells: impl Iterator<Item = u16>) {
        self.number((0x0028, 0x0002), 1);
        self.text((0x0028, 0x0004), b"CS", "MONOCHROME2");
        self.number((0x0028, 0x0010), rows);
        self.number((0x0028, 0x0011), columns);
        if let Some(spacing) = self.spacing {
            self.text((0x0028, 0x0030), b"DS", spacing);
        }
        self.number((0x0028, 0x0100), 16);
        self.number((0x0028, 0x0101), 12);
        self.number((0x0028, 0x0102), 11);
        self.number((0x0028, 0x0103), 0);
        match self.rescale {
            Some(intercept) => {
                self.text((0x0028, 0x1052), b"DS", intercept);
                self.text((0x0028, 0x1053), b"DS", "1");
            }
            None => {
                self.text((0x0028, 0x1050), b"DS", "2048");
                self.text((0x0028, 0x1051), b"DS", "4096");
            }
        }
        let bytes: Vec<u8> = cells.flat_map(u16::to_le_bytes).collect();
        self.put((0x7fe0, 0x0010), b"OW", &bytes);
    }

    fn of_class(mut self, class: &str, number: u16) -> Vec<u8> {
        let mut meta = Self::default();
        meta.put((0x0002, 0x0001), b"OB", &[0, 1]);
        meta.text((0x0002, 0x0002), b"UI", class);
        meta.text((0x0002, 0x0003), b"UI", &instance(class, number));
        meta.text((0x0002, 0x0010), b"UI", EXPLICIT_LITTLE_ENDIAN);
        meta.text((0x0002, 0x0012), b"UI", "2.25.60");
        let length: usize = meta.elements.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut file = vec![0; 128];
        file.extend(b"DICM");
        file.extend(b"\x02\0\0\0UL\x04\0");
        file.extend((length as u32).to_le_bytes());
        self.elements.sort_by_key(|(tag, _)| *tag);
        for (_, bytes) in meta.elements.into_iter().chain(self.elements) {
            file.extend(bytes);
        }
        file
    }
}

fn instance(class: &str, number: u16) -> String {
    let kind = if class == CT { 2 } else { 1 };
    format!("2.25.6{kind}{number:03}")
}

#[cfg(test)]
mod tests {
    use medfleet_imaging::{Limits, Options, Prepared, prepare};

    use super::*;

    #[test]
    fn slices_are_admitted_and_noisy_enough() {
        let options = Options::new(64, Limits::default()).expect("a side in range");
        let bytes = slice(3);
        let prepared = prepare(&bytes, &options).expect("admitted");
        assert!(matches!(prepared, Prepared::Slices(_)));
        assert!(prepare(&chest(), &options).is_ok());
        // Air, in which only the noise differs.
        let cells = &bytes[bytes.len() - 2 * 512 * 512..][..2 * 512];
        let values: std::collections::BTreeSet<_> = cells.chunks(2).collect();
        assert!(values.len() > 16, "{}", values.len());
    }
}
