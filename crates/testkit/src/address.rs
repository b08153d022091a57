//! Loopback addresses.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address that hardly anything else on this machine has, from the process's id and a counter: a port that was given up
/// there for a moment, as by a killed server that comes back, is not given to whoever takes a free one of 127.0.0.1 meanwhile.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let pid = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(
        127,
        1 + (pid % 250) as u8,
        1 + (pid / 250 % 250) as u8,
        1 + (number % 250) as u8,
    )
}
