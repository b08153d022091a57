//! What breaks, on purpose: seeded storms, workers that come back from the dead, units that kill, drains under load, planted swaps,
//! claims on images over the end of every server, no room, and many seeds in virtual time.
//! Longer storms run by `make chaos`; a seed that fails there or here says how to run it again.

mod claims;
mod full;
mod planning;
mod planted;
mod poison;
mod power;
mod rolling;
mod storms;
mod virtual_time;
mod zombies;
