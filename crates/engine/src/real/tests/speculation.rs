//! Proposals change nothing: every text, every probability and every alternative is, bit for bit, what is written without.

use super::*;
use crate::decode::DecodeEvent;
use crate::speculation::Speculation;

/// Everything that is proposed is verified, whether it pays or not.
pub(super) const ALWAYS: DecodeLimits = DecodeLimits {
    speculation: Some(Speculation {
        tokens_max: 7,
        memory_bytes_max: 1 << 20,
        always: true,
    }),
    ..LIMITS
};

/// Texts of one engine, side by side.
pub(super) async fn all(engine: &DecodeEngine, requests: &[DecodeRequest]) -> Vec<(String, Done)> {
    let mut streams = Vec::new();
    for request in requests {
        streams.push(engine.decode(request.clone()).await.expect("it fits"));
    }
    let mut texts = Vec::new();
    for stream in &mut streams {
        texts.push(stream.collect().await.expect("it decodes"));
    }
    texts
}

/// What must be the same: all but times and what memory did.
pub(super) fn same(what: &str, found: &[(String, Done)], expected: &[(String, Done)]) {
    for ((text, done), (expected_text, expected)) in found.iter().zip(expected) {
        assert_eq!(text, expected_text, "{what}");
        assert_eq!(done.finish, expected.finish, "{what}");
        assert_eq!(done.tokens, expected.tokens, "{what}: {text}");
        assert_eq!(done.alternatives, expected.alternatives, "{what}");
        assert_eq!(done.prompt, expected.prompt, "{what}");
    }
    assert_eq!(found.len(), expected.len());
}

/// Proposed tokens that were verified, and those of them that were right.
fn verified(engine: &DecodeEngine) -> (u64, u64) {
    let verified = engine.load()().verified();
    (verified.proposed, verified.accepted)
}

/// Requests of every kind: long and short, with and without images, greedy and drawn.
pub(super) fn mixed(seed: u64, tokens: &[ImageTokens]) -> Vec<DecodeRequest> {
    let one = |n: u64| {
        let value = seed * 7 + n;
        let question = if value.is_multiple_of(5) {
            Question::Report {
                clinical_context: String::new(),
            }
        } else {
            answer("what is seen? ".repeat(value as usize % 2 + 1))
        };
        let images = &tokens[..(value as usize + 2) % 3];
        let temperature = [0.0, 0.0, 0.4, 0.9][value as usize % 4];
        let decoding = Decoding {
            repetition_penalty: if value.is_multiple_of(5) { 1.3 } else { 1.0 },
            alternatives: u32::from(value.is_multiple_of(2)) * 3,
            ..decoding(40 + (value % 23) as u32, temperature, value)
        };
        request(&question, images, decoding)
    };
    (0..4).map(one).collect()
}

#[tokio::test]
async fn what_is_proposed_changes_no_bit_of_what_is_written() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let (mut proposed, mut accepted, mut preemptions) = (0, 0, 0);
    for seed in 0..6 {
        let requests = mixed(seed, &tokens);
        let plain = start(&loaded, LIMITS, KV_BYTES_MAX);
        let expected = all(&plain, &requests).await;
        assert!(plain.phrases().is_none() && verified(&plain) == (0, 0));
        // Room for the largest of them and little more.
        let sizes = requests.iter().map(|request| blocks(&loaded, request));
        let (most, block_bytes) = sizes.max().expect("four requests");
        let little = (block_bytes * (most + seed as usize % 3)) as u64;
        for memory in [KV_BYTES_MAX, little] {
            let engine = start(&loaded, ALWAYS, memory);
            assert!(engine.phrases().is_some());
            // The second time the tenant's own texts are known, the third time backwards.
            for turn in 0..3 {
                let mut requests = requests.clone();
                let mut expected = expected.clone();
                if turn == 2 {
                    requests.reverse();
                    expected.reverse();
                }
                let found = all(&engine, &requests).await;
                same(&format!("seed {seed}, turn {turn}"), &found, &expected);
                preemptions += found.iter().map(|(_, done)| done.preemptions).sum::<u32>();
            }
            let (of_engine, right) = verified(&engine);
            proposed += of_engine;
            accepted += right;
        }
    }
    assert!(preemptions > 2, "memory did run out");
    assert!(
        accepted > 100 && proposed > accepted + 100,
        "{accepted} of {proposed}: right ones and wrong ones"
    );
}

#[tokio::test]
async fn a_text_ends_where_it_ended_without_proposals() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let question = answer("what is seen?");
    let base = request(&question, &tokens[..1], Decoding::greedy(24));
    let plain = start(&loaded, LIMITS, KV_BYTES_MAX);
    let engine = start(&loaded, ALWAYS, KV_BYTES_MAX);
    let whole = all(&plain, std::slice::from_ref(&base)).await.remove(0).0;
    // Known by heart from here on.
    for _ in 0..2 {
        all(&engine, std::slice::from_ref(&base)).await;
    }
    let mut requests = Vec::new();
    for max_tokens in 1..24 {
        let mut cut = base.clone();
        cut.decoding.max_tokens = max_tokens;
        requests.push(cut);
    }
    let tokenizer = loaded.model.tokenizer().expect("the text half is loaded");
    let ids = tokenizer.encode(&whole).expect("it is text");
    for id in ids.iter().take(6) {
        let mut stopped = base.clone();
        stopped.decoding.stop_tokens = vec![*id];
        requests.push(stopped);
    }
    let ends: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    for pair in ends.windows(4).step_by(3) {
        let mut stopped = base.clone();
        stopped.decoding.stop = vec![whole[pair[0]..pair[3]].to_owned()];
        requests.push(stopped);
    }
    let before = verified(&engine);
    for requests in requests.chunks(3) {
        let expected = all(&plain, requests).await;
        let found = all(&engine, requests).await;
        same("an end", &found, &expected);
    }
    let after = verified(&engine);
    assert!(after.1 > before.1 + 100, "{before:?} {after:?}");
}

#[tokio::test]
async fn forms_are_kept() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let schema = r#"{"type": "object", "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9},
        "seen": {"enum": ["heart", "lung"]}}, "required": ["count", "seen"], "additionalProperties": false}"#;
    let extract = Question::Extract {
        json_schema: schema.to_owned(),
    };
    let classify = |label: &str| Question::Classify {
        label: label.to_owned(),
    };
    let decoding = Decoding {
        alternatives: 20,
        ..Decoding::greedy(80)
    };
    let requests = [
        request(&extract, &tokens[..1], decoding.clone()),
        request(&classify("an effusion"), &tokens[..1], decoding.clone()),
        request(&classify("a nodule"), &tokens[1..], decoding),
    ];
    let expected = all(&start(&loaded, LIMITS, KV_BYTES_MAX), &requests).await;
    let engine = start(&loaded, ALWAYS, KV_BYTES_MAX);
    for turn in 0..3 {
        let found = all(&engine, &requests).await;
        same(&format!("turn {turn}"), &found, &expected);
    }
    let (proposed, accepted) = verified(&engine);
    assert!(accepted > 40, "{accepted} of {proposed}");
}

/// What one text more adds to the proposals that were verified.
async fn added(engine: &DecodeEngine, request: DecodeRequest) -> (u64, u64) {
    let before = verified(engine);
    write_text(engine, request).await;
    let after = verified(engine);
    (after.0 - before.0, after.1 - before.1)
}

/// The same question of a tenant each time.
fn of(scope: u8) -> DecodeRequest {
    let question = answer("what is seen?");
    DecodeRequest {
        scope: Digest::new([scope; 32]),
        ..request(&question, &[], decoding(24, 0.9, 5))
    }
}

#[tokio::test]
async fn tenants_do_not_help_each_other_and_what_is_forgotten_does_not_either() {
    let loaded = tiny();
    let engine = start(&loaded, ALWAYS, KV_BYTES_MAX);
    let first = added(&engine, of(1)).await;
    let again = added(&engine, of(1)).await;
    assert!(again.1 > first.1 + 10, "{first:?}, then {again:?}");
    assert_eq!(added(&engine, of(2)).await, first, "another tenant");
    let phrases = engine.phrases().expect("tokens are proposed");
    phrases.forget(&Digest::new([1; 32]));
    assert_eq!(added(&engine, of(1)).await, first, "forgotten");
    assert!(
        added(&engine, of(2)).await.1 > first.1 + 10,
        "the other is not"
    );
    // Nor does one that is still being written when its tenant's are forgotten.
    let mut stream = engine.decode(of(3)).await.expect("it fits");
    phrases.forget(&Digest::new([3; 32]));
    while let DecodeEvent::Text(_) = stream.next().await.expect("it decodes") {}
    let after = added(&engine, of(3)).await;
    assert!(after.1 <= first.1 + 10, "{first:?}, then {after:?}");
}

#[tokio::test]
async fn nothing_is_proposed_where_a_row_depends_on_those_beside_it() {
    let on = |device: &str| tiny_on(device.parse().expect("a device"));
    let generic = on("cpu:generic");
    let engine = start(&generic, ALWAYS, KV_BYTES_MAX);
    assert!(engine.phrases().is_none());
    let question = answer("what is seen?");
    for _ in 0..2 {
        let asked = request(&question, &[], Decoding::greedy(20));
        let (text, done) = write_text(&engine, asked.clone()).await;
        check(&asked, &generic, &text, &done);
    }
    assert_eq!(verified(&engine), (0, 0));
    assert!(
        start(&on("cpu:portable"), ALWAYS, KV_BYTES_MAX)
            .phrases()
            .is_some()
    );
}
