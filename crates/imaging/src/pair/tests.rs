//! Orders of two headers that say less and less.

use super::*;

type Header<'a> = &'a [(Tag, &'a str)];

const ID: (Tag, &str) = (tags::PATIENT_ID, "12");
const NAME: (Tag, &str) = (tags::PATIENT_NAME, "ROE^JANE");
const BORN: (Tag, &str) = (tags::PATIENT_BIRTH_DATE, "19500102");
const STUDY: (Tag, &str) = (tags::STUDY_INSTANCE_UID, "2.25.7");
const OTHER_STUDY: (Tag, &str) = (tags::STUDY_INSTANCE_UID, "2.25.8");

fn of(header: Header<'_>) -> Examination {
    let mut dated = Dated::default();
    for (tag, value) in header {
        dated.read(*tag, value.as_bytes());
    }
    dated.examination()
}

#[track_caller]
fn check(first: Header<'_>, second: Header<'_>, expected: Result<PairOrder, Reason>) {
    let found = pair_order(Some(&of(first)), Some(&of(second))).map_err(|refusal| refusal.reason);
    assert_eq!(found, expected);
    let back = match expected {
        Ok(PairOrder::FirstIsPrior) => Ok(PairOrder::SecondIsPrior),
        Ok(PairOrder::SecondIsPrior) => Ok(PairOrder::FirstIsPrior),
        other => other,
    };
    let found = pair_order(Some(&of(second)), Some(&of(first))).map_err(|refusal| refusal.reason);
    assert_eq!(found, back);
}

/// Both of one patient.
#[track_caller]
fn dated(first: Header<'_>, second: Header<'_>, expected: Result<PairOrder, Reason>) {
    check(
        &[&[ID], first].concat(),
        &[&[ID], second].concat(),
        expected,
    );
}

#[test]
fn the_earlier_one_is_prior() {
    let first = Ok(PairOrder::FirstIsPrior);
    let study = |date| [(tags::STUDY_DATE, date)];
    dated(&study("20240229"), &study("20240301"), first);
    dated(&study("2023.12.31"), &study("20240101 "), first);
    // The date of acquisition goes before that of the study.
    let late = [
        (tags::STUDY_DATE, "20200101"),
        (tags::ACQUISITION_DATE, "20240302"),
    ];
    dated(&study("20240301"), &late, first);
    let exact = |text| {
        [
            (tags::ACQUISITION_DATE_TIME, text),
            (tags::ACQUISITION_DATE, "19990101"),
        ]
    };
    dated(
        &exact("20240301101112.5"),
        &exact("20240301101112.51"),
        first,
    );
    dated(&exact("20240301"), &exact("20240302"), first);
}

#[test]
fn times_count_within_a_day() {
    let at = |time| [(tags::STUDY_DATE, "20240301"), (tags::STUDY_TIME, time)];
    dated(&at("0910"), &at("101500.1"), Ok(PairOrder::FirstIsPrior));
    dated(&at("09:10:30"), &at("091031"), Ok(PairOrder::FirstIsPrior));
    dated(&at("091030"), &at("091030.0"), Err(Reason::SameAcquisition));
    for missing in ["", "09", "2561", "morning"] {
        dated(&at(missing), &at("101500"), Err(Reason::AcquisitionUnknown));
    }
}

#[test]
fn zones_are_taken_into_account_where_both_are_known() {
    let exact = |text| [(tags::ACQUISITION_DATE_TIME, text)];
    // 08:30 and 08:00 of the universal time.
    dated(
        &exact("20240301103000+0200"),
        &exact("20240301090000+0100"),
        Ok(PairOrder::SecondIsPrior),
    );
    dated(
        &exact("20240301003000+0200"),
        &exact("20240229223000+0000"),
        Err(Reason::SameAcquisition),
    );
    dated(
        &exact("20240301103000+0200"),
        &exact("20240301090000"),
        Ok(PairOrder::SecondIsPrior),
    );
}

#[test]
fn without_dates_nobody_knows() {
    let unknown = Err(Reason::AcquisitionUnknown);
    dated(&[], &[(tags::STUDY_DATE, "20240301")], unknown);
    for wrong in ["20241301", "20240001", "202403", "today", "00000101"] {
        dated(
            &[(tags::STUDY_DATE, wrong)],
            &[(tags::STUDY_DATE, "20240301")],
            unknown,
        );
    }
    let one = of(&[ID, (tags::STUDY_DATE, "20240301")]);
    assert_eq!(pair_order(None, None), Ok(PairOrder::AsGiven));
    let found = pair_order(Some(&one), None).map_err(|refusal| refusal.reason);
    assert_eq!(found, Err(Reason::AcquisitionUnknown));
}

#[test]
fn of_one_patient_or_not_at_all() {
    let (early, late) = (
        (tags::STUDY_DATE, "20240301"),
        (tags::STUDY_DATE, "20240401"),
    );
    let patients = |first: Header<'_>, second: Header<'_>, same: bool| {
        let expected = if same {
            Ok(PairOrder::FirstIsPrior)
        } else {
            Err(Reason::DifferentPatients)
        };
        check(
            &[first, &[early]].concat(),
            &[second, &[late]].concat(),
            expected,
        );
    };
    patients(&[ID], &[(tags::PATIENT_ID, "12 ")], true);
    patients(&[ID], &[(tags::PATIENT_ID, "13")], false);
    patients(&[], &[], false);
    patients(&[NAME, BORN], &[ID, NAME, BORN], true);
    patients(&[NAME], &[NAME], false);
    patients(
        &[ID, BORN],
        &[ID, (tags::PATIENT_BIRTH_DATE, "19500103")],
        false,
    );
    let issued = |by| [ID, (tags::ISSUER_OF_PATIENT_ID, by)];
    patients(&issued("A"), &issued("B"), false);
    patients(&issued("A"), &[ID], true);
    // Two examinations are two studies as a rule.
    patients(&[ID, STUDY], &[ID, OTHER_STUDY], true);
}

#[test]
fn what_is_looked_at_together_is_of_one_patient() {
    let check = |headers: &[Header<'_>], expected: bool| {
        let examinations: Vec<_> = headers.iter().map(|header| Some(of(header))).collect();
        assert_eq!(one_study(&examinations).is_ok(), expected, "{headers:?}");
    };
    let other = (tags::PATIENT_ID, "13");
    let born_later = (tags::PATIENT_BIRTH_DATE, "19500103");
    check(&[], true);
    check(&[&[ID], &[], &[ID, NAME]], true);
    check(&[&[ID], &[(tags::PATIENT_NAME, "ROE")]], true);
    check(&[&[ID], &[], &[other]], false);
    check(&[&[NAME, BORN], &[ID], &[NAME, born_later]], false);
    assert!(one_study(&[None, Some(of(&[ID])), None]).is_ok());
}

/// Of headers that name nobody, or all the same one, nothing else tells two patients apart.
#[test]
fn what_is_looked_at_together_is_of_one_study() {
    let check = |headers: &[Header<'_>], expected: Option<Reason>| {
        let examinations: Vec<_> = headers.iter().map(|header| Some(of(header))).collect();
        let refused = one_study(&examinations).err();
        assert_eq!(
            refused.map(|refusal| refusal.reason),
            expected,
            "{headers:?}"
        );
    };
    let several = Some(Reason::SeveralStudies);
    check(
        &[&[STUDY], &[], &[(tags::STUDY_INSTANCE_UID, "2.25.7\0")]],
        None,
    );
    check(&[&[STUDY], &[], &[OTHER_STUDY]], several);
    check(&[&[ID, STUDY], &[ID, OTHER_STUDY]], several);
}

/// A device without a worklist makes a study of each exposure.
#[test]
fn studies_of_one_patient_and_day_are_looked_at_together() {
    const DAY: (Tag, &str) = (tags::STUDY_DATE, "20240229");
    let check = |headers: &[Header<'_>], together: bool| {
        let examinations: Vec<_> = headers.iter().map(|header| Some(of(header))).collect();
        let back: Vec<_> = examinations.iter().rev().cloned().collect();
        for examinations in [examinations, back] {
            let refused = one_study(&examinations).err();
            let expected = (!together).then_some(Reason::SeveralStudies);
            assert_eq!(
                refused.map(|refusal| refusal.reason),
                expected,
                "{headers:?}"
            );
        }
    };
    let one: Header<'_> = &[ID, BORN, DAY, STUDY];
    let other: Header<'_> = &[ID, BORN, DAY, OTHER_STUDY];
    let third: Header<'_> = &[ID, BORN, DAY, (tags::STUDY_INSTANCE_UID, "2.25.9")];
    check(&[one, other, third], true);
    // One that is of no study tells nothing about one.
    check(&[one, other, &[ID]], true);
    check(&[&[ID, BORN, DAY], one, &[ID, DAY, OTHER_STUDY]], false);
    for header in [
        &[ID, BORN, OTHER_STUDY][..],
        &[ID, DAY, OTHER_STUDY],
        &[BORN, DAY, OTHER_STUDY],
        &[ID, BORN, (tags::STUDY_DATE, "20240301"), OTHER_STUDY],
        &[
            (tags::PATIENT_IDENTITY_REMOVED, "YES"),
            ID,
            BORN,
            DAY,
            OTHER_STUDY,
        ],
    ] {
        check(&[one, header], false);
        check(&[one, other, header], false);
        check(&[other, header, one], false);
    }
    // Who hides names may write one date for all.
    let born: Header<'_> = &[ID, BORN, (tags::STUDY_DATE, BORN.1), STUDY];
    let born_as_well: Header<'_> = &[ID, BORN, (tags::STUDY_DATE, BORN.1), OTHER_STUDY];
    check(&[born, born_as_well], false);
    // Each of two to be compared is one study.
    let compared = of(one).with(of(other)).err();
    assert_eq!(
        compared.map(|refusal| refusal.reason),
        Some(Reason::SeveralStudies)
    );
}

#[test]
fn it_says_nothing_about_a_patient() {
    assert_eq!(format!("{:?}", of(&[ID, NAME, BORN])), "Examination { .. }");
}
