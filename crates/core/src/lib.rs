//! medfleet-core
