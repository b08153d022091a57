//! Which calls are too long, on a clock that the test moves.

use super::*;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn what_a_call_may_take_follows_what_others_of_its_kind_took() {
    let check = |took: &[(Call, u64)], call: Call, expected: u64| {
        let (mut calls, start) = (Calls::default(), Instant::now());
        for (call, took) in took {
            calls.begin(*call, start);
            calls.end(start + seconds(*took), Patience::SAFE);
        }
        let limit = calls.limit(call, Patience::SAFE);
        assert_eq!(limit, seconds(expected), "{took:?} {call:?}");
    };
    let rows = Call::compute;
    check(&[], rows(512), 3600);
    check(&[(Call::PREPARE, 1)], rows(512), 3600);
    check(&[(rows(512), 1)], rows(512), 600);
    check(&[(rows(512), 60)], rows(1), 1200);
    check(&[(rows(512), 60), (rows(1), 5)], rows(512), 1200);
    // A short prompt came first: a pass 26 times as large may take 26 times as long.
    check(&[(rows(20), 26)], rows(512), 20 * 26 * 26);
    // The process stood still in a call that ended before anybody looked.
    check(&[(rows(512), 7200)], rows(512), 3600);
    check(&[(rows(512), 60), (rows(512), 7200)], rows(512), 1200);
}

#[test]
fn a_call_is_due_after_its_time_without_that_in_which_the_process_stood_still() {
    let (mut calls, start) = (Calls::default(), Instant::now());
    let due = |calls: &Calls, at: u64| {
        let due = calls.due(start + seconds(at), Patience::SAFE);
        due.saturating_duration_since(start)
    };
    assert_eq!(due(&calls, 0), seconds(600), "one may begin at once");
    calls.begin(Call::compute(1), start);
    calls.end(start + seconds(60), Patience::SAFE);
    calls.begin(Call::compute(1), start + seconds(100));
    assert_eq!(due(&calls, 150), seconds(100 + 1200));
    calls.stood_still(seconds(3600), start + seconds(3800));
    assert_eq!(due(&calls, 3800), seconds(3700 + 1200));
    assert_eq!(calls.under_way(start + seconds(3800)), seconds(100));
    calls.end(start + seconds(3800), Patience::SAFE);
    assert_eq!(calls.under_way(start + seconds(3900)), Duration::ZERO);
    assert_eq!(due(&calls, 3900), seconds(3900 + 600));
    // What stood still before a call began is not taken off its time.
    calls.begin(Call::compute(1), start + seconds(4000));
    calls.stood_still(seconds(3600), start + seconds(4001));
    assert_eq!(due(&calls, 4001), seconds(4001 + 20 * 100));
}

#[test]
fn a_call_that_does_not_come_back_is_found_by_who_looks() {
    let (reporter, monitor) = Reporter::new(Patience::SAFE);
    let suspect = Suspect::default();
    suspect.set(true);
    let under_way = reporter.begin(Call::compute(512));
    let begun = Instant::now();
    let next = monitor.0.look(begun);
    assert_eq!(next - begun, seconds(60), "often enough to know of a stop");
    monitor.0.look(begun + seconds(3500));
    assert_eq!(monitor.health(), Health::Running);
    monitor.0.look(begun + seconds(3600));
    assert_eq!(monitor.health(), Health::Hung);
    assert!(matches!(monitor.gone(&suspect), EngineError::Hung));
    let waits = Suspect::default();
    assert!(matches!(monitor.gone(&waits), EngineError::Stopped));
    // What becomes of it later changes nothing.
    drop(under_way);
    reporter.failed();
    drop(reporter);
    assert_eq!(monitor.health(), Health::Hung);
}
