//! medfleet-kernels
