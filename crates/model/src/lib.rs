//! medfleet-model
