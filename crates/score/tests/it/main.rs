//! The crate from outside: the labeler on the generator's words, and every figure against those of other implementations.

mod phantoms;
mod vectors;
