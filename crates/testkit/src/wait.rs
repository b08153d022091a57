//! Waiting for a state: the only place in the tests that sleeps.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Looks again and again until `look` finds something, at most for `limit`.
/// Names what was waited for when it did not come.
pub async fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        // A look that hangs is a state that did not come.
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            _ => bail!("waited {limit:?} in vain for {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_as_long_as_needed_and_no_longer() {
        let mut looks = 0;
        let found = wait_until(Duration::from_secs(30), "three looks", async || {
            looks += 1;
            (looks == 3).then_some(looks)
        })
        .await;
        assert_eq!(found.expect("found"), 3);
        let never = wait_until(Duration::from_millis(20), "nothing", async || None::<()>).await;
        assert!(
            never
                .expect_err("nothing came")
                .to_string()
                .contains("nothing")
        );
    }
}
