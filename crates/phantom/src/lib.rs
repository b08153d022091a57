//! medfleet-phantom
