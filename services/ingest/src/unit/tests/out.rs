//! What counts as out.

use super::*;

/// A unit of decode that takes so long.
fn text(sequence: u64, decode_millis: u32) -> Held {
    let mut held = held(sequence, Class::Routine);
    held.unit.stage = Stage::Decode;
    held.unit.cost.decode_millis = decode_millis;
    held
}

/// Its job has ended, or its release failed; a long one was let out behind it.
#[test]
fn a_unit_that_is_not_released_takes_no_others_cost_with_it() {
    let check = |give_back: fn(&mut Index, Held)| {
        let mut index = empty(MANY, Weights::new());
        let lane = (Stage::Decode, pool("p"));
        index.set_slots(&lane, 1);
        for (sequence, millis) in [(1, 100), (2, 60_000), (3, 100)] {
            index.insert(text(sequence, millis));
        }
        // The slot is busy for a minute.
        let mut taken = index.take(100, NOW);
        assert_eq!(sequences(&taken), [1, 2]);
        give_back(&mut index, taken.remove(0));
        assert!(index.take(100, NOW).is_empty());
    };
    check(|index, held| index.uncount(&held));
    check(|index, held| {
        index.put_back(held);
        let outstanding = Outstanding {
            routine: Counted {
                waiting: 1,
                in_flight: 0,
            },
            ..Outstanding::default()
        };
        index.recount(&(Stage::Decode, pool("p")), &outstanding);
    });
}
