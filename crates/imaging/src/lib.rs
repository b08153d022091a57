//! medfleet-imaging
