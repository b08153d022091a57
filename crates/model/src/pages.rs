//! How the system backs large memory.

/// Asks for fresh memory in pages of 2 MiB where the system has them: with 4 KiB, the faults of first use take longer than
/// the reading.
#[cfg(target_os = "linux")]
pub(crate) fn prefer_huge_pages(bytes: *mut [u8]) {
    use nix::sys::mman::{MmapAdvise, madvise};
    const PAGE_BYTES: usize = 4096;
    const HUGE_BYTES: usize = 2 << 20;
    let skipped = bytes.cast::<u8>().align_offset(PAGE_BYTES);
    if bytes.len() < skipped.saturating_add(HUGE_BYTES) {
        return;
    }
    let start = bytes.cast::<u8>().wrapping_add(skipped);
    let Some(start) = std::ptr::NonNull::new(start.cast()) else {
        return;
    };
    // SAFETY: the advice changes how pages are backed and nothing in them, whoever owns them.
    let advised = unsafe { madvise(start, bytes.len() - skipped, MmapAdvise::MADV_HUGEPAGE) };
    // Without them it is slower, nothing else.
    let _ = advised;
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn prefer_huge_pages(_: *mut [u8]) {}
