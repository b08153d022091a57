//! What time it is by the queue's clock: the one clock that all processes have in common. Their own may differ by seconds, and
//! jump. What ends somebody else's job is decided by this one.

use medfleet_core::UnixMillis;
use serde::Deserialize;
use serde_json::json;

use crate::api::{Operation, parse_time, repeatable};
use crate::{Queue, QueueError, Result, subject};

#[derive(Deserialize)]
struct Info {
    ts: String,
}

impl Queue {
    /// The server's time of day, of when it was asked; of the server that also dates the accepts of
    /// [`Queue::list_pending`]. Costs a round trip: compare with the process's own clock first where that may save it.
    ///
    /// # Errors
    /// Transient ones, and [`QueueError::Malformed`].
    pub async fn time(&self) -> Result<UnixMillis> {
        const ASK: Operation = repeatable("ask for the time");
        let method = format!("STREAM.INFO.{}", subject::PENDING_STREAM);
        let info: Info = self.api.call(ASK, &method, &json!({})).await?;
        parse_time(&info.ts).ok_or(QueueError::malformed(
            "the server's time",
            "it is not a time in UTC",
        ))
    }
}
