//! medfleet-preprocess
