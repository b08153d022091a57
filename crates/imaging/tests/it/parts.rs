//! Inputs that are archives: their files are those of the study, and what lies beside a DICOMDIR is left out.

use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use medfleet_imaging::{
    Convention, Decoded, Frame, FrameInfo, Limits, Options, Part, Patients, Prepared, Reason,
    Refusal, Slices, decode_parts, decode_slices, examination, identifiers, is_dicom_directory,
    plan_volume, prepare_parts, read_input, unpacks,
};
use medfleet_testkit::tar;

use crate::synthetic::{file, set};
use crate::volumes;

fn options() -> Options {
    Options::new(8, Limits::default()).unwrap()
}

/// A file that only says that it is a DICOMDIR.
fn directory() -> Vec<u8> {
    let mut object = InMemDicomObject::new_empty();
    set(&mut object, tags::FILE_SET_ID, "DISC");
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(uids::MEDIA_STORAGE_DIRECTORY_STORAGE)
        .media_storage_sop_instance_uid("2.25.9");
    let mut bytes = Vec::new();
    let object = object.with_meta(meta).unwrap();
    object.write_all(&mut bytes).unwrap();
    bytes
}

/// An axial CT slice at this height.
fn slice(z: u32) -> Vec<u8> {
    volumes::slice(f64::from(z), |object| {
        set(object, tags::PATIENT_ID, "PLANTED-7");
    })
}

fn parts(files: &[(&str, &[u8])]) -> Vec<Part> {
    prepare_parts(&tar(files), &options(), 128).unwrap()
}

/// What became of each file: nothing, or why not.
fn refused(parts: &[Part]) -> Vec<Option<Reason>> {
    let outcomes = parts.iter().map(|part| part.outcome.as_ref());
    outcomes
        .map(|outcome| outcome.err().map(|refusal| refusal.reason))
        .collect()
}

#[test]
fn a_directory_and_what_lies_beside_it_are_left_out() {
    let (picture, dicom) = (
        include_bytes!("../golden/formats/gm-grey.png"),
        file(|_| {}),
    );
    let found = parts(&[
        ("AUTORUN.INF", b"[autorun]"),
        ("IMAGES/1", &dicom),
        ("ICON.PNG", picture),
        ("DICOMDIR", &directory()),
        ("IMAGES/UNLISTED", &dicom),
    ]);
    let beside = Some(Reason::BesideDirectory);
    assert_eq!(
        refused(&found),
        [beside, None, beside, Some(Reason::DicomDirectory), None]
    );
    let left_out = |refusal: &Refusal| refusal.leaves_out();
    assert!(
        found
            .iter()
            .filter_map(|part| part.outcome.as_ref().err())
            .all(left_out)
    );
    // Without the directory the picture is a picture, and the other file is refused.
    let found = parts(&[("AUTORUN.INF", b"[autorun]"), ("ICON.PNG", picture)]);
    assert_eq!(refused(&found), [Some(Reason::NotAnImage), None]);
    assert!(!found[0].outcome.as_ref().unwrap_err().leaves_out());
}

#[test]
fn a_directory_is_told_from_its_beginning() {
    let bytes = directory();
    assert!(is_dicom_directory(&bytes) && is_dicom_directory(&bytes[..bytes.len().min(1024)]));
    assert!(!is_dicom_directory(&file(|_| {})) && !is_dicom_directory(b"DICOMDIR"));
}

#[test]
fn slices_of_an_archive_are_a_volume() {
    let files: Vec<Vec<u8>> = [3, 1, 2].map(slice).to_vec();
    let named: Vec<(&str, &[u8])> = files
        .iter()
        .map(|bytes| ("../../x", bytes.as_slice()))
        .collect();
    let archive = tar(&named);
    let prepared = prepare_parts(&archive, &options(), 128).unwrap();
    let slices: Vec<(usize, &Slices)> = prepared
        .iter()
        .map(|part| match &part.outcome {
            Ok(Prepared::Slices(slices)) => (part.member.unwrap() as usize, &**slices),
            other => panic!("{other:?}"),
        })
        .collect();
    let plan = plan_volume(&slices, Convention::newest()).unwrap();
    assert_eq!(plan.frames, [(1, 0), (2, 0), (0, 0)]);
    let wanted = [(Some(1), vec![0]), (Some(0), vec![0])];
    let mut decoded = Vec::new();
    let mut each = |member, slice: Result<(Frame, FrameInfo), Refusal>| -> Result<(), Refusal> {
        decoded.push((member, slice?.0));
        Ok(())
    };
    decode_parts(&archive, &wanted, &plan, &options(), &mut each).unwrap();
    // In the order of the archive.
    assert_eq!([decoded[0].0, decoded[1].0], [Some(0), Some(1)]);
    let alone = decode_slices(&files[1], &[0], &plan, &options()).unwrap();
    assert_eq!(decoded[1].1, alone[0].0);
}

#[test]
fn a_slice_that_is_refused_takes_no_other_with_it_unless_that_is_asked_for() {
    let files: Vec<Vec<u8>> = [1, 2, 3].map(slice).to_vec();
    let prepared = parts(&[("1", &files[0]), ("2", &files[1]), ("3", &files[2])]);
    let slices = prepared.iter().map(|part| match &part.outcome {
        Ok(Prepared::Slices(slices)) => (part.member.unwrap() as usize, &**slices),
        other => panic!("{other:?}"),
    });
    let plan = plan_volume(&slices.collect::<Vec<_>>(), Convention::newest()).unwrap();
    let archive = tar(&[("1", &files[0]), ("2", b"no image"), ("3", &files[2])]);
    let wanted = [0, 1, 2].map(|member| (Some(member), vec![0]));
    let decode = |ends: bool| {
        let mut came = Vec::new();
        let mut each = |member: Option<u32>, slice: Result<(Frame, FrameInfo), Refusal>| {
            let refused = slice.err();
            came.push((member, refused.as_ref().map(|refusal| refusal.reason)));
            refused.filter(|_| ends).map_or(Ok(()), Err)
        };
        let outcome = decode_parts(&archive, &wanted, &plan, &options(), &mut each);
        (outcome.map_err(|refusal| refusal.reason), came)
    };
    let refused = Some(Reason::NotAnImage);
    let all = vec![(Some(0), None), (Some(1), refused), (Some(2), None)];
    assert_eq!(decode(false), (Ok(()), all.clone()));
    assert_eq!(decode(true), (Err(Reason::NotAnImage), all[..2].to_vec()));
}

/// A deflated file within an archive is unpacked twice: the file, and its data set beside it.
#[test]
fn what_is_unpacked_at_a_time_has_a_limit() {
    let deflated = include_bytes!("../codecs/deflated.dcm");
    let native = include_bytes!("../codecs/native.dcm");
    assert!(unpacks(deflated) && !unpacks(native));
    let archive = tar(&[("1", native), ("2", deflated)]);
    assert!(unpacks(&archive));
    let reason = |bytes: &[u8], room: usize| {
        let options = options().unpacking(room as u64);
        let found = prepare_parts(bytes, &options, 3).map_err(|refusal| refusal.reason)?;
        let [.., Part { outcome, .. }] = found.as_slice() else {
            panic!("one part at least")
        };
        outcome.as_ref().map_err(|refusal| refusal.reason)?;
        identifiers(bytes, options.limits()).map_err(|refusal| refusal.reason)
    };
    let small = Err(Reason::UnpackedTooLarge);
    assert!(reason(native, 0).is_ok());
    assert_eq!(reason(deflated, 0).map(drop), small);
    assert_eq!(reason(&archive, native.len() - 1).map(drop), small);
    // Enough for either file, and not for what is in the second.
    assert_eq!(reason(&archive, native.len()).map(drop), small);
    assert!(reason(&archive, deflated.len() + native.len()).is_ok());
}

#[test]
fn frames_of_an_archive_have_a_limit() {
    let dicom = file(|_| {});
    let archive = tar(&[("1", &dicom), ("2", &dicom), ("3", &dicom)]);
    let found = |most| prepare_parts(&archive, &options(), most).map(|parts| parts.len());
    assert_eq!(found(3).unwrap(), 3);
    assert_eq!(found(2).unwrap_err().reason, Reason::TooManyFrames);
    let half = prepare_parts(&archive[..archive.len() / 2], &options(), 3);
    assert_eq!(half.unwrap_err().reason, Reason::Truncated);
}

/// What is kept of each is little, and of very many it is much.
#[test]
fn slices_of_an_archive_have_a_limit() {
    let files: Vec<Vec<u8>> = [1, 2, 3].map(slice).to_vec();
    let archive = tar(&[("1", &files[0]), ("2", &files[1]), ("3", &files[2])]);
    let found = |slices_max| {
        let limits = Limits {
            slices_max,
            ..Limits::default()
        };
        let options = Options::new(8, limits).unwrap();
        let found = prepare_parts(&archive, &options, 128);
        found
            .map(|parts| parts.len())
            .map_err(|refusal| refusal.reason)
    };
    assert_eq!(found(3), Ok(3));
    assert_eq!(found(2), Err(Reason::TooManyFrames));
}

#[test]
fn an_archive_is_read_once_for_all_that_is_known_of_it() {
    let archive = tar(&[("1", &slice(1)), ("2", b"no image"), ("3", &slice(2))]);
    let read = |patients| {
        let mut none = |_, _| panic!("slices stand for nothing by themselves");
        read_input(&archive, &options(), 128, patients, &mut none).unwrap()
    };
    let found = read(Patients::Known);
    let parts = prepare_parts(&archive, &options(), 128).unwrap();
    assert_eq!(refused(&found.parts), refused(&parts));
    let text = "Planted, Name: what about the left lung?";
    let screened = found.identifiers.screen(text).text;
    let separately = identifiers(&archive, options().limits()).unwrap();
    assert_eq!(screened, separately.screen(text).text);
    assert_ne!(screened, text);
    let examined = examination(&archive, options().limits()).unwrap();
    assert!(found.examination == examined && examined.is_some());
    assert!(read(Patients::One).examination.is_some());
    assert!(read(Patients::Any).examination.is_none());
}

/// Where each is looked at by itself they may be of any.
#[test]
fn an_archive_of_two_patients_is_refused_where_it_is_to_be_of_one() {
    let of = |id: &str| file(|object| set(object, tags::PATIENT_ID, id));
    let read = |ids: [&str; 3], patients| {
        let files = ids.map(of);
        let archive = tar(&[("1", &files[0]), ("2", &files[1]), ("3", &files[2])]);
        let read = read_input(&archive, &options(), 128, patients, &mut |_, _| {});
        read.err().map(|refusal| refusal.reason)
    };
    let different = Some(Reason::DifferentPatients);
    assert_eq!(read(["12", "", "13"], Patients::One), different);
    assert_eq!(read(["12", "", "13"], Patients::Any), None);
    assert_eq!(read(["12", "", "12"], Patients::One), None);
    // To be compared with others it must be known.
    assert_eq!(read(["12", "", "12"], Patients::Known), different);
}

/// Their headers name nobody, so that they may be of two patients. What is no image may be of any study.
#[test]
fn an_archive_of_two_studies_is_refused_where_it_is_to_be_of_one() {
    let of = |study: &str, id: &str| {
        file(|object| {
            set(object, tags::PATIENT_ID, id);
            set(object, tags::STUDY_INSTANCE_UID, study);
        })
    };
    let read = |files: &[Vec<u8>], patients| {
        let files: Vec<_> = files.iter().map(|file| ("1", file.as_slice())).collect();
        let read = read_input(&tar(&files), &options(), 128, patients, &mut |_, _| {});
        read.err().map(|refusal| refusal.reason)
    };
    let several = Some(Reason::SeveralStudies);
    let unnamed = [of("2.25.7", ""), of("2.25.8", "")];
    assert_eq!(read(&unnamed, Patients::One), several);
    assert_eq!(read(&unnamed, Patients::Any), None);
    let named = [of("2.25.7", "12"), of("2.25.8", "12")];
    assert_eq!(read(&named, Patients::One), several);
    assert_eq!(read(&named, Patients::Known), several);
    // Of one day they may be one's exposures.
    let exposures = ["2.25.7", "2.25.8"].map(|study| {
        file(|object| {
            set(object, tags::PATIENT_ID, "12");
            set(object, tags::PATIENT_BIRTH_DATE, "19500102");
            set(object, tags::STUDY_DATE, "20240229");
            set(object, tags::STUDY_INSTANCE_UID, study);
        })
    });
    assert_eq!(read(&exposures, Patients::One), None);
    assert_eq!(read(&exposures, Patients::Known), several);
    let report = file(|object| {
        set(object, tags::PATIENT_ID, "12");
        set(object, tags::STUDY_INSTANCE_UID, "2.25.8");
        object.remove_element(tags::PIXEL_DATA);
    });
    let beside = [of("2.25.7", "12"), report, of("2.25.7", "12")];
    assert_eq!(read(&beside, Patients::One), None);
    assert_eq!(read(&beside, Patients::Known), None);
}

/// Contours, documents and raw data lie beside images, and had the whole study refused for their size.
#[test]
fn what_has_no_image_may_be_larger_than_a_header() {
    let with_remark = |change: &dyn Fn(&mut InMemDicomObject)| {
        file(|object| {
            set(object, tags::IMAGE_COMMENTS, "a".repeat(2000));
            change(object);
        })
    };
    let limits = Limits {
        header_bytes_max: 2000,
        ..Limits::default()
    };
    let options = Options::new(8, limits).unwrap();
    let read = |files: &[Vec<u8>]| {
        let files: Vec<_> = files.iter().map(|file| ("1", file.as_slice())).collect();
        let read = read_input(&tar(&files), &options, 8, Patients::One, &mut |_, _| {});
        refused(&read.unwrap().parts)
    };
    let report = with_remark(&|object: &mut InMemDicomObject| {
        drop(object.take_element(tags::PIXEL_DATA));
    });
    let film = with_remark(&|_: &mut InMemDicomObject| {});
    let expected = [
        None,
        Some(Reason::NoPixelData),
        Some(Reason::TooLarge),
        None,
    ];
    assert_eq!(read(&[file(|_| {}), report, film, file(|_| {})]), expected);
}

/// Without a value representation it may be as long as the file.
#[test]
fn whose_an_image_is_is_not_read_beyond_a_header() {
    let of = |study: &str, header_bytes_max| {
        let film = file(|object| {
            set(object, tags::PATIENT_COMMENTS, "a".repeat(2000));
            set(object, tags::STUDY_INSTANCE_UID, study);
        });
        let limits = Limits {
            header_bytes_max,
            ..Limits::default()
        };
        examination(&film, &limits).unwrap()
    };
    assert!(of("2.25.7", 4000) != of("2.25.8", 4000));
    assert!(of("2.25.7", 2000) == of("2.25.8", 2000));
}

#[test]
fn an_archive_with_a_header_that_cannot_be_walked_is_refused_as_a_whole() {
    let good = file(|_| {});
    let broken = &good[..good.len() - 70];
    let archive = tar(&[("1", &good), ("2", broken)]);
    let separately = identifiers(&archive, options().limits()).err();
    let mut came = 0;
    let reason = read_input(&archive, &options(), 128, Patients::One, &mut |_, _| {
        came += 1
    })
    .err();
    assert!(reason.is_some());
    assert_eq!(reason, separately);
    // The frame of the good one was not held until then.
    assert_eq!(came, 1);
}

#[test]
fn frames_of_an_archive_come_before_its_last_file_is_read() {
    let dicom = file(|_| {});
    let archive = tar(&[
        ("1", &dicom),
        ("2", b"no image"),
        ("3", &dicom),
        ("4", &dicom),
    ]);
    let read = |bytes: &[u8], most| {
        let mut came = Vec::new();
        let mut each = |member: Option<u32>, decoded: Decoded| {
            came.push((member, decoded.frames));
        };
        let read = read_input(bytes, &options(), most, Patients::One, &mut each);
        (read.map_err(|refusal| refusal.reason), came)
    };
    let (whole, came) = read(&archive, 3);
    let members: Vec<Option<u32>> = came.iter().map(|(member, _)| *member).collect();
    assert_eq!(members, [Some(0), Some(2), Some(3)]);
    // What is kept of each file has none of them.
    let kept = prepare_parts(&archive, &options(), 3).unwrap();
    let parts = whole.unwrap().parts;
    assert_eq!(parts.len(), kept.len());
    for (part, kept) in parts.iter().zip(&kept) {
        let frames = |part: &Part| match &part.outcome {
            Ok(Prepared::Frames(decoded)) => Some(decoded.frames.clone()),
            _ => None,
        };
        assert_eq!(
            frames(part).map(|frames| frames.len()),
            frames(kept).map(|_| 0)
        );
        let came = came.iter().find(|(member, _)| *member == part.member);
        assert_eq!(came.map(|(_, frames)| frames.clone()), frames(kept));
    }
    // They came all the same where the rest refuses the whole.
    let cut = archive.len() - 1024 - dicom.len();
    let (refused, came) = read(&archive[..cut], 3);
    assert_eq!((refused.err(), came.len()), (Some(Reason::Truncated), 2));
    // No more of them than the limit lets in.
    let (refused, came) = read(&archive, 2);
    assert_eq!(
        (refused.err(), came.len()),
        (Some(Reason::TooManyFrames), 2)
    );
}
