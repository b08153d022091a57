//! Chaos: seeded storms over real processes, and what must hold after each.
//! Reading order: [`plan`] (which faults, when), [`load`] (which jobs), [`oracle`] (the right answers), [`herd`] and
//! [`disk`] (what is broken), [`run`] (one seed), [`check`] (what must hold), [`table`] (many seeds).

pub mod check;
pub mod disk;
pub mod herd;
pub mod load;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod table;
