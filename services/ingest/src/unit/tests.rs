//! Release order, room and the floor.

use medfleet_core::{JobId, TenantId};
use medfleet_queue::Backlog as Counted;

use super::*;

fn pool(name: &str) -> PoolName {
    PoolName::new(name).expect("a pool")
}

fn key(job: u8) -> JobKey {
    JobKey {
        tenant: TenantId::new("st-mary").expect("a name"),
        job: JobId::from_bytes([job; 16]),
    }
}

fn held(sequence: u64, class: Class) -> Held {
    let unit = WorkUnit {
        key: key(u8::try_from(sequence).expect("small")),
        stage: Stage::Preprocess,
        pool: pool("p"),
        class,
        unit: 0,
        epoch: 0,
        expires: UnixMillis(1_000),
    };
    Held {
        unit,
        sequence,
        headers: Vec::new(),
        stored_at: UnixMillis(0),
    }
}

fn lane() -> LaneKey {
    (Stage::Preprocess, pool("p"))
}

fn index(released_max: u64, units: &[(u64, Class)]) -> Index {
    let mut index = Index::new(released_max);
    for (sequence, class) in units {
        index.insert(held(*sequence, *class));
    }
    index
}

fn sequences(units: &[Held]) -> Vec<u64> {
    units.iter().map(|held| held.sequence).collect()
}

/// What is released at once from these units.
fn check(released_max: u64, units: &[(u64, Class)], expected: &[u64]) {
    assert_eq!(
        sequences(&index(released_max, units).take(100)),
        expected,
        "{units:?}"
    );
}

#[test]
fn class_comes_first_then_arrival() {
    use Class::{Bulk, Routine, Stat, Urgent};
    check(
        10,
        &[
            (1, Bulk),
            (2, Routine),
            (3, Stat),
            (4, Routine),
            (5, Urgent),
        ],
        &[3, 5, 2, 4, 1],
    );
    check(2, &[(3, Routine), (1, Routine), (2, Routine)], &[1, 2]);
}

#[test]
fn one_unit_of_each_class_is_always_released() {
    use Class::{Bulk, Routine, Stat};
    check(
        1,
        &[(1, Stat), (2, Stat), (3, Routine), (4, Bulk), (5, Bulk)],
        &[1, 3, 4],
    );
}

#[test]
fn pools_and_stages_have_their_own_room() {
    let mut index = index(1, &[(1, Class::Routine), (2, Class::Routine)]);
    let mut other = held(3, Class::Routine);
    other.unit.pool = pool("q");
    index.insert(other);
    let mut encode = held(4, Class::Routine);
    encode.unit.stage = Stage::Encode;
    index.insert(encode);
    let mut released = sequences(&index.take(100));
    released.sort_unstable();
    assert_eq!(released, [1, 3, 4]);
    assert_eq!(index.full(), [lane()]);
}

#[test]
fn a_recount_makes_room() {
    let mut index = index(
        2,
        &[
            (1, Class::Routine),
            (2, Class::Routine),
            (3, Class::Routine),
        ],
    );
    assert_eq!(sequences(&index.take(100)), [1, 2]);
    assert!(index.take(100).is_empty());
    let one = Counted {
        waiting: 0,
        in_flight: 1,
    };
    index.recount(
        &lane(),
        &Outstanding {
            routine: one,
            ..Outstanding::default()
        },
    );
    assert_eq!(sequences(&index.take(100)), [3]);
    assert!(index.full().is_empty());
}

#[test]
fn a_failed_release_waits_for_the_recount() {
    let mut index = index(2, &[(1, Class::Routine), (2, Class::Stat)]);
    let mut taken = index.take(1);
    assert_eq!(sequences(&taken), [2]);
    index.put_back(taken.remove(0));
    assert!(index.take(100).is_empty());
    index.recount(&lane(), &Outstanding::default());
    assert_eq!(sequences(&index.take(100)), [2, 1]);
}

#[test]
fn a_job_that_ended_is_not_released() {
    let mut index = index(10, &[(1, Class::Routine), (2, Class::Routine)]);
    let mut second = held(3, Class::Routine);
    second.unit.key = key(1);
    index.insert(second);
    let places = [1, 3].map(|sequence| Place {
        stage: Stage::Preprocess,
        sequence,
    });
    assert_eq!(index.remove_job(&key(1)), places);
    assert_eq!(index.remove_job(&key(1)), Vec::<Place>::new());
    assert_eq!(sequences(&index.take(100)), [2]);
}

#[test]
fn the_backlog_is_held_and_released() {
    let mut index = index(
        1,
        &[(1, Class::Routine), (2, Class::Routine), (3, Class::Bulk)],
    );
    let count = |index: &Index, class| {
        index
            .backlog()
            .iter()
            .filter(|b| b.class == class)
            .map(|b| b.units)
            .sum::<u64>()
    };
    assert_eq!(
        (count(&index, Class::Routine), count(&index, Class::Bulk)),
        (2, 1)
    );
    let taken = index.take(100);
    assert_eq!(
        (count(&index, Class::Routine), count(&index, Class::Bulk)),
        (2, 1)
    );
    index.uncount(&taken[0]);
    assert_eq!(count(&index, Class::Routine), 1);
}
