//! What goes through the pipes. To the decoder: a length and a codestream. Back: whether it could be decoded, and each
//! component's size and samples, in two bytes each where they fit. Both ends are the same program, so the format needs no
//! version.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use medfleet_imaging::Plane;
use nix::fcntl::{FcntlArg, fcntl};

/// Bytes of a codestream at most; a file's limit is what counts before that.
const CODESTREAM_BYTES_MAX: u64 = 4 << 30;
/// Samples of a component at most, as many as the largest limit of pixels lets in.
const SAMPLES_MAX: u64 = 1 << 28;
const COMPONENTS_MAX: u8 = 4;
/// The most that the kernel gives without privileges, by default.
const PIPE_BYTES: i32 = 1 << 20;
/// Samples that are converted at a time.
const SAMPLES_STEP: usize = 1 << 15;

/// Makes the pipe's buffer larger, for fewer switches between the two processes. If that fails, it is only slower.
pub(super) fn widen(pipe: &impl AsFd) {
    let _bytes = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(super) fn send(to: &mut impl Write, codestream: &[u8]) -> io::Result<()> {
    to.write_all(&(codestream.len() as u64).to_le_bytes())?;
    to.write_all(codestream)?;
    to.flush()
}

/// The next codestream, into `codestream`; false at the end of the input.
pub(super) fn take(from: &mut impl Read, codestream: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 8];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    let length = u64::from_le_bytes(length);
    if length > CODESTREAM_BYTES_MAX {
        return Err(malformed("a codestream is too long"));
    }
    codestream.clear();
    from.take(length).read_to_end(codestream)?;
    if codestream.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(true)
}

/// `None` says that the codestream is broken.
pub(super) fn answer(to: &mut impl Write, planes: Option<&[Plane]>) -> io::Result<()> {
    let planes = planes.filter(|planes| (1..=usize::from(COMPONENTS_MAX)).contains(&planes.len()));
    to.write_all(&[planes.map_or(0, |planes| planes.len() as u8)])?;
    for plane in planes.unwrap_or_default() {
        let (least, most) = plane.samples.iter().fold((0, 0), |(least, most), value| {
            (value.min(&least).to_owned(), value.max(&most).to_owned())
        });
        let kind = Kind::of(least, most);
        to.write_all(&plane.width.to_le_bytes())?;
        to.write_all(&plane.height.to_le_bytes())?;
        to.write_all(&[kind as u8])?;
        to.write_all(&(plane.samples.len() as u64).to_le_bytes())?;
        let mut bytes = Vec::with_capacity(SAMPLES_STEP * kind.bytes());
        for samples in plane.samples.chunks(SAMPLES_STEP) {
            bytes.clear();
            match kind {
                Kind::Unsigned | Kind::Signed => {
                    bytes.extend(
                        samples
                            .iter()
                            .flat_map(|value| (*value as u16).to_le_bytes()),
                    );
                }
                Kind::Wide => bytes.extend(samples.iter().flat_map(|value| value.to_le_bytes())),
            }
            to.write_all(&bytes)?;
        }
    }
    to.flush()
}

pub(super) fn receive(from: &mut impl Read) -> io::Result<Option<Vec<Plane>>> {
    let [count] = exactly(from)?;
    match count {
        0 => return Ok(None),
        1..=COMPONENTS_MAX => {}
        _ => return Err(malformed("too many components")),
    }
    let planes = (0..count).map(|_| plane(from)).collect::<io::Result<_>>();
    planes.map(Some)
}

fn plane(from: &mut impl Read) -> io::Result<Plane> {
    let width = u32::from_le_bytes(exactly(from)?);
    let height = u32::from_le_bytes(exactly(from)?);
    let [kind] = exactly(from)?;
    let kind = Kind::from(kind)?;
    let count = u64::from_le_bytes(exactly(from)?);
    if count > SAMPLES_MAX {
        return Err(malformed("too many samples"));
    }
    // Bounded by what was just checked.
    let mut left = count as usize;
    let mut samples = Vec::with_capacity(left);
    let mut bytes = vec![0; SAMPLES_STEP.min(left) * kind.bytes()];
    while left > 0 {
        let step = left.min(SAMPLES_STEP);
        let bytes = &mut bytes[..step * kind.bytes()];
        from.read_exact(bytes)?;
        let words = bytes.as_chunks::<2>().0.iter();
        match kind {
            Kind::Unsigned => samples.extend(words.map(|b| i32::from(u16::from_le_bytes(*b)))),
            Kind::Signed => samples.extend(words.map(|b| i32::from(i16::from_le_bytes(*b)))),
            Kind::Wide => samples.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| i32::from_le_bytes(*b)),
            ),
        }
        left -= step;
    }
    Ok(Plane {
        width,
        height,
        samples,
    })
}

fn exactly<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// How samples are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unsigned = 0,
    Signed = 1,
    Wide = 2,
}

impl Kind {
    fn of(least: i32, most: i32) -> Self {
        if least >= 0 && most <= i32::from(u16::MAX) {
            Self::Unsigned
        } else if least >= i32::from(i16::MIN) && most <= i32::from(i16::MAX) {
            Self::Signed
        } else {
            Self::Wide
        }
    }

    fn from(byte: u8) -> io::Result<Self> {
        [Self::Unsigned, Self::Signed, Self::Wide]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| malformed("an unknown kind of samples"))
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Unsigned | Self::Signed => 2,
            Self::Wide => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(samples: &[i32]) {
        let plane = Plane {
            width: samples.len() as u32,
            height: 1,
            samples: samples.to_vec(),
        };
        let mut bytes = Vec::new();
        answer(&mut bytes, Some(&[plane.clone(), plane.clone()])).unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(
            receive(&mut rest).unwrap(),
            Some(vec![plane.clone(), plane])
        );
        assert!(rest.is_empty());
        bytes.pop();
        assert!(receive(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn samples_of_every_width_come_back() {
        check(&[0, 1, 65_535]);
        check(&[-32_768, 0, 32_767]);
        check(&[-1, 65_535]);
        check(&[i32::MIN, i32::MAX]);
        check(&vec![7; SAMPLES_STEP * 2 + 3]);
    }

    #[test]
    fn codestreams_come_one_after_the_other() {
        let (mut bytes, mut codestream) = (Vec::new(), Vec::new());
        send(&mut bytes, b"one").unwrap();
        send(&mut bytes, b"").unwrap();
        let mut rest = bytes.as_slice();
        assert!(take(&mut rest, &mut codestream).unwrap());
        assert_eq!(codestream, b"one");
        assert!(take(&mut rest, &mut codestream).unwrap());
        assert!(codestream.is_empty());
        assert!(!take(&mut rest, &mut codestream).unwrap());
        assert!(take(&mut &bytes[..9], &mut codestream).is_err());
    }

    #[test]
    fn a_broken_codestream_is_a_short_answer() {
        let mut bytes = Vec::new();
        answer(&mut bytes, None).unwrap();
        assert_eq!(receive(&mut bytes.as_slice()).unwrap(), None);
    }
}
