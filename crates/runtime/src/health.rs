//! What the admin port answers about this process: alive, ready, and if not, which parts are missing.
//! Liveness says only whether a restart would help; a lost NATS makes a service unready, never dead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Readiness and liveness of one process, made of named parts. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Part → ready.
    parts: BTreeMap<String, bool>,
    /// Parts that can't recover without a restart.
    dead: Vec<String>,
    draining: bool,
}

impl Health {
    /// Nothing named yet: a process is not ready before its first part is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names a part, which starts unready and stays as it was last set.
    #[must_use]
    pub fn part(&self, name: impl Into<String>) -> Part {
        let name = name.into();
        self.lock().parts.entry(name.clone()).or_insert(false);
        Part {
            name,
            health: self.clone(),
        }
    }

    /// Makes the process unready for good, because it is stopping.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Parts that are not ready, in order; empty means ready.
    pub fn missing(&self) -> Vec<String> {
        let state = self.lock();
        let unready = state
            .parts
            .iter()
            .filter(|(_, ready)| !**ready)
            .map(|(name, _)| name.clone());
        let draining = state.draining.then(|| "draining".to_owned());
        // The admin port answers before the body of the program has named anything.
        let unnamed = state.parts.is_empty().then(|| "start".to_owned());
        unready
            .chain(unnamed)
            .chain(draining)
            .chain(state.dead.iter().cloned())
            .collect()
    }

    /// Whether every part is ready and the process is not stopping.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// Parts that only a restart can repair; empty means alive.
    pub fn dead(&self) -> Vec<String> {
        self.lock().dead.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment, so the state is whole even after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One named part of [`Health`].
#[derive(Debug, Clone)]
pub struct Part {
    name: String,
    health: Health,
}

impl Part {
    pub fn ready(&self) {
        self.set(true);
    }

    /// The part does not work now, but may again.
    pub fn unready(&self) {
        self.set(false);
    }

    /// The part is broken until the process restarts: liveness fails from now on.
    pub fn dead(&self) {
        let mut state = self.health.lock();
        if !state.dead.contains(&self.name) {
            state.dead.push(self.name.clone());
        }
    }

    fn set(&self, ready: bool) {
        self.health.lock().parts.insert(self.name.clone(), ready);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_part() {
        let health = Health::new();
        assert_eq!(health.missing(), ["start"]);
        let (nats, model) = (health.part("nats"), health.part("model"));
        assert_eq!(health.missing(), ["model", "nats"]);
        nats.ready();
        model.ready();
        assert!(health.is_ready());
        nats.unready();
        assert_eq!(health.missing(), ["nats"]);
        nats.ready();
        health.drain();
        assert_eq!(health.missing(), ["draining"]);
        assert_eq!(health.dead(), Vec::<String>::new());
        model.dead();
        model.dead();
        assert_eq!(health.dead(), ["model"]);
    }
}
