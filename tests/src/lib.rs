//! medfleet-tests
