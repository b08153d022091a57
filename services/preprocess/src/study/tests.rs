//! A whole study, from stored inputs to its frames, without the queue.

use std::time::Duration;

use medfleet_core::{BlobKind, JobId, JobKey, PoolName};
use medfleet_imaging::{Limits, Patients};
use medfleet_runtime::Metrics;
use medfleet_store::FleetKey;
use medfleet_testkit::tar;

use super::*;
use crate::codecs::Stop;
use crate::puts::FramesInFlight;

const PICTURE: &[u8] = include_bytes!("../../../../crates/imaging/tests/golden/mono2-8bit.png");
/// A CT of seven slices.
const VOLUME: &[u8] =
    include_bytes!("../../../../crates/imaging/tests/golden/formats/ct-left-back-up.nii");
const SLICES: u32 = 7;
/// Of what hangs when it is wrong, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a study of these files becomes.
async fn study(files: &[&'static [u8]], frames_max: u32) -> Result<Study, PreprocessError> {
    study_with(files, frames_max, 0, None).await
}

/// The same for a task, with so many slices that were read before.
async fn study_with(
    files: &[&'static [u8]],
    frames_max: u32,
    slices: u64,
    task: Option<v1::Task>,
) -> Result<Study, PreprocessError> {
    let store = BlobStore::in_memory(FleetKey::new([1; 32]));
    let key = JobKey::new("a".parse().expect("a tenant"), JobId::from_bytes([1; 16]));
    let mut inputs = Vec::new();
    for &file in files {
        let bytes = Bytes::from_static(file);
        let digest = store.digest(&key.tenant, &bytes).await;
        inputs.push(wire::StudyInput {
            part_digests: vec![Bytes::copy_from_slice(digest.as_bytes())],
            size_bytes: bytes.len() as u64,
            ..wire::StudyInput::default()
        });
        let put = store.put_named(&key.tenant, BlobKind::Input, &digest, bytes);
        put.await.expect("stored");
    }
    let pool: PoolName = "tiny-main".parse().expect("a pool");
    let config = Config {
        frames_max,
        // What keeps a turn that it does not need stops the study.
        decodes_max: 1,
        ..Config::new(&pool, 64)
    };
    let codecs = crate::frames::codecs(&config);
    let metrics = PreprocessMetrics::register(&Metrics::new());
    let studies = Studies::new(&config, store.clone(), codecs, metrics).expect("settings");
    let puts = Puts::new(store, key.clone(), &FramesInFlight::default());
    let puts = puts.of_files(files.len());
    let manifest = wire::StudyManifest {
        inputs,
        task,
        ..wire::StudyManifest::default()
    };
    let job = Job {
        tenant: &key.tenant,
        puts: &puts,
        study: &manifest,
        volumes: &Volumes {
            slices: AtomicU64::new(slices),
            ..Volumes::default()
        },
    };
    let made = tokio::time::timeout(PATIENCE, studies.whole(job)).await;
    made.expect("it ends")
}

#[tokio::test]
async fn a_volume_and_pictures_are_shown_up_to_the_limit() {
    let files = [PICTURE, VOLUME, PICTURE];
    let study = study(&files, SLICES + 2).await.expect("frames");
    assert_eq!(study.frames.len(), SLICES as usize + 2);
}

/// A CT of so many slices, for as long as the test runs.
fn volume(slices: u16) -> &'static [u8] {
    // Where NIfTI says how many there are, and where the first begins.
    let (count, first) = (46..48, 352);
    let (header, voxels) = VOLUME.split_at(first);
    let slice = &voxels[..voxels.len() / SLICES as usize];
    let mut header = header.to_vec();
    header[count].copy_from_slice(&slices.to_le_bytes());
    Box::leak(
        [header, slice.repeat(slices.into())]
            .concat()
            .into_boxed_slice(),
    )
}

#[tokio::test]
async fn two_volumes_to_compare_are_shown_whole_by_default() {
    let pool: PoolName = "tiny-main".parse().expect("a pool");
    let by_default = Config::new(&pool, 64).frames_max;
    let kind = v1::task::Kind::Compare(v1::CompareTask::default());
    let task = v1::Task { kind: Some(kind) };
    // Of each as many as the model's maker shows of a volume.
    let files = [volume(100), volume(120)];
    let study = study_with(&files, by_default, 0, Some(task)).await;
    assert_eq!(study.expect("frames").frames.len(), 2 * 85);
}

/// Pictures and volume are each within the limit, so that only the sum tells. The volume goes beyond it with slices to spare:
/// a thread that waits for somebody to take the next ones would never end.
#[tokio::test]
async fn a_volume_that_goes_beyond_the_limit_with_other_frames_is_refused() {
    let files = [PICTURE, PICTURE, PICTURE, PICTURE, VOLUME];
    let refused = study(&files, SLICES).await.err().expect("too many");
    assert!(
        matches!(refused, PreprocessError::Frames { max: SLICES }),
        "{refused}"
    );
    assert!(refused.to_string().contains("TOO_MANY_FRAMES"));
}

/// An archive of these files, for as long as the test runs.
fn archive(files: &[&[u8]]) -> &'static [u8] {
    let files: Vec<(&str, &[u8])> = files.iter().map(|bytes| ("x", *bytes)).collect();
    Box::leak(tar(&files).into_boxed_slice())
}

/// The picture could be the only frame, until the volume needs a turn.
#[tokio::test]
async fn a_picture_of_an_archive_keeps_no_turn_from_its_volume() {
    let archive = archive(&[PICTURE, VOLUME]);
    let study = study(&[archive], 128).await.expect("frames");
    assert_eq!(study.frames.len(), SLICES as usize + 1);
}

#[tokio::test]
async fn pictures_of_an_archive_are_shown_in_its_order_with_its_volume() {
    let archive = archive(&[PICTURE, VOLUME, PICTURE]);
    let study = study(&[archive, PICTURE], 128).await.expect("frames");
    let infos = study.frames.iter().map(|frame| frame.info.as_ref());
    let of: Vec<u32> = infos
        .map(|info| info.expect("its record").input_index)
        .collect();
    assert_eq!(of.len(), SLICES as usize + 3);
    // The volume stands where its input came, behind what that has by itself.
    assert!(of.is_sorted(), "{of:?}");
    assert_eq!(of.iter().filter(|input| **input == 1).count(), 1);
    let picture = &study.frames[0].digest;
    let same = study.frames.iter().filter(|frame| frame.digest == *picture);
    assert_eq!(same.count(), 3);
}

/// The film of a patient.
const FILM: &[u8] = include_bytes!("../../../../crates/imaging/tests/golden/mono2-8bit.dcm");

/// The same film with another element in the place of one.
fn with(own: &[u8], other: &[u8]) -> &'static [u8] {
    let at = FILM.windows(own.len()).position(|bytes| bytes == own);
    let at = at.expect("the element");
    let bytes = [&FILM[..at], other, &FILM[at + own.len()..]].concat();
    Box::leak(bytes.into_boxed_slice())
}

/// A draft about both would be right for neither.
#[tokio::test]
async fn films_of_two_patients_are_no_study() {
    let (own, other) = (
        b"\x10\0\x20\0LO\x08\0PHANTOM ",
        b"\x10\0\x20\0LO\x08\0SOMEONE ",
    );
    let other = with(own, other);
    let whole = study(&[FILM, PICTURE, FILM], 128).await.expect("frames");
    assert_eq!(whole.frames.len(), 3);
    for files in [&[FILM, other][..], &[archive(&[FILM, other])]] {
        let refused = study(files, 128).await.err().expect("two patients");
        let said = refused.to_string();
        assert!(said.contains("DIFFERENT_PATIENTS"), "{said}");
    }
}

/// Whoever hides all patients behind one name leaves nothing else to tell them apart by.
#[tokio::test]
async fn films_of_two_studies_are_no_study() {
    let (own, other) = (
        b"\x20\0\x0d\0UI\x06\x002.25.2",
        b"\x20\0\x0d\0UI\x06\x002.25.3",
    );
    let other = with(own, other);
    for files in [&[FILM, other][..], &[archive(&[FILM, other])]] {
        let refused = study(files, 128).await.err().expect("two studies");
        let said = refused.to_string();
        assert!(said.contains("SEVERAL_STUDIES"), "{said}");
    }
}

/// Values that are all air's are of another unit. Of its slices one suffices that is above water.
#[tokio::test]
async fn a_ct_without_a_value_above_water_is_refused() {
    // What is added to its values, where NIfTI says it: the last slice goes up to 755 HU.
    let lower_by = |lower: f32| -> &'static [u8] {
        let mut bytes = VOLUME.to_vec();
        bytes[116..120].copy_from_slice(&(-lower).to_le_bytes());
        Box::leak(bytes.into_boxed_slice())
    };
    let whole = study(&[lower_by(700.0)], 128).await.expect("frames");
    assert_eq!(whole.frames.len(), SLICES as usize);
    let refused = study(&[lower_by(755.0)], 128).await.err().expect("air");
    let said = refused.to_string();
    assert!(said.contains("NOT_HOUNSFIELD"), "{said}");
}

/// A state in another input, or in the archive of the film, mirrors it.
#[tokio::test]
async fn a_film_that_a_state_shows_mirrored_is_refused() {
    // Explicit little endian without a beginning: a state, of the film's UID, that mirrors it.
    let state: &'static [u8] = b"\x08\0\x16\0UI\x1c\x001.2.840.10008.5.1.4.1.1.11.1\
        \x08\0\x60\0CS\x02\0PR\
        \x08\0\x15\x11SQ\0\0\x2a\0\0\0\xfe\xff\0\xe0\x22\0\0\0\
        \x08\0\x40\x11SQ\0\0\x16\0\0\0\xfe\xff\0\xe0\x0e\0\0\0\
        \x08\0\x55\x11UI\x06\x002.25.1\
        \x70\0\x41\0CS\x02\0Y ";
    for files in [
        &[FILM, state][..],
        &[state, PICTURE, FILM],
        &[archive(&[FILM, state])],
    ] {
        let refused = study(files, 128).await.err().expect("a turned film");
        let said = refused.to_string();
        assert!(said.contains("SHOWN_TURNED"), "{said}");
    }
    let whole = study(&[PICTURE, state], 128).await.expect("no film");
    assert_eq!((whole.frames.len(), whole.unused.len()), (1, 1));
}

/// Each archive is within the limit, so that only the sum tells.
#[tokio::test]
async fn archives_with_too_many_frames_between_them_are_refused() {
    let archive = archive(&[PICTURE, PICTURE]);
    let whole = study(&[archive, archive], 4).await.expect("frames");
    assert_eq!(whole.frames.len(), 4);
    let refused = study(&[archive, archive], 3).await.err().expect("too many");
    assert!(
        matches!(refused, PreprocessError::Frames { max: 3 }),
        "{refused}"
    );
}

#[tokio::test]
async fn an_archive_that_is_broken_at_its_end_is_refused_though_its_frames_came() {
    let archive = archive(&[PICTURE, PICTURE]);
    let cut = &archive[..archive.len() - 1024 - 512];
    let refused = study(&[cut], 128).await.err().expect("half an archive");
    let truncated = matches!(
        &refused,
        PreprocessError::Refused { refusal, .. } if refusal.reason == Reason::Truncated
    );
    assert!(truncated, "{refused}");
}

/// Each file is within the limit, so that only the sum tells.
#[tokio::test]
async fn files_with_too_many_slices_between_them_are_refused() {
    let before = u64::from(Limits::default().slices_max - SLICES);
    let whole = study_with(&[VOLUME], 128, before, None).await;
    assert_eq!(whole.expect("frames").frames.len(), SLICES as usize);
    let refused = study_with(&[VOLUME], 128, before + 1, None).await;
    let refused = refused.err().expect("too many");
    let too_many = matches!(
        &refused,
        PreprocessError::Volume { refusal } if refusal.reason == Reason::TooManyFrames
    );
    assert!(too_many, "{refused}");
}

/// How many frames came though nobody waited any more once the first was there, and how the decode ended.
fn left_after_the_first(
    decode: impl FnOnce(&mut dyn FnMut()) -> Result<(), Refusal>,
) -> (u32, Option<Reason>) {
    let (stop, mut came) = (Stop::default(), 0);
    let outcome = stop.during(|| {
        decode(&mut || {
            came += 1;
            stop.stop();
        })
    });
    (came, outcome.err().map(|refusal| refusal.reason))
}

/// A thread cannot be ended, so that what it makes has to end by itself, whatever the format.
#[test]
fn what_nobody_waits_for_ends_with_the_frame_that_is_made() {
    let pool: PoolName = "tiny-main".parse().expect("a pool");
    let config = Config::new(&pool, 64);
    // On several threads the frames that are under way already come too (`threads` in the tests of medfleet-imaging).
    let options = options(&config, crate::frames::codecs(&config)).expect("settings");
    let options = options.on_threads(1);
    let archive = archive(&[PICTURE, PICTURE, PICTURE]);
    let pictures = left_after_the_first(|came| {
        let mut each = |_: Option<u32>, _: Decoded| came();
        read_input(archive, &options, 128, Patients::One, &mut each).map(drop)
    });
    assert_eq!(pictures, (1, Some(Reason::DecoderUnavailable)));
    let mut none = |_: Option<u32>, _: Decoded| panic!("slices stand for nothing by themselves");
    let read = read_input(VOLUME, &options, 128, Patients::One, &mut none).expect("a volume");
    let Some(Ok(Prepared::Slices(slices))) = read.parts.first().map(|part| &part.outcome) else {
        panic!("slices")
    };
    let plan = plan_volume(&[(0, &**slices)], options.convention()).expect("a plan");
    let wanted = [(None::<u32>, (0..SLICES).collect::<Vec<u32>>())];
    let volume = left_after_the_first(|came| {
        let mut each =
            |_: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| -> Result<(), Refusal> {
                slice?;
                came();
                Ok(())
            };
        decode_parts(VOLUME, &wanted, &plan, &options, &mut each)
    });
    assert_eq!(volume, (1, Some(Reason::DecoderUnavailable)));
}
