//! Pauses between tries. Pure.

use std::time::Duration;

/// Doubled so often, a second is longer than anybody waits.
const DOUBLINGS_MAX: u32 = 20;

/// The first pause, doubled so many times, up to the longest.
pub fn doubled(first: Duration, longest: Duration, times: u64) -> Duration {
    let times = u32::try_from(times).unwrap_or(u32::MAX).min(DOUBLINGS_MAX);
    first.saturating_mul(1 << times).min(longest)
}

/// A pause less up to half of it, by a number that is another for each who waits: what failed together does not come back together.
#[must_use]
pub fn spread(pause: Duration, number: u64) -> Duration {
    let half = pause / 2;
    // Below 1024.
    let share = u32::try_from(number % 1024).unwrap_or(0);
    half + half * share / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let check = |times, millis| {
            let pause = doubled(Duration::from_millis(100), Duration::from_secs(30), times);
            assert_eq!(pause, Duration::from_millis(millis), "{times}");
        };
        check(0, 100);
        check(1, 200);
        check(4, 1_600);
        check(60, 30_000);
        check(u64::MAX, 30_000);
    }

    #[test]
    fn a_pause_is_shortened_by_half_at_the_most() {
        let pause = Duration::from_secs(4);
        assert_eq!(spread(pause, 0), Duration::from_secs(2));
        assert_eq!(spread(pause, 512), Duration::from_secs(3));
        let all = (0..2048).map(|number| spread(pause, number));
        assert!(all.into_iter().all(|pause| pause.as_secs() < 4));
    }
}
