//! medfleet-ingest
