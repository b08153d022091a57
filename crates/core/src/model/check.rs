//! Breadth first over every world that can be reached, so that a counterexample is a shortest one. Two kinds of
//! properties: what no step may do, and what must stay possible: from every world the fleet by itself, without further
//! faults and without help, can bring an accepted job to its end and keep its dead letter.

use std::collections::HashMap;

use super::world::{Model, Scenario, World};
use crate::protocol::verdict_of_failure;
use crate::{JobState, Verdict};

/// What a check found.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) worlds: usize,
    pub(super) steps: usize,
    pub(super) counterexample: Option<Counterexample>,
}

/// A run that goes wrong.
#[derive(Debug)]
pub(super) struct Counterexample {
    pub(super) wrong: &'static str,
    pub(super) run: Vec<&'static str>,
}

const STUCK: &str = "the job can no longer end by the fleet's own steps";

/// Explores a scenario to its end, or to the first counterexample.
pub(super) fn check(scenario: Scenario) -> Checked {
    let mut model = Model::new(scenario);
    let start = model.start();
    let mut numbers = HashMap::from([(start.clone(), 0_u32)]);
    let mut worlds = vec![start];
    let mut came_from: Vec<(u32, &'static str)> = vec![(0, "")];
    // Which worlds lead here by a step of the fleet's own.
    let mut own: Vec<(u32, u32)> = Vec::new();
    let mut steps_taken = 0;
    let mut next = 0;
    while next < worlds.len() {
        let world = worlds[next].clone();
        for step in model.steps(&world) {
            steps_taken += 1;
            if let Some(wrong) = step.wrong {
                let mut run = run_to(&came_from, next as u32);
                run.push(step.name);
                return Checked {
                    worlds: worlds.len(),
                    steps: steps_taken,
                    counterexample: Some(Counterexample { wrong, run }),
                };
            }
            let fresh = worlds.len() as u32;
            let number = *numbers.entry(step.to).or_insert_with_key(|world| {
                worlds.push(world.clone());
                came_from.push((next as u32, step.name));
                fresh
            });
            if step.is_own {
                own.push((number, next as u32));
            }
        }
        next += 1;
    }
    let stuck = first_stuck(&model, &worlds, own);
    Checked {
        worlds: worlds.len(),
        steps: steps_taken,
        counterexample: stuck.map(|number| Counterexample {
            wrong: STUCK,
            run: run_to(&came_from, number),
        }),
    }
}

fn run_to(came_from: &[(u32, &'static str)], number: u32) -> Vec<&'static str> {
    let mut run = Vec::new();
    let mut at = number;
    while at != 0 {
        let (before, name) = came_from[at as usize];
        run.push(name);
        at = before;
    }
    run.reverse();
    run
}

/// The first world with an accepted job from which no good end is possible any more.
fn first_stuck(model: &Model, worlds: &[World], mut own: Vec<(u32, u32)>) -> Option<u32> {
    own.sort_unstable();
    let mut reaches: Vec<bool> = worlds.iter().map(|world| has_ended(model, world)).collect();
    let mut open: Vec<u32> = (0..worlds.len() as u32)
        .filter(|number| reaches[*number as usize])
        .collect();
    while let Some(number) = open.pop() {
        let from = own.partition_point(|(to, _)| *to < number);
        for (_, before) in own[from..].iter().take_while(|(to, _)| *to == number) {
            if !reaches[*before as usize] {
                reaches[*before as usize] = true;
                open.push(*before);
            }
        }
    }
    let stuck = worlds
        .iter()
        .zip(&reaches)
        .position(|(world, reaches)| world.past.is_answered && !reaches);
    stuck.map(|number| number as u32)
}

/// Whether the job is final, and its dead letter kept if there must be one.
fn has_ended(model: &Model, world: &World) -> bool {
    let Some(id) = world.record else { return false };
    let record = model.record(id);
    let has_letter = world.letters & (1 << record.epoch) != 0;
    match &record.failure {
        Some(failure) => {
            !matches!(verdict_of_failure(failure.clone()), Verdict::Reject(_)) || has_letter
        }
        None => record.state.is_final() && record.state != JobState::Failed,
    }
}
