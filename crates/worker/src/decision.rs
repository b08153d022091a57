//! How long a unit pauses before it comes again. Everything else that is decided here is in core's `protocol`. Pure.

use std::time::Duration;

/// Pause before the next delivery: doubles with every delivery up to the longest.
#[must_use]
pub fn backoff(first: Duration, longest: Duration, deliveries: u64) -> Duration {
    let doublings = u32::try_from(deliveries.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(20);
    first.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let check = |deliveries, millis| {
            let pause = backoff(
                Duration::from_millis(100),
                Duration::from_secs(30),
                deliveries,
            );
            assert_eq!(pause, Duration::from_millis(millis), "{deliveries}");
        };
        check(0, 100);
        check(1, 100);
        check(2, 200);
        check(5, 1_600);
        check(60, 30_000);
        check(u64::MAX, 30_000);
    }
}
