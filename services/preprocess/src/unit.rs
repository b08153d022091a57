//! Pure decisions: how frames are divided into chunks, and in which order they come.

use medfleet_core::CHUNKS_MAX;

/// First frame of each chunk: chunks of `per_chunk` frames, or of more where there would be too many chunks.
pub(crate) fn chunk_starts(frames: u32, per_chunk: u32) -> Vec<u32> {
    let per_chunk = per_chunk.max(frames.div_ceil(CHUNKS_MAX)).max(1);
    (0..frames).step_by(per_chunk as usize).collect()
}

/// The frames of a study: inputs in their order, a volume where its first slice came in the request.
pub(crate) fn in_order<T>(ready: Vec<(usize, Vec<T>)>, volume: Vec<(usize, T)>) -> Vec<T> {
    let start = volume.iter().map(|(index, _)| *index).min();
    let (mut out, mut volume) = (Vec::new(), Some(volume));
    let mut put = |out: &mut Vec<T>| {
        out.extend(volume.take().into_iter().flatten().map(|(_, frame)| frame));
    };
    for (index, frames) in ready {
        if start.is_some_and(|start| start < index) {
            put(&mut out);
        }
        out.extend(frames);
    }
    put(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_as_small_as_asked_and_never_too_many() {
        let check = |frames, per_chunk, expected: &[u32]| {
            assert_eq!(
                chunk_starts(frames, per_chunk),
                expected,
                "{frames} {per_chunk}"
            );
        };
        check(0, 1, &[]);
        check(1, 1, &[0]);
        check(3, 1, &[0, 1, 2]);
        check(5, 2, &[0, 2, 4]);
        check(5, 0, &[0, 1, 2, 3, 4]);
        assert_eq!(chunk_starts(32, 1).len(), 32);
        assert_eq!(chunk_starts(33, 1).len(), 17);
        assert_eq!(chunk_starts(1_000, 1).len(), 32);
    }

    #[test]
    fn a_volume_stands_where_its_first_slice_came() {
        let ready = || vec![(0, vec!["a"]), (3, vec!["b", "c"])];
        assert_eq!(in_order(ready(), vec![]), ["a", "b", "c"]);
        let volume = vec![(4, "2"), (2, "1"), (1, "0")];
        assert_eq!(in_order(ready(), volume), ["a", "2", "1", "0", "b", "c"]);
        assert_eq!(in_order(ready(), vec![(5, "z")]), ["a", "b", "c", "z"]);
        assert_eq!(in_order(vec![], vec![(1, "y"), (0, "x")]), ["y", "x"]);
    }
}
