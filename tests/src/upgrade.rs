//! From one release to the next: what an earlier one left behind, and a running fleet whose programs are replaced.
//! Reading order: [`left`] (what is kept of a release), [`mod@write`] (how it is made), [`roll`] (programs replaced under load).

pub mod left;
pub mod roll;
pub mod write;
