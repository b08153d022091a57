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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// The flags of the mapping that has this address.
    fn flags(at: usize) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut has_it = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(of, _)| of.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16);
            if let Some((from, to)) = range
                && let (Ok(from), Ok(to)) = (number(from), number(to))
            {
                has_it = (from..to).contains(&at);
            }
            if has_it && let Some(flags) = line.strip_prefix("VmFlags:") {
                return Some(flags.to_owned());
            }
        }
        None
    }

    #[test]
    fn the_system_is_asked_for_huge_pages_where_it_has_them() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").is_dir() {
            return;
        }
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        let bytes = std::ptr::slice_from_raw_parts_mut(memory.as_mut_ptr(), memory.capacity());
        let middle = memory.as_ptr() as usize + memory.capacity() / 2;
        let is_asked = || {
            let flags = flags(middle).unwrap();
            flags.split_whitespace().any(|flag| flag == "hg")
        };
        assert!(!is_asked());
        prefer_huge_pages(bytes);
        assert!(is_asked());
    }
}
