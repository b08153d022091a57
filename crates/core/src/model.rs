//! The protocol, explored exhaustively for small sizes: one job, up to two chunks, two workers, and the processes of `ingest`,
//! each of which can stop between any two of its steps, die there, or go on later than others assume.
//!
//! Nothing of the protocol is written again here. What is decided in a step is decided by [`crate::JobRecord::apply`] and
//! [`crate::protocol`], as in the fleet; the model is what surrounds them: the queue's promises (one live message a unit,
//! redelivery after the acknowledge wait, compare-and-set), the order of the steps, and what can go wrong. Reading order: `world`
//! (what there is), `step`, `worker`, `desk`, `aside` (what can happen), `check` (the search).

mod aside;
mod check;
mod desk;
mod scenarios;
mod step;
mod worker;
mod world;
