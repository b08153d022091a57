//! medfleet-encode
