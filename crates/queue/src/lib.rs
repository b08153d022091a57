//! medfleet-queue
