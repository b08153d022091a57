//! medfleet-engine
