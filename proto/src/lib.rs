//! medfleet-proto
