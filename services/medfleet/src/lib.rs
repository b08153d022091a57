//! medfleet
