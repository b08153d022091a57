//! medfleet-runtime
