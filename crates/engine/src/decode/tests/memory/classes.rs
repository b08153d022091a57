//! Classes: who goes first, who gives way to whom, and that nobody waits without end.

use std::time::Instant;

use tokio::task::yield_now;

use super::*;
use crate::turns::OVERTAKEN_MAX;

/// How long a state may take to come.
const SOON: Duration = Duration::from_secs(30);

impl Recorded {
    fn passes(&self) -> Vec<Vec<(u64, u32)>> {
        self.passes.lock().expect("no panic").clone()
    }

    /// Sends these; once so many passes have begun, of which the last one waits, sends one more.
    async fn then(&self, first: &[DecodeRequest], passes: usize, then: &DecodeRequest) -> Results {
        let mut running = send(self, first);
        open(self).await;
        let begun = Instant::now();
        while self.passes().len() < passes {
            assert!(begun.elapsed() < SOON, "{passes} passes do not begin");
            yield_now().await;
        }
        running.extend(send(self, std::slice::from_ref(then)));
        open(self).await;
        read(running).await
    }
}

/// How often each gave way; its text is the one that it has alone.
fn preemptions<'a>(
    results: Results,
    requests: impl IntoIterator<Item = &'a DecodeRequest>,
) -> Vec<u32> {
    let each = results.into_iter().zip(requests);
    let each = each.map(|(result, request)| {
        let (text, done) = result.expect("nothing is lost");
        assert_eq!(text, expected(request), "and nothing is repeated");
        done.preemptions
    });
    each.collect()
}

#[tokio::test]
async fn a_text_of_stat_begins_with_the_next_pass_wherever_it_fits() {
    // 1 + 30 tokens of prompt and 16 of text take three blocks. Once memory is short, once places are.
    let gives: Vec<(u64, u32)> = vec![(2, 31), (0, 1)];
    let goes_on = [&gives[..], &[(1, 1)]].concat();
    for (sequences_max, blocks, last, next) in [(4, 6, 1, gives), (2, 100, 0, goes_on)] {
        let limits = DecodeLimits {
            sequences_max,
            ..WHOLE
        };
        let recorded = held(limits, blocks, &[0, 3]);
        let routine = [1, 2].map(|salt| of(Class::Routine, long(30, salt, &[], 16)));
        let stat = of(Class::Stat, long(30, 3, &[], 16));
        let results = recorded.then(&routine, 4, &stat).await;
        let gave_way = preemptions(results, routine.iter().chain([&stat]));
        assert_eq!(gave_way, [0, last, 0], "the last of them");
        let passes = recorded.passes();
        assert_eq!(passes[4], next, "{passes:?}");
    }
}

#[tokio::test]
async fn a_text_of_stat_takes_no_place_from_the_others() {
    let limits = DecodeLimits {
        sequences_max: 1,
        ..WHOLE
    };
    let recorded = held(limits, 100, &[0, 1]);
    let stat = of(Class::Stat, long(30, 1, &[], 16));
    let routine = of(Class::Routine, long(30, 2, &[], 4));
    let first = std::slice::from_ref(&stat);
    let results = recorded.then(first, 2, &routine).await;
    assert_eq!(preemptions(results, [&stat, &routine]), [0, 0]);
    let passes = recorded.passes();
    assert_eq!(passes[2], [(0, 1), (1, 31)], "{passes:?}");
}

#[tokio::test]
async fn a_lower_class_gives_way_where_that_makes_room_for_stat_and_nowhere_else() {
    // Of blocks of 16 the one of STAT that writes has three and the routine one has one. The next of STAT needs five of six,
    // too many beside the first whatever the routine one does; or four of seven, which is enough without the routine one.
    let waits: Vec<(u64, u32)> = vec![(0, 1), (1, 1)];
    let begins = vec![(0, 1), (2, 48)];
    for (blocks, words, preempted, expected) in [(6, 63, 0, waits), (7, 47, 1, begins)] {
        let recorded = held(WHOLE, blocks, &[0, 2]);
        let first = [
            of(Class::Stat, long(30, 1, &[], 16)),
            of(Class::Routine, long(3, 2, &[], 11)),
        ];
        let next = of(Class::Stat, long(words, 3, &[], 4));
        let results = recorded.then(&first, 3, &next).await;
        let gave_way = preemptions(results, first.iter().chain([&next]));
        assert_eq!(gave_way, [0, preempted, 0], "{words} words");
        let passes = recorded.passes();
        assert_eq!(passes[3], expected, "{passes:?}");
    }
}

#[tokio::test]
async fn a_text_of_another_class_waits_for_room_and_goes_before_lower_ones() {
    let limits = DecodeLimits {
        sequences_max: 1,
        ..WHOLE
    };
    let recorded = held(limits, 100, &[0, 1]);
    let routine = [1, 2].map(|salt| of(Class::Routine, long(3, salt, &[], 4)));
    let urgent = of(Class::Urgent, long(3, 3, &[], 4));
    let results = recorded.then(&routine, 2, &urgent).await;
    let gave_way = preemptions(results, routine.iter().chain([&urgent]));
    assert_eq!(gave_way, [0, 0, 0]);
    assert_eq!(ends(&recorded.passes()), [0, 2, 1]);
}

/// The sequences in the order in which they ended.
fn ends(passes: &[Vec<(u64, u32)>]) -> Vec<u64> {
    let mut ends: Vec<u64> = Vec::new();
    for (sequence, _) in passes.iter().flatten() {
        ends.retain(|other| other != sequence);
        ends.push(*sequence);
    }
    ends
}

#[tokio::test]
async fn a_prompt_of_stat_is_read_before_one_that_is_under_way() {
    let recorded = held(LIMITS, 100, &[0, 2]);
    let routine = of(Class::Routine, long(60, 1, &[], 4));
    let stat = of(Class::Stat, long(10, 2, &[], 4));
    let results = recorded
        .then(std::slice::from_ref(&routine), 3, &stat)
        .await;
    assert_eq!(preemptions(results, [&routine, &stat]), [0, 0]);
    let passes = recorded.passes();
    assert_eq!(passes[2], [(0, 8)]);
    assert_eq!(passes[3], [(1, 8)], "{passes:?}");
    assert_eq!(passes[4], [(1, 3), (0, 5)], "{passes:?}");
}

#[tokio::test]
async fn when_memory_runs_out_the_lower_class_gives_way_though_it_is_older() {
    // Both prompts fit five blocks, and not both whole texts.
    let recorded = recorded(WHOLE, 5);
    let requests = [
        of(Class::Routine, long(30, 1, &[], 16)),
        of(Class::Stat, long(30, 2, &[], 16)),
    ];
    let results = all(&recorded, requests.to_vec()).await;
    let gave_way = preemptions(results, &requests);
    assert!(gave_way[0] > 0 && gave_way[1] == 0, "{gave_way:?}");
}

#[tokio::test]
async fn who_was_passed_often_is_passed_no_more() {
    let limits = DecodeLimits {
        queue_max: 16,
        ..WHOLE
    };
    let most = u64::from(OVERTAKEN_MAX);
    // There is memory for one.
    let recorded = recorded(limits, 1);
    let mut requests = vec![of(Class::Routine, long(3, 0, &[], 2))];
    requests.extend((1..=most + 2).map(|salt| of(Class::Stat, long(3, salt, &[], 2))));
    let results = all(&recorded, requests.clone()).await;
    preemptions(results, &requests);
    let order: Vec<u64> = (1..=most).chain([0, most + 1, most + 2]).collect();
    assert_eq!(ends(&recorded.passes()), order);
}
