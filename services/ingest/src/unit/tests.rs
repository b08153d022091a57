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
    let mut index = Index::new(released_max, Weights::new());
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

/// The tenants of what is released, in order, from `floods` of so many units each, all there before the first release.
fn turns(floods: &[(&str, u64)], weights: &[(&str, u32)], most: usize) -> String {
    let weights = weights
        .iter()
        .map(|(tenant, weight)| (TenantId::new(*tenant).expect("a name"), *weight));
    let mut index = Index::new(u64::MAX, weights.collect());
    let mut sequence = 0;
    for (tenant, units) in floods {
        for _ in 0..*units {
            sequence += 1;
            index.insert(unit_of(tenant, sequence, 1_000));
        }
    }
    let taken = index.take(most);
    taken
        .iter()
        .map(|held| held.unit.key.tenant.as_str())
        .collect()
}

#[test]
fn a_flood_waits_behind_itself_only() {
    assert_eq!(turns(&[("a", 1000), ("b", 3)], &[], 8), "abababaa");
}

#[test]
fn a_weight_is_a_share() {
    let released = turns(&[("a", 1000), ("b", 1000)], &[("b", 3)], 400);
    assert_eq!(released.matches('b').count(), 300);
    let longest = |of: &str| released.contains(of);
    assert!(!longest("bbbb") && !longest("aa"), "{released}");
}

#[test]
fn a_tenant_without_units_keeps_no_credit() {
    // Whoever comes late starts level with the others, however long it was away.
    let mut index = Index::new(u64::MAX, Weights::new());
    for sequence in 1..=100 {
        index.insert(unit_of("a", sequence, 1_000));
    }
    assert_eq!(index.take(50).len(), 50);
    for sequence in 101..=150 {
        index.insert(unit_of("b", sequence, 1_000));
    }
    let taken = index.take(20);
    let of_b = taken
        .iter()
        .filter(|held| held.unit.key.tenant.as_str() == "b")
        .count();
    assert!((9..=11).contains(&of_b), "{of_b}");
}

#[test]
fn within_a_tenant_the_earliest_end_goes_first() {
    let mut index = Index::new(u64::MAX, Weights::new());
    for (sequence, expires) in [(1, 3_000), (2, 1_000), (3, 2_000), (4, 1_000)] {
        index.insert(unit_of("a", sequence, expires));
    }
    assert_eq!(sequences(&index.take(100)), [2, 4, 3, 1]);
}

#[test]
fn a_failed_release_costs_its_tenant_no_turn() {
    let mut index = Index::new(u64::MAX, Weights::new());
    for (tenant, sequence) in [("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
        index.insert(unit_of(tenant, sequence, 1_000));
    }
    let mut taken = index.take(1);
    assert_eq!(sequences(&taken), [1]);
    index.put_back(taken.remove(0));
    index.recount(&lane(), &Outstanding::default());
    assert_eq!(sequences(&index.take(100)), [1, 2, 3, 4]);
}

fn unit_of(tenant: &str, sequence: u64, expires: i64) -> Held {
    let mut one = held(1, Class::Routine);
    one.sequence = sequence;
    one.unit.key.tenant = TenantId::new(tenant).expect("a name");
    one.unit.expires = UnixMillis(expires);
    one
}
