//! medfleet-decode
