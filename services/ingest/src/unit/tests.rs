//! Release order, room and the floor.

use medfleet_core::{Cost, TenantId};
use medfleet_queue::Backlog as Counted;
use medfleet_testkit::key;

use super::*;

mod out;
mod stat;

fn pool(name: &str) -> PoolName {
    PoolName::new(name).expect("a pool")
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
        cost: Cost::default(),
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

const NOW: UnixMillis = UnixMillis(0);
/// As good as no limit.
const MANY: u64 = 1_000_000;

/// An index for one (stage, pool) with room for so many units.
fn empty(released_units_max: u64, weights: Weights) -> Index {
    let mut index = Index::new(Rules {
        weights,
        ahead_millis: 1_000,
        released_units_max,
        age_millis: 60_000,
        aged_every: 4,
        decode_reserved: Reserved::default(),
        in_flight_max: InFlightMax::default(),
    });
    index.set_slots(&lane(), MANY);
    index
}

fn index(released_max: u64, units: &[(u64, Class)]) -> Index {
    let mut index = empty(released_max, Weights::new());
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
        sequences(&index(released_max, units).take(100, NOW)),
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
    let mut released = sequences(&index.take(100, NOW));
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
    assert_eq!(sequences(&index.take(100, NOW)), [1, 2]);
    assert!(index.take(100, NOW).is_empty());
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
    assert_eq!(sequences(&index.take(100, NOW)), [3]);
    assert!(index.full().is_empty());
}

#[test]
fn a_look_for_room_asks_after_what_is_out() {
    use Class::{Bulk, Routine, Stat};
    let units = [(1, Stat), (2, Routine), (3, Routine), (4, Bulk)];
    let mut index = index(2, &units);
    assert!(index.full_and_out()[0].1.is_empty());
    assert_eq!(sequences(&index.take(2, NOW)), [1, 2]);
    assert_eq!(index.full_and_out(), [(lane(), vec![Stat, Routine])]);
    // Of the unit of class bulk nothing was asked: none is out, and none counts as out.
    let none_of_routine = Outstanding {
        stat: Counted {
            waiting: 1,
            in_flight: 0,
        },
        ..Outstanding::default()
    };
    index.recount(&lane(), &none_of_routine);
    assert_eq!(sequences(&index.take(1, NOW)), [3]);
    assert_eq!(index.full_and_out(), [(lane(), vec![Stat, Routine])]);
}

#[test]
fn a_failed_release_waits_for_the_recount() {
    let mut index = index(2, &[(1, Class::Routine), (2, Class::Stat)]);
    let mut taken = index.take(1, NOW);
    assert_eq!(sequences(&taken), [2]);
    index.put_back(taken.remove(0));
    assert!(index.take(100, NOW).is_empty());
    index.recount(&lane(), &Outstanding::default());
    assert_eq!(sequences(&index.take(100, NOW)), [2, 1]);
}

#[test]
fn a_unit_that_cannot_be_released_by_itself_holds_up_no_other() {
    let units = [(1, Class::Stat), (2, Class::Routine), (3, Class::Routine)];
    let mut index = index(10, &units);
    let mut taken = index.take(1, NOW);
    assert_eq!(sequences(&taken), [1]);
    index.leave(taken.remove(0));
    assert_eq!(sequences(&index.take(100, NOW)), [2, 3]);
    index.try_left();
    let mut again = index.take(100, NOW);
    assert_eq!(sequences(&again), [1]);
    // Its job ends meanwhile.
    index.leave(again.remove(0));
    let place = Place {
        stage: Stage::Preprocess,
        sequence: 1,
    };
    assert_eq!(index.remove_job(&key(1), 0), [place]);
    index.try_left();
    assert!(index.take(100, NOW).is_empty());
}

#[test]
fn where_nothing_can_be_released_nothing_more_is_tried() {
    let mut index = empty(MANY, Weights::new());
    for sequence in 1..=LEFT_MAX as u64 + 2 {
        index.insert(unit_of("a", sequence, 1_000));
    }
    let mut taken = index.take(LEFT_MAX + 1, NOW);
    assert_eq!(taken.len(), LEFT_MAX + 1);
    taken.drain(..).for_each(|held| index.leave(held));
    assert!(index.take(100, NOW).is_empty());
    index.recount(&lane(), &Outstanding::default());
    assert_eq!(index.take(100, NOW).len(), 2);
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
    assert_eq!(index.remove_job(&key(1), 0), places);
    assert_eq!(index.remove_job(&key(1), 0), Vec::<Place>::new());
    assert_eq!(sequences(&index.take(100, NOW)), [2]);
}

#[test]
fn a_late_word_of_an_epoch_takes_nothing_from_the_one_after_it() {
    let mut index = index(10, &[(1, Class::Routine)]);
    let mut replayed = held(2, Class::Routine);
    replayed.unit.key = key(1);
    replayed.unit.epoch = 1;
    index.insert(replayed);
    let first = Place {
        stage: Stage::Preprocess,
        sequence: 1,
    };
    assert_eq!(index.remove_job(&key(1), 0), [first]);
    assert_eq!(sequences(&index.take(100, NOW)), [2]);
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
    let taken = index.take(100, NOW);
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
    let mut index = empty(MANY, weights.collect());
    let mut sequence = 0;
    for (tenant, units) in floods {
        for _ in 0..*units {
            sequence += 1;
            index.insert(unit_of(tenant, sequence, 1_000));
        }
    }
    let taken = index.take(most, NOW);
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
    let mut index = empty(MANY, Weights::new());
    for sequence in 1..=100 {
        index.insert(unit_of("a", sequence, 1_000));
    }
    assert_eq!(index.take(50, NOW).len(), 50);
    for sequence in 101..=150 {
        index.insert(unit_of("b", sequence, 1_000));
    }
    let taken = index.take(20, NOW);
    let of_b = taken
        .iter()
        .filter(|held| held.unit.key.tenant.as_str() == "b")
        .count();
    assert!((9..=11).contains(&of_b), "{of_b}");
}

#[test]
fn within_a_tenant_the_earliest_end_goes_first() {
    let mut index = empty(MANY, Weights::new());
    for (sequence, expires) in [(1, 3_000), (2, 1_000), (3, 2_000), (4, 1_000)] {
        index.insert(unit_of("a", sequence, expires));
    }
    assert_eq!(sequences(&index.take(100, NOW)), [2, 4, 3, 1]);
}

#[test]
fn a_failed_release_costs_its_tenant_no_turn() {
    let mut index = empty(MANY, Weights::new());
    for (tenant, sequence) in [("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
        index.insert(unit_of(tenant, sequence, 1_000));
    }
    let mut taken = index.take(1, NOW);
    assert_eq!(sequences(&taken), [1]);
    index.put_back(taken.remove(0));
    index.recount(&lane(), &Outstanding::default());
    assert_eq!(sequences(&index.take(100, NOW)), [1, 2, 3, 4]);
}

#[test]
fn a_unit_that_was_left_or_not_needed_costs_its_tenant_no_turn() {
    let check = |without: fn(&mut Index, Held)| {
        let mut index = empty(MANY, Weights::new());
        for (tenant, sequence) in [("a", 1), ("b", 2), ("a", 3), ("b", 4)] {
            index.insert(unit_of(tenant, sequence, 1_000));
        }
        let mut taken = index.take(1, NOW);
        assert_eq!(sequences(&taken), [1]);
        without(&mut index, taken.remove(0));
        assert_eq!(sequences(&index.take(100, NOW)), [3, 2, 4]);
    };
    check(Index::leave);
    check(|index, held| index.uncount(&held));
}

fn unit_of(tenant: &str, sequence: u64, expires: i64) -> Held {
    let mut one = held(1, Class::Routine);
    one.sequence = sequence;
    one.unit.key.tenant = TenantId::new(tenant).expect("a name");
    one.unit.expires = UnixMillis(expires);
    one
}

/// How many units of these costs are out at once, of so many slots.
fn check_room(slots: u64, millis: &[u32], expected: usize) {
    let mut index = empty(MANY, Weights::new());
    index.set_slots(&lane(), slots);
    for (sequence, millis) in (1..).zip(millis) {
        let mut unit = unit_of("a", sequence, 1_000);
        unit.unit.cost.preprocess_millis = *millis;
        index.insert(unit);
    }
    assert_eq!(index.take(100, NOW).len(), expected, "{slots} {millis:?}");
}

#[test]
fn what_is_out_is_what_live_slots_do_soon() {
    // A second ahead, by the rules of these tests.
    check_room(0, &[100; 20], 1);
    check_room(1, &[100; 20], 10);
    check_room(2, &[100; 30], 20);
    // However long they take, every slot has one, and nothing waits behind it.
    check_room(3, &[60_000; 20], 3);
    check_room(1, &[900, 60_000, 60_000], 2);
}

#[test]
fn a_recount_keeps_the_cost_of_what_came_last() {
    let mut index = empty(MANY, Weights::new());
    index.set_slots(&lane(), 1);
    for (sequence, millis) in [(1, 5_000), (2, 100), (3, 100), (4, 900), (5, 900)] {
        let mut unit = unit_of("a", sequence, 1_000);
        unit.unit.cost.preprocess_millis = millis;
        index.insert(unit);
    }
    assert_eq!(sequences(&index.take(100, NOW)), [1]);
    index.recount(&lane(), &routine(0));
    assert_eq!(sequences(&index.take(100, NOW)), [2, 3, 4]);
    // Two of the three are done: the third is the one of 900 ms.
    index.recount(&lane(), &routine(1));
    assert_eq!(sequences(&index.take(100, NOW)), [5]);
}

fn routine(in_flight: u64) -> Outstanding {
    let routine = Counted {
        waiting: 0,
        in_flight,
    };
    Outstanding {
        routine,
        ..Outstanding::default()
    }
}

#[test]
fn tenants_get_equal_time_not_equal_numbers() {
    let mut index = empty(MANY, Weights::new());
    for sequence in 1..=1_000 {
        let mut unit = unit_of(if sequence % 2 == 0 { "a" } else { "b" }, sequence, 1_000);
        unit.unit.cost.preprocess_millis = if sequence % 2 == 0 { 900 } else { 300 };
        index.insert(unit);
    }
    let taken = index.take(200, NOW);
    let of_a = taken
        .iter()
        .filter(|held| held.unit.key.tenant.as_str() == "a");
    assert_eq!(of_a.count(), 50);
}

#[test]
fn what_waits_too_long_takes_every_fourth_turn_but_never_a_stat_units() {
    use Class::{Bulk, Routine, Stat};
    let aged = UnixMillis(60_000);
    let mut index = empty(MANY, Weights::new());
    let mut insert = |sequence, class, since| {
        let mut unit = held(sequence, class);
        unit.stored_at = since;
        index.insert(unit);
    };
    insert(1, Bulk, NOW);
    insert(2, Bulk, UnixMillis(1));
    for sequence in 3..=9 {
        insert(sequence, Routine, aged);
    }
    insert(10, Stat, aged);
    assert_eq!(
        sequences(&index.take(6, aged)),
        [10, 3, 4, 1, 5, 6],
        "the oldest after three others; the next one is not aged yet"
    );
    let later = UnixMillis(60_001);
    let mut stat = held(11, Stat);
    stat.stored_at = later;
    index.insert(stat);
    assert_eq!(sequences(&index.take(4, later)), [11, 2, 7, 8]);
}

#[test]
fn a_flood_that_waits_too_long_waits_behind_itself_only() {
    let aged = UnixMillis(60_000);
    let mut index = empty(MANY, Weights::new());
    let mut insert = |tenant, sequence, class, since| {
        let mut unit = unit_of(tenant, sequence, 100_000);
        (unit.unit.class, unit.stored_at) = (class, since);
        index.insert(unit);
    };
    for sequence in 1..=6 {
        insert("a", sequence, Class::Bulk, NOW);
    }
    insert("b", 7, Class::Bulk, aged);
    for sequence in 8..=20 {
        insert("c", sequence, Class::Routine, aged);
    }
    let taken = sequences(&index.take(8, aged));
    assert_eq!(taken, [8, 9, 10, 1, 11, 12, 13, 7]);
}

#[test]
fn what_is_held_back_waits_and_the_rest_goes_on() {
    use Class::{Bulk, Routine};
    let pause = |tenant: Option<&str>, class| medfleet_queue::Pause {
        tenant: tenant.map(|name| TenantId::new(name).expect("a name")),
        class,
        actor: "night-shift".to_owned(),
        at: NOW,
    };
    let check = |pauses: &[medfleet_queue::Pause], expected: &[u64]| {
        let mut index = empty(MANY, Weights::new());
        for (sequence, tenant, class) in [
            (1, "a", Routine),
            (2, "b", Routine),
            (3, "a", Bulk),
            (4, "b", Bulk),
        ] {
            let mut unit = unit_of(tenant, sequence, 1_000);
            unit.unit.class = class;
            index.insert(unit);
        }
        index.set_pauses(Pauses::of(pauses));
        assert_eq!(sequences(&index.take(100, NOW)), expected, "{pauses:?}");
        // What is held back is no reason to count again.
        assert!(index.full().is_empty());
        index.set_pauses(Pauses::default());
        assert_eq!(index.take(100, NOW).len(), 4 - expected.len());
    };
    check(&[], &[1, 2, 3, 4]);
    check(&[pause(Some("a"), None)], &[2, 4]);
    check(&[pause(None, Some(Bulk))], &[1, 2]);
    check(&[pause(Some("b"), Some(Routine))], &[1, 3, 4]);
    check(&[pause(Some("b"), None), pause(None, Some(Routine))], &[3]);
}

#[test]
fn a_tenant_has_so_many_jobs_in_the_stages_but_any_number_of_stat_jobs() {
    use Class::{Routine, Stat};
    let of = |sequence, tenant: &str, class| {
        let mut held = held(sequence, class);
        held.unit.key.tenant = TenantId::new(tenant).expect("a name");
        held
    };
    let mut index = empty(MANY, Weights::new());
    let limited = TenantId::new("a").expect("a name");
    index.rules.in_flight_max.tenants.insert(limited, Some(2));
    for sequence in 1..=4 {
        index.insert(of(sequence, "a", Routine));
    }
    index.insert(of(5, "b", Routine));
    index.insert(of(6, "b", Routine));
    index.insert(of(7, "a", Stat));
    let open = |a, b| {
        let counts = [("a", a), ("b", b)];
        HashMap::from(counts.map(|(name, count)| (TenantId::new(name).expect("a name"), count)))
    };
    let mut take = |open, expected: &[u64]| {
        index.set_open_jobs(open);
        let mut taken = sequences(&index.take(100, NOW));
        taken.sort_unstable();
        assert_eq!(taken, expected);
    };
    // The STAT job counts, so that there is room for one more.
    take(open(5, 2), &[1, 5, 6, 7]);
    take(open(5, 2), &[]);
    // One has ended.
    take(open(4, 0), &[2]);
    take(open(2, 0), &[3, 4]);
}

#[test]
fn a_unit_that_is_read_twice_waits_once() {
    let mut index = empty(MANY, Weights::new());
    index.rules.in_flight_max.default = Some(1);
    for sequence in [1, 1, 2, 1] {
        index.insert(held(sequence, Class::Routine));
    }
    index.set_open_jobs(HashMap::from([(key(1).tenant, 2)]));
    assert_eq!(sequences(&index.take(100, NOW)), [1]);
    assert_eq!(index.remove_job(&key(2), 0).len(), 1);
    assert!(index.remove_job(&key(1), 0).is_empty());
}

#[test]
fn a_tenant_whose_jobs_wait_behind_the_stages_has_only_stat_jobs_let_in() {
    use Class::{Routine, Stat};
    let mut index = empty(MANY, Weights::new());
    for (sequence, class) in [(1, Routine), (2, Stat)] {
        index.insert(held(sequence, class));
    }
    let tenant = held(1, Routine).unit.key.tenant;
    index.set_behind([tenant].into());
    assert_eq!(sequences(&index.take(100, NOW)), [2]);
    index.set_behind([].into());
    assert_eq!(sequences(&index.take(100, NOW)), [1]);
}
