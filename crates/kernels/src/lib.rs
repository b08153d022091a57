//! What a transformer spends its time on, for CPUs: products with packed weights, attention, and what lies between them.
//! Instruction sets are chosen at run time; a build runs on any machine of its architecture.
//!
//! **The same numbers whoever is beside you.** Each number of a result is computed by a chain of operations that depends
//! on its own row and on the level alone: not on how many rows there are, how many threads, or where a prompt was cut.
//! Another [`Level`] gives other last digits.
//!
//! Reading order: [`Kernels`] (what can be chosen), [`Number`] (what values are stored in), [`Packed`] and
//! [`Kernels::product`], [`Quantised`], [`Kernels::attend`], then `rows`; `limits` measures the machine.
//!
//! Absent by intention: tensors, files, environment variables, threads of its own (it runs on rayon's current pool).

mod amx;
mod attention;
mod bfp;
mod lanes;
mod level;
mod limits;
mod number;
mod pack;
mod pieces;
mod product;
mod quantised;
mod rows;
mod tile;

pub use attention::{Attention, Cached, KeyRange};
pub use level::{Kernels, Level, LevelError};
pub use number::Number;
pub use pack::Packed;
pub use product::Then;
pub use quantised::{Form, Quantised, store_q8_0};
pub use rows::{Rotation, Scale};
