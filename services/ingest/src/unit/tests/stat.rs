//! Slots of decode that are kept for the classes above, and those that workers have for STAT alone.

use super::*;

fn decode() -> LaneKey {
    (Stage::Decode, pool("p"))
}

/// A unit of decode that takes a slot for long.
fn text(sequence: u64, class: Class) -> Held {
    let mut held = held(sequence, class);
    held.unit.stage = Stage::Decode;
    held.unit.cost.decode_millis = 1_000_000;
    held
}

/// An index with so many slots of decode for all classes, and for STAT alone.
fn with((slots, stat_slots): (u64, u64), reserved: Reserved) -> Index {
    let mut index = empty(MANY, Weights::new());
    index.rules.decode_reserved = reserved;
    index.set_slots(&decode(), slots);
    index.set_stat_slots(&decode(), stat_slots);
    index
}

/// What is released at once.
fn check(slots: (u64, u64), reserved: Reserved, units: &[Class], expected: &[u64]) {
    let mut index = with(slots, reserved);
    for (sequence, class) in (1..).zip(units) {
        index.insert(text(sequence, *class));
    }
    let taken = sequences(&index.take(100, NOW));
    assert_eq!(taken, expected, "{slots:?} {reserved:?} {units:?}");
}

#[test]
fn decode_slots_are_kept_for_the_classes_above() {
    use Class::{Bulk, Routine, Stat, Urgent};
    let check = |slots, reserved: Reserved, units: &[Class], expected: &[u64]| {
        check((slots, 0), reserved, units, expected);
    };
    let none = Reserved::default();
    let many = [Routine; 6];
    check(4, none, &many, &[1, 2, 3, 4]);
    check(4, [1, 0, 0], &many, &[1, 2, 3]);
    check(4, [1, 1, 0], &many, &[1, 2]);
    check(4, [1, 1, 0], &[Urgent; 6], &[1, 2, 3]);
    check(4, [1, 1, 0], &[Stat; 6], &[1, 2, 3, 4]);
    // What the class above uses is not kept once more.
    check(
        4,
        [2, 0, 0],
        &[Stat, Stat, Routine, Routine, Routine],
        &[1, 2, 3, 4],
    );
    // Nor does a unit of each class go beyond it, but without a slot there is none to keep.
    check(4, [1, 0, 0], &[Routine, Routine, Routine, Bulk], &[1, 2, 3]);
    check(0, [1, 0, 0], &[Routine, Routine, Bulk], &[1, 3]);
    // One slot is open to all.
    check(2, [8, 0, 0], &many, &[1]);
}

#[test]
fn units_of_stat_take_their_own_slots_first() {
    use Class::{Routine, Stat};
    let none = Reserved::default();
    check((2, 1), none, &[Stat, Routine, Routine, Routine], &[1, 2, 3]);
    // Those beyond count as any others do.
    check(
        (2, 2),
        none,
        &[Stat, Stat, Stat, Routine, Routine],
        &[1, 2, 3, 4],
    );
    // Nor does a slot of their own stand for one that is kept.
    let one = [1, 0, 0];
    check(
        (4, 1),
        one,
        &[Stat, Routine, Routine, Routine, Routine],
        &[1, 2, 3, 4],
    );
    check(
        (4, 1),
        one,
        &[Stat, Stat, Routine, Routine, Routine, Routine],
        &[1, 2, 3, 4, 5],
    );
    // Nobody else has such a slot.
    check((0, 4), none, &[Routine, Routine], &[1]);
}

#[test]
fn where_every_slot_is_taken_each_slot_for_stat_has_a_unit() {
    let mut index = with((2, 2), Reserved::default());
    let mut take = |units: &[(u64, Class)], stat: u64, expected: &[u64]| {
        let count = |in_flight| Counted {
            waiting: 0,
            in_flight,
        };
        let outstanding = Outstanding {
            stat: count(stat),
            routine: count(2),
            ..Outstanding::default()
        };
        index.recount(&decode(), &outstanding);
        for (sequence, class) in units {
            index.insert(text(*sequence, *class));
        }
        assert_eq!(sequences(&index.take(100, NOW)), expected, "{units:?}");
    };
    let (routine, stat) = (Class::Routine, Class::Stat);
    take(&[(1, routine), (2, stat), (3, stat), (4, stat)], 0, &[2, 3]);
    take(&[], 2, &[]);
    // One of them has ended.
    take(&[], 1, &[4]);
}

#[test]
fn what_may_be_out_at_all_holds_for_units_of_stat_too() {
    let mut index = with((2, 8), Reserved::default());
    index.rules.released_units_max = 3;
    (1..=5).for_each(|sequence| index.insert(text(sequence, Class::Stat)));
    assert_eq!(sequences(&index.take(100, NOW)), [1, 2, 3]);
}

/// Whoever is let on brings units that wait there, and a STAT job would find no room for its own.
#[test]
fn to_a_stage_whose_intake_is_nearly_full_only_stat_is_let_on() {
    use Class::{Bulk, Routine, Stat};
    let mut index = index(MANY, &[(1, Routine), (2, Stat)]);
    index.set_waiting_max(3);
    let chunk = |sequence, class| {
        let mut held = held(sequence, class);
        held.unit.stage = Stage::Encode;
        held
    };
    for (sequence, class) in [(11, Routine), (12, Routine), (13, Bulk)] {
        index.insert(chunk(sequence, class));
    }
    // No worker of encode is there: one unit of each class is let on to it.
    assert_eq!(sequences(&index.take(100, NOW)), [2, 11, 13]);
    assert_eq!(sequences(&index.take(100, NOW)), [1], "there is room again");
    // The last stage has none behind it.
    index.set_waiting_max(0);
    index.insert(text(21, Bulk));
    assert_eq!(sequences(&index.take(100, NOW)), [21]);
}

/// Jobs without images come to decode from preprocess.
#[test]
fn past_encode_only_stat_is_let_on_to_a_nearly_full_intake() {
    use Class::{Routine, Stat};
    let mut index = index(MANY, &[(1, Routine), (2, Stat)]);
    index.set_waiting_max(3);
    for sequence in 21..24 {
        index.insert(text(sequence, Routine));
    }
    // No worker of decode is there: one unit is let on to it.
    assert_eq!(sequences(&index.take(100, NOW)), [2, 21]);
    assert_eq!(sequences(&index.take(100, NOW)), [1], "there is room again");
}
