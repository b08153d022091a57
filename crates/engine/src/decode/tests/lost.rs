//! What becomes of texts when the model fails: who is blamed, and who is not.

use super::*;

#[tokio::test]
async fn of_a_pass_that_failed_only_those_are_lost_that_fail_alone() {
    let (gate, opened) = blocking::channel();
    let (mut is_first, mut were_together) = (true, false);
    // The first text fails from the time on at which the second is beside it.
    let pass: Pass = Box::new(move |inner, works| {
        if std::mem::take(&mut is_first) {
            // A test that is over has nothing to wait for.
            let _ = opened.recv();
        }
        were_together |= works.len() > 1;
        if were_together && works.iter().any(|work| work.sequence == Sequence(0)) {
            return Err(EngineError::Model("no memory on the device".into()));
        }
        inner.run(works)
    });
    let (engine, _releases) = wrapped(LIMITS, PLENTY, pass);
    let other = request(&[2], greedy());
    let expected = simulated().text(&other.prompt, &other.images, greedy().seed);
    // Polled in this order, so that both are sent before the first pass.
    let (lost, written, ()) = tokio::join!(
        text_of(&engine, request(&[1], greedy())),
        text_of(&engine, other),
        async { gate.send(()).expect("the first pass waits") },
    );
    assert!(matches!(lost, Err(EngineError::Model(_))), "{lost:?}");
    assert_eq!(written.expect("it is not to blame").0, expected);
    assert_eq!(engine.health(), Health::Running);
}

/// One that waits while another is written, where there is no second place.
fn routine(shade: u8) -> DecodeRequest {
    DecodeRequest {
        haste: Haste {
            class: Class::Routine,
            ..Haste::STAT
        },
        ..request(&[shade], greedy())
    }
}

#[tokio::test]
async fn a_panic_is_blamed_only_on_those_that_were_computed() {
    let (permit, permits) = blocking::channel();
    let pass: Pass = Box::new(move |inner, works| match permits.recv() {
        Ok(true) => inner.run(works),
        _ => panic!("the simulated device broke"),
    });
    let limits = DecodeLimits {
        sequences_max: 1,
        ..LIMITS
    };
    let (engine, _releases) = wrapped(limits, PLENTY, pass);
    let mut computed = taken(&engine, routine(1)).await;
    // Polled in this order: the next pass begins when it was sent.
    let (mut waits, ()) = tokio::join!(taken(&engine, routine(2)), async {
        permit.send(true).expect("the first pass waits");
    });
    permit.send(false).expect("the next pass waits");
    let computed = computed.collect().await;
    assert!(
        matches!(computed, Err(EngineError::Panicked)),
        "{computed:?}"
    );
    let waits = waits.collect().await;
    assert!(matches!(waits, Err(EngineError::Stopped)), "{waits:?}");
}

#[tokio::test]
async fn a_pass_that_does_not_come_back_is_blamed_only_on_those_that_were_computed() {
    let (permit, permits) = blocking::channel::<()>();
    let (begins, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let pass: Pass = Box::new(move |inner, works| {
        // A test that is over neither listens nor permits.
        let _ = (begins.send(()), permits.recv());
        inner.run(works)
    });
    let limits = DecodeLimits {
        sequences_max: 1,
        ..LIMITS
    };
    let (engine, _releases) = wrapped_with(limits, PLENTY, pass, HASTY);
    let mut computed = taken(&engine, routine(1)).await;
    begun.recv().await.expect("the first pass begins");
    // Polled in this order: the next pass begins when it was sent.
    let (mut waits, ()) = tokio::join!(taken(&engine, routine(2)), async {
        permit.send(()).expect("the first pass waits");
    });
    begun.recv().await.expect("the next pass begins");
    let (ended, computed, waits, unseen) = tokio::join!(
        engine.monitor().ended(),
        computed.collect(),
        waits.collect(),
        engine.decode(routine(3)),
    );
    assert_eq!(ended, Health::Hung);
    assert!(matches!(computed, Err(EngineError::Hung)), "{computed:?}");
    assert!(matches!(waits, Err(EngineError::Stopped)), "{waits:?}");
    assert!(matches!(unseen, Err(EngineError::Stopped)), "{unseen:?}");
    drop(permit);
}

/// An engine whose model makes no numbers of any text.
fn without_numbers(makes_numbers: bool) -> DecodeEngine {
    let pass: Pass = Box::new(|inner, works| {
        let outcomes = inner.run(works)?;
        let without = |outcome: Outcome| -> Outcome {
            let steps = outcome.into_iter();
            steps.map(|_| Err(EngineError::NotFinite)).collect()
        };
        Ok(outcomes.into_iter().map(without).collect())
    });
    let (mut backend, _releases) = wrap(PLENTY, pass);
    backend.makes_numbers = makes_numbers;
    DecodeEngine::start(Box::new(backend), LIMITS).expect("a thread starts")
}

#[tokio::test]
async fn a_model_that_makes_no_numbers_of_anything_ends_its_engine_and_no_text_is_blamed() {
    let engine = without_numbers(false);
    let lost = text_of(&engine, request(&[1], greedy())).await;
    assert!(matches!(lost, Err(EngineError::Damaged)), "{lost:?}");
    assert_eq!(engine.monitor().ended().await, Health::Damaged);
    assert!(engine.health().check().is_err());
    let refused = text_of(&engine, request(&[2], greedy())).await;
    assert!(matches!(refused, Err(EngineError::Stopped)), "{refused:?}");
}

#[tokio::test]
async fn texts_without_numbers_are_blamed_where_others_have_some_until_there_are_many_in_a_row() {
    let engine = without_numbers(true);
    let mut lost = 0;
    while engine.health() == Health::Running {
        let text = text_of(&engine, request(&[1], greedy())).await;
        assert!(matches!(text, Err(EngineError::NotFinite)), "{text:?}");
        lost += 1;
    }
    assert_eq!((lost, engine.health()), (8, Health::Damaged));
}
