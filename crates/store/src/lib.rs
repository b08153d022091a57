//! medfleet-store
