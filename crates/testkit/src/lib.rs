//! medfleet-testkit
