//! What a delivered message's reply subject says: which delivery, which sequences, when. Pure.

use medfleet_core::UnixMillis;

/// The numbers of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AckInfo {
    /// Deliveries of this message so far, this one included.
    pub(crate) deliveries: u64,
    /// Its place in the stream.
    pub(crate) stream_sequence: u64,
    /// Its place among what this consumer delivered; without a gap when nothing was lost on the way.
    pub(crate) consumer_sequence: u64,
    /// When the stream stored it.
    pub(crate) stored_at: UnixMillis,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<nanoseconds>.<pending>`, or its newer form
/// with domain and account before the stream.
pub(crate) fn parse(reply: &str) -> Option<AckInfo> {
    let tokens: Vec<&str> = reply.split('.').collect();
    let numbers = match tokens.as_slice() {
        ["$JS", "ACK", _stream, _consumer, numbers @ ..] if numbers.len() == 5 => numbers,
        [
            "$JS",
            "ACK",
            _domain,
            _account,
            _stream,
            _consumer,
            numbers @ ..,
        ] if numbers.len() >= 5 => numbers,
        _ => return None,
    };
    let number = |index: usize| numbers.get(index)?.parse::<u64>().ok();
    Some(AckInfo {
        deliveries: number(0)?,
        stream_sequence: number(1)?,
        consumer_sequence: number(2)?,
        stored_at: UnixMillis(i64::try_from(number(3)? / 1_000_000).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let expected = AckInfo {
            deliveries: 2,
            stream_sequence: 17,
            consumer_sequence: 5,
            stored_at: UnixMillis(1_795_467_600_123),
        };
        let check = |reply: &str, expected| assert_eq!(parse(reply), expected, "{reply}");
        check(
            "$JS.ACK.WORK_ENCODE.tiny_stat.2.17.5.1795467600123456789.0",
            Some(expected),
        );
        check(
            "$JS.ACK._.abcd.WORK_ENCODE.tiny_stat.2.17.5.1795467600123456789.0",
            Some(expected),
        );
        check(
            "$JS.ACK._.abcd.WORK_ENCODE.tiny_stat.2.17.5.1795467600123456789.0.xyz",
            Some(expected),
        );
        check("_INBOX.x.1", None);
        check("$JS.ACK.a.b.c.d.e.f.g", None);
    }
}
