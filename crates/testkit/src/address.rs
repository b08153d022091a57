//! Loopback addresses.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address for one test, made from the process's id and a counter, so that hardly anything else on this machine uses
/// it. A port that is free for a moment, as while a killed server restarts, is then not taken by a process that asks for a free
/// port of 127.0.0.1.
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
