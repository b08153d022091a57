//! When texts wait, and what a backlog gains by it, in virtual time.

use super::*;

const IMAGE: Duration = Duration::from_secs(4);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn coming(class: Class) -> Coming {
    Coming {
        class,
        usual: IMAGE,
    }
}

/// A routine text that has just come.
fn fresh() -> Text {
    Text {
        class: Class::Routine,
        written: 0,
        tokens_max: 100,
        waited: Duration::ZERO,
        ends_by: None,
    }
}

/// Passes take 50 ms and 5 for each text; texts have 100 tokens.
fn measured() -> Company {
    let mut company = Company::default();
    for texts in [1, 2, 4] {
        company.passed(texts, seconds(0.05 + 0.005 * texts as f64));
    }
    company.ended(100);
    company
}

/// How long texts wait at most for a routine job's, where 16 may be written together.
fn wait(company: &Company, texts: &[Text]) -> Option<Duration> {
    let now = Instant::now();
    let until = company.waits(now, texts, 16, coming(Class::Routine));
    until.map(|until| until - now)
}

#[test]
fn stat_waits_for_nobody_and_others_for_none_below_them() {
    let company = measured();
    let check = |texts: &[Class], image, expected| {
        let of = |class: &Class| Text {
            class: *class,
            ..fresh()
        };
        let texts: Vec<Text> = texts.iter().map(of).collect();
        let until = company.waits(Instant::now(), &texts, 16, coming(image));
        assert_eq!(until.is_some(), expected, "{texts:?} {image}");
    };
    check(&[Class::Routine], Class::Routine, true);
    check(&[Class::Routine], Class::Stat, true);
    check(&[Class::Routine], Class::Bulk, false);
    check(&[Class::Urgent], Class::Urgent, true);
    check(&[Class::Urgent], Class::Routine, false);
    check(&[Class::Stat], Class::Stat, false);
    check(&[Class::Routine, Class::Stat], Class::Routine, false);
    check(&[Class::Bulk, Class::Urgent], Class::Routine, false);
}

#[test]
fn a_company_grows_as_long_as_one_more_is_noticed() {
    let company = measured();
    // 100 tokens of 50 ms are spared among n + 1 texts: 2.5 s of 9.5 for the second, 0.17 s of 5.5 for the sixth.
    let grows = |texts: usize| wait(&company, &vec![fresh(); texts]).is_some();
    assert_eq!((1..16).find(|texts| !grows(*texts)), Some(6));
    assert!(!grows(0), "there is nobody who could wait");
    let places = |most| {
        let texts = vec![fresh(); 3];
        company.waits(Instant::now(), &texts, most, coming(Class::Routine))
    };
    assert!(places(4).is_some() && places(3).is_none());
}

#[test]
fn short_texts_and_those_that_end_soon_go_on() {
    let company = measured();
    let check = |written, tokens_max, expected| {
        let text = Text {
            written,
            tokens_max,
            ..fresh()
        };
        assert_eq!(wait(&company, &[text]).is_some(), expected, "{written}");
    };
    check(0, 100, true);
    check(0, 5, false);
    check(50, 100, true);
    check(95, 100, false);
    // Longer than usual already: nobody knows for how long.
    check(120, 1_000, false);
    let mut labels = measured();
    for _ in 0..100 {
        labels.ended(3);
    }
    assert!(wait(&labels, &[fresh()]).is_some(), "reports are long");
    labels.length = Some(3.0);
    assert_eq!(wait(&labels, &[fresh()]), None);
    labels.ended(100);
    assert!(wait(&labels, &[fresh()]).is_some());
}

#[test]
fn a_text_waits_for_no_more_than_the_images_of_a_full_company() {
    let company = measured();
    assert_eq!(wait(&company, &[fresh()]), Some(IMAGE * 6));
    let after = |waited| Text { waited, ..fresh() };
    let texts = [after(IMAGE * 5), fresh()];
    assert_eq!(wait(&company, &texts), Some(IMAGE), "the first has waited");
    assert_eq!(wait(&company, &[after(IMAGE * 6), fresh()]), None);
    // Before anything was measured it is for four.
    let company = Company::default();
    assert_eq!(wait(&company, &[fresh()]), Some(IMAGE * 4));
    assert_eq!(wait(&company, &[fresh(); 4]), None);
}

#[test]
fn a_job_whose_time_is_nearly_over_waits_for_nobody() {
    let company = measured();
    let check = |left, expected| {
        let now = Instant::now();
        let text = Text {
            ends_by: Some(now + seconds(left)),
            ..fresh()
        };
        let until = company.waits(now, &[fresh(), text], 16, coming(Class::Routine));
        assert_eq!(until.is_some(), expected, "{left}");
    };
    // 24 s that it may wait, as long again, and twice 100 passes of 16 texts.
    check(48.0 + 2.0 * 100.0 * 0.13 + 1.0, true);
    check(48.0 + 2.0 * 100.0 * 0.13 - 1.0, false);
    check(0.0, false);
}

#[test]
fn what_a_pass_takes_is_a_part_of_its_own_and_one_for_each_text() {
    let near = |line: Option<Line>, fixed: f64, each: f64| {
        let line = line.expect("was measured");
        let is_near = (line.fixed - fixed).abs() < 1e-9 && (line.each - each).abs() < 1e-9;
        assert!(is_near, "{line:?}");
    };
    assert_eq!(Company::default().line(), None);
    near(measured().line(), 0.05, 0.005);
    let mut company = Company::default();
    company.passed(3, seconds(0.06));
    near(company.line(), 0.06, 0.0);
    // Four take less than one, which was disturbed: no part is below nothing.
    company.passed(1, seconds(0.09));
    assert!(company.line().is_some_and(|line| line.each == 0.0));
    // It takes many slow passes to be believed, and few quick ones.
    let mut company = Company::default();
    company.passed(1, seconds(0.08));
    company.passed(1, seconds(0.16));
    near(company.line(), 0.09, 0.0);
    company.passed(1, seconds(0.05));
    near(company.line(), 0.07, 0.0);
}

/// A machine with one device: seconds for an image, for the reading of a prompt, and of a pass.
#[derive(Clone, Copy)]
struct Machine {
    image: f64,
    read: f64,
    fixed: f64,
    each: f64,
}

/// MedGemma's shapes with two layers in each tower on two cores, about.
const SMALL: Machine = Machine {
    image: 4.2,
    read: 1.0,
    fixed: 0.065,
    each: 0.003,
};
/// Between the end of an image, its text at the decoder and the next image.
const ON_THE_WAY: f64 = 0.05;

/// A text in virtual time.
#[derive(Clone, Copy)]
struct Report {
    text: Text,
    at: f64,
    is_read: bool,
}

/// What became of a backlog.
#[derive(Debug, Default)]
struct Run {
    ends: Vec<f64>,
    /// When the last image was encoded, and the first pass was made.
    images: f64,
    first_pass: Option<f64>,
    waited: f64,
}

impl Run {
    fn last(&self) -> f64 {
        self.ends.iter().copied().fold(0.0, f64::max)
    }

    fn mean(&self) -> f64 {
        self.ends.iter().sum::<f64>() / self.ends.len() as f64
    }
}

/// Texts of these lengths, whose images are encoded one after the other; what goes at the same time takes twice as long.
fn backlog(machine: Machine, lengths: &[usize], waits: bool) -> Run {
    let (mut company, begun) = (Company::default(), Instant::now());
    company.passed(1, seconds(machine.fixed + machine.each));
    company.ended(lengths[0]);
    let mut images = lengths.iter().copied();
    let (mut image, mut free, mut now) = (None, 0.0, 0.0_f64);
    let (mut texts, mut run): (Vec<Report>, _) = (Vec::new(), Run::default());
    while run.ends.len() < lengths.len() {
        if image.is_none() && now >= free {
            image = images.next().map(|length| (length, machine.image));
        }
        let there = texts.iter().filter(|report| report.at <= now);
        let there: Vec<Text> = there.map(|report| report.text).collect();
        let coming = Coming {
            class: Class::Routine,
            usual: seconds(machine.image),
        };
        let until = image.filter(|_| waits).and_then(|_| {
            let until = company.waits(begun + seconds(now), &there, 16, coming)?;
            Some((until - begun).as_secs_f64())
        });
        // Seconds of the device that the image took meanwhile.
        let encoded;
        if until.is_some() || there.is_empty() {
            let ends = image.map(|(_, left)| now + left);
            let comes = texts.iter().map(|report| report.at);
            let next = comes.chain(ends).chain(until).chain([free]);
            let next = next.filter(|at| *at > now).fold(f64::INFINITY, f64::min);
            encoded = next - now;
            for report in texts.iter_mut().filter(|report| report.at <= now) {
                report.text.waited += seconds(encoded);
                run.waited = run.waited.max(report.text.waited.as_secs_f64());
            }
            now = next;
        } else {
            let (took, shared) = pass(machine, &mut texts, (now, image.map(|(_, left)| left)));
            run.first_pass.get_or_insert(now);
            if let Some(writing) = took.writing.filter(|_| image.is_none()) {
                company.passed(writing, seconds(took.clock));
            }
            (encoded, now) = (shared, now + took.clock);
            for report in
                texts.extract_if(.., |report| report.text.written == report.text.tokens_max)
            {
                company.ended(report.text.written);
                run.ends.push(now);
            }
        }
        if let Some((length, left)) = &mut image {
            *left -= encoded;
            if *left < 1e-9 {
                let text = Text {
                    tokens_max: *length,
                    ..fresh()
                };
                (free, run.images) = (now + ON_THE_WAY, now);
                texts.push(Report {
                    text,
                    at: free,
                    is_read: false,
                });
                image = None;
            }
        }
    }
    run
}

/// What a pass took by the clock, and of how many texts if it read nothing.
struct Took {
    clock: f64,
    writing: Option<usize>,
}

/// One pass at a time: a prompt is read, and a token written of each text that was. Also says how much of the image was done.
fn pass(machine: Machine, texts: &mut [Report], (now, image): (f64, Option<f64>)) -> (Took, f64) {
    let mut there: Vec<&mut Report> = texts.iter_mut().filter(|report| report.at <= now).collect();
    let mut work = 0.0;
    let writing = there.iter().filter(|report| report.is_read).count();
    if writing > 0 {
        work += machine.fixed + machine.each * writing as f64;
    }
    for report in there.iter_mut().filter(|report| report.is_read) {
        report.text.written += 1;
    }
    let unread = there.into_iter().find(|report| !report.is_read);
    let reads = unread.is_some();
    if let Some(report) = unread {
        report.is_read = true;
        work += machine.read;
    }
    let shared = image.unwrap_or(0.0).min(work);
    let took = Took {
        clock: work + shared,
        writing: (!reads).then_some(writing),
    };
    (took, shared)
}

#[test]
fn four_reports_are_written_together_once_their_images_are_made() {
    let (beside, together) = (
        backlog(SMALL, &[40; 4], false),
        backlog(SMALL, &[40; 4], true),
    );
    let is_early = |at: f64| at < 0.3 * beside.images;
    assert!(beside.first_pass.is_some_and(is_early), "{beside:?}");
    // In the moment between two images a prompt is read, or a token written.
    assert!(
        together.last() < 0.8 * beside.last(),
        "{together:?} {beside:?}"
    );
    assert!(together.ends[0] > together.images, "{together:?}");
    assert!(together.waited < 4.0 * SMALL.image, "{together:?}");
}

#[test]
fn a_long_backlog_is_done_sooner_and_nobody_waits_without_end() {
    let lengths: Vec<usize> = (0..32).map(|number| 40 + number * 37 % 111).collect();
    let (beside, together) = (
        backlog(SMALL, &lengths, false),
        backlog(SMALL, &lengths, true),
    );
    assert!(
        together.last() < 0.9 * beside.last(),
        "{together:?} {beside:?}"
    );
    // Also the mean report: those at the front wait, and all behind them gain.
    assert!(together.mean() < beside.mean(), "{together:?} {beside:?}");
    assert!(together.waited <= 16.0 * SMALL.image, "{together:?}");
}

#[test]
fn a_report_without_others_behind_it_never_waits() {
    let (alone, same) = (backlog(SMALL, &[40], false), backlog(SMALL, &[40], true));
    assert_eq!(alone.ends, same.ends);
    assert_eq!(same.waited, 0.0);
}

#[test]
fn where_images_take_far_longer_than_texts_nobody_waits() {
    let machine = Machine {
        image: 60.0,
        ..SMALL
    };
    let (beside, same) = (
        backlog(machine, &[20; 8], false),
        backlog(machine, &[20; 8], true),
    );
    assert_eq!(beside.ends, same.ends);
}
