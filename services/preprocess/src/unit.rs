//! Pure decisions: how frames are divided into chunks, and in which order they come.

use medfleet_core::CHUNKS_MAX;
use medfleet_imaging::{Examination, PairOrder, Patients, Refusal, one_study, pair_order};
use medfleet_proto::v1::task::Kind;
use medfleet_proto::work::v1 as wire;

/// First frame of each chunk: chunks of `per_chunk` frames, or of more where there would be too many chunks.
pub fn chunk_starts(frames: u32, per_chunk: u32) -> Vec<u32> {
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

/// Whether the inputs of a job are one patient's, of one study or two to compare, or stand each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// One study.
    None,
    /// The answer is one for each image.
    Apart,
    /// The task calls its first image the prior one and its second the current one.
    PriorAndCurrent,
}

impl Pairing {
    pub(crate) fn of(study: &wire::StudyManifest) -> Self {
        let kind = study.task.as_ref().and_then(|task| task.kind.as_ref());
        match kind {
            // Any other number of images is refused where the task is read.
            Some(Kind::Compare(_)) if study.inputs.len() == 2 => Self::PriorAndCurrent,
            Some(Kind::Embed(_) | Kind::ZeroShot(_)) => Self::Apart,
            _ => Self::None,
        }
    }

    /// Of how many patients the files of an input may be.
    pub(crate) fn patients(self) -> Patients {
        match self {
            Self::None => Patients::One,
            Self::Apart => Patients::Any,
            Self::PriorAndCurrent => Patients::Known,
        }
    }

    /// `None` where nothing is compared.
    pub(crate) fn order(
        self,
        examinations: &[Option<Examination>],
    ) -> Result<Option<PairOrder>, Refusal> {
        match (self, examinations) {
            (Self::PriorAndCurrent, [first, second]) => {
                Ok(Some(pair_order(first.as_ref(), second.as_ref())?))
            }
            (Self::None, examinations) => one_study(examinations).map(|()| None),
            _ => Ok(None),
        }
    }
}

/// Puts the frames of two studies in order, each with a word for which it is.
pub(crate) fn put_in_order(order: PairOrder, studies: &mut [Vec<wire::FrameEntry>]) {
    for (frames, note) in studies.iter_mut().zip(order.notes()) {
        let infos = frames.iter_mut().filter_map(|frame| frame.info.as_mut());
        infos.for_each(|info| info.notes.push(note.as_str().to_owned()));
    }
    if order == PairOrder::SecondIsPrior {
        studies.reverse();
    }
}

#[cfg(test)]
mod tests {
    use medfleet_proto::v1;

    use super::*;

    fn frame(channels: u32) -> wire::FrameEntry {
        wire::FrameEntry {
            channels,
            info: Some(v1::FrameUsed::default()),
            ..wire::FrameEntry::default()
        }
    }

    #[test]
    fn the_prior_study_comes_first_and_is_called_so() {
        let check = |order, expected: [(u32, &str); 2]| {
            let mut studies = [vec![frame(1)], vec![frame(3)]];
            put_in_order(order, &mut studies);
            let found = studies.iter().flatten();
            let found = found.map(|frame| {
                let notes = frame.info.as_ref().expect("its record").notes.join(" ");
                (frame.channels, notes)
            });
            let expected = expected.map(|(channels, note)| (channels, note.to_owned()));
            assert_eq!(found.collect::<Vec<_>>(), expected);
        };
        let (prior, current) = ("PRIOR_EXAMINATION", "CURRENT_EXAMINATION");
        check(PairOrder::FirstIsPrior, [(1, prior), (3, current)]);
        check(PairOrder::SecondIsPrior, [(3, prior), (1, current)]);
        let given = "ORDER_AS_GIVEN";
        check(PairOrder::AsGiven, [(1, given), (3, given)]);
    }

    #[test]
    fn only_two_images_of_a_comparison_are_a_pair() {
        let check = |kind, inputs, expected| {
            let study = wire::StudyManifest {
                task: Some(v1::Task { kind: Some(kind) }),
                inputs: vec![wire::StudyInput::default(); inputs],
                ..wire::StudyManifest::default()
            };
            assert_eq!(Pairing::of(&study), expected);
        };
        let compare = || Kind::Compare(v1::CompareTask::default());
        check(compare(), 2, Pairing::PriorAndCurrent);
        check(compare(), 3, Pairing::None);
        check(Kind::Report(v1::ReportTask::default()), 2, Pairing::None);
        check(Kind::Embed(v1::EmbedTask {}), 2, Pairing::Apart);
        assert_eq!(Pairing::of(&wire::StudyManifest::default()), Pairing::None);
        assert_eq!(Pairing::None.order(&[None, None]), Ok(None));
        let order = Pairing::PriorAndCurrent.order(&[None, None]);
        assert_eq!(order, Ok(Some(PairOrder::AsGiven)));
    }

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
