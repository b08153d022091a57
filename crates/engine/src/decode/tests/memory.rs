//! Memory: who waits, who gives way, what is shared, and that none of it shows in a text.

use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::*;
use crate::prompt::{Part, Prompt};

mod classes;

/// Bytes of one block of the simulated model.
const BLOCK: u64 = 16 * 5 * 4096;

/// A prompt of this many words and these images first, no two alike for different `salt`.
fn long(words: usize, salt: u64, shades: &[u8], max_tokens: u32) -> DecodeRequest {
    let text: Vec<String> = (0..words).map(|word| format!("w{salt}x{word}")).collect();
    let mut parts = vec![Part::Image; shades.len()];
    parts.push(Part::Text(text.join(" ")));
    let system = String::new();
    DecodeRequest {
        prompt: Prompt { system, parts },
        images: shades.iter().map(|shade| tokens(*shade)).collect(),
        decoding: Decoding {
            seed: salt,
            ..Decoding::greedy(max_tokens)
        },
        scope: Digest::new([0; 32]),
        haste: Haste::STAT,
    }
}

/// The same for a job of this class.
fn of(class: Class, request: DecodeRequest) -> DecodeRequest {
    let haste = Haste {
        class,
        ..Haste::STAT
    };
    DecodeRequest { haste, ..request }
}

/// What each pass computed: (sequence, tokens).
type Passes = Arc<Mutex<Vec<Vec<(u64, u32)>>>>;

/// An engine that records its passes as they begin; the first one waits until the requests of the first call of [`all`] were
/// sent.
struct Recorded {
    engine: DecodeEngine,
    passes: Passes,
    gate: blocking::Sender<()>,
}

fn recorded(limits: DecodeLimits, blocks: u64) -> Recorded {
    held(limits, blocks, &[0])
}

/// As [`recorded`], but these passes wait, each for a call of [`open`].
fn held(limits: DecodeLimits, blocks: u64, waits: &[usize]) -> Recorded {
    let passes: Passes = Arc::default();
    let (record, waits) = (Arc::clone(&passes), waits.to_vec());
    let (gate, opened) = blocking::channel();
    let pass: Pass = Box::new(move |inner, works| {
        let works_done = works.iter().map(|work| (work.sequence.0, work.tokens));
        let mut passes = record.lock().expect("no panic");
        passes.push(works_done.collect());
        let index = passes.len() - 1;
        drop(passes);
        if waits.contains(&index) {
            // A test that is over has nothing to wait for.
            let _ = opened.recv();
        }
        inner.run(works)
    });
    let (engine, _releases) = wrapped(limits, blocks * BLOCK, pass);
    Recorded {
        engine,
        passes,
        gate,
    }
}

type Results = Vec<Result<(String, Done), EngineError>>;

type Running = Vec<JoinHandle<Result<(String, Done), EngineError>>>;

/// Starts to send requests; [`open`] lets all of them be sent.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are no service: nothing has to stop in order"
)]
fn send(recorded: &Recorded, requests: &[DecodeRequest]) -> Running {
    let running = requests.iter().cloned().map(|request| {
        let engine = recorded.engine.clone();
        tokio::spawn(async move { text_of(&engine, request).await })
    });
    running.collect()
}

/// Lets a pass that waits go on, once all requests were sent.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are no service: nothing has to stop in order"
)]
async fn open(recorded: &Recorded) {
    // The runtime of a test has one thread and polls tasks in this order: by now each has sent its request.
    let gate = recorded.gate.clone();
    let opened = tokio::spawn(async move { gate.send(()) });
    // After the last pass that waits nobody is at the gate.
    let _ = opened.await.expect("no panic");
}

/// Reads what comes.
async fn read(running: Running) -> Results {
    let mut results = Vec::new();
    for running in running {
        results.push(running.await.expect("no panic"));
    }
    results
}

/// Sends all requests in order before the first pass, and reads what comes.
async fn all(recorded: &Recorded, requests: Vec<DecodeRequest>) -> Results {
    let running = send(recorded, &requests);
    open(recorded).await;
    read(running).await
}

fn expected(request: &DecodeRequest) -> String {
    let whole = simulated().text(&request.prompt, &request.images, request.decoding.seed);
    let words = request.decoding.max_tokens as usize;
    // A word is a token; headings have no space in front.
    let ends = whole.match_indices([' ', '\n']).map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([whole.len()]).collect();
    whole[..ends[(words - 1).min(ends.len() - 1)]].to_owned()
}

#[tokio::test]
async fn prompts_are_read_in_stretches_beside_texts_that_are_written() {
    let limits = DecodeLimits {
        prefill_tokens_max: 10,
        ..LIMITS
    };
    let recorded = recorded(limits, 100);
    let requests = vec![long(3, 1, &[], 16), long(40, 2, &[5], 4)];
    for (result, request) in all(&recorded, requests.clone()).await.iter().zip(&requests) {
        assert_eq!(result.as_ref().expect("it decodes").0, expected(request));
    }
    let passes = recorded.passes.lock().expect("no panic").clone();
    let long_reads: Vec<u32> = passes
        .iter()
        .flatten()
        .filter(|(sequence, tokens)| *sequence == 1 && *tokens > 1)
        .map(|(_, tokens)| *tokens)
        .collect();
    // 1 + 4 + 40 tokens, at most 10 a pass; the first may share its pass with the other's prompt.
    assert!(
        long_reads.iter().all(|tokens| *tokens <= 10),
        "{long_reads:?}"
    );
    assert!(long_reads.len() >= 4, "{long_reads:?}");
    let together = passes.iter().filter(|pass| pass.len() == 2).count();
    assert!(
        together >= 4,
        "the first text goes on meanwhile: {passes:?}"
    );
}

#[tokio::test]
async fn while_the_length_of_stretches_is_measured_prompts_are_read_in_each_in_turns() {
    let limits = DecodeLimits {
        prefill_tokens_max: 128,
        prefill_measured: true,
        ..LIMITS
    };
    let recorded = recorded(limits, 100);
    for salt in 1..=4 {
        let request = long(149, salt, &[], 4);
        let result = all(&recorded, vec![request.clone()]).await.remove(0);
        assert_eq!(result.expect("it decodes").0, expected(&request));
    }
    let passes = recorded.passes.lock().expect("no panic").clone();
    let longest = |sequence: u64| {
        let of = passes.iter().flatten().filter(|(of, _)| *of == sequence);
        of.map(|(_, tokens)| *tokens).max()
    };
    // The first one finds caches and clocks cold, and counts for neither.
    let found = [0, 1, 2, 3].map(longest);
    assert_eq!(found, [Some(128), Some(128), Some(64), Some(128)]);
}

#[tokio::test]
async fn an_image_is_never_cut_even_when_a_stretch_is_shorter() {
    let limits = DecodeLimits {
        prefill_tokens_max: 3,
        ..LIMITS
    };
    let recorded = recorded(limits, 100);
    let request = long(2, 1, &[1, 2], 4);
    let result = all(&recorded, vec![request.clone()]).await.remove(0);
    assert_eq!(result.expect("it decodes").0, expected(&request));
    let passes = recorded.passes.lock().expect("no panic").clone();
    let reads: Vec<u32> = passes.iter().flatten().map(|(_, tokens)| *tokens).collect();
    // The token that begins, two images of four, two words; then single tokens.
    assert_eq!(reads[..4], [1, 4, 4, 2]);
}

#[tokio::test]
async fn when_memory_runs_out_the_youngest_gives_way_and_loses_nothing() {
    // Each: 1 + 30 tokens of prompt (2 blocks) and up to 16 of text (3 blocks in all). Five blocks hold two prompts,
    // and not two whole texts.
    let requests: Vec<DecodeRequest> = (1..=4).map(|salt| long(30, salt, &[], 16)).collect();
    let recorded = recorded(LIMITS, 5);
    let mut preemptions = 0;
    for (result, request) in all(&recorded, requests.clone())
        .await
        .into_iter()
        .zip(&requests)
    {
        let (text, done) = result.expect("nothing is lost");
        assert_eq!(text, expected(request), "and nothing is repeated");
        assert_eq!(done.tokens.len(), 16);
        preemptions += done.preemptions;
    }
    assert!(preemptions > 0, "memory did run out");
    // Ends come in order of arrival: the oldest never gives way.
    let passes = recorded.passes.lock().expect("no panic").clone();
    let last = |sequence| {
        let has = |pass: &Vec<(u64, u32)>| pass.iter().any(|(s, _)| *s == sequence);
        passes.iter().rposition(has).expect("it ran")
    };
    assert!((1..4).all(|s| last(s - 1) <= last(s)), "{passes:?}");
}

#[tokio::test]
async fn a_prefix_is_shared_with_its_images_and_only_within_a_scope() {
    let recorded = recorded(LIMITS, 100);
    let base = long(60, 1, &[3, 4], 8);
    let first = all(&recorded, vec![base.clone()])
        .await
        .remove(0)
        .expect("it decodes");
    assert_eq!(first.1.prefix_tokens, 0);
    let known = async |request: DecodeRequest| {
        let (text, done) = all(&recorded, vec![request])
            .await
            .remove(0)
            .expect("it decodes");
        (text, done.prefix_tokens)
    };
    // 1 + 8 + 60 tokens: four full blocks.
    assert_eq!(known(base.clone()).await, (first.0.clone(), 64));
    let mut other_scope = base.clone();
    other_scope.scope = Digest::new([1; 32]);
    assert_eq!(known(other_scope).await, (first.0.clone(), 0));
    let mut other_image = base.clone();
    other_image.images.swap(0, 1);
    let (text, tokens) = known(other_image).await;
    assert_eq!(tokens, 0, "both images are in the first block");
    assert_ne!(text, first.0, "swapped images are seen");
    // The same beginning with another end.
    let mut longer = base.clone();
    if let Some(Part::Text(text)) = longer.prompt.parts.last_mut() {
        text.push_str(" and more");
    }
    assert_eq!(known(longer).await.1, 64);
    let reads = recorded.passes.lock().expect("no panic").clone();
    let first_pass_of = |sequence: u64| {
        let of = |pass: &Vec<(u64, u32)>| pass.iter().find(|(s, _)| *s == sequence).copied();
        reads.iter().find_map(of)
    };
    assert_eq!(first_pass_of(1), Some((1, 5)), "only the rest is read");
}

#[tokio::test]
async fn what_is_remembered_makes_room_for_what_is_asked() {
    // Six blocks: each request takes five of them and leaves four remembered.
    let recorded = recorded(LIMITS, 6);
    for salt in 1..=5 {
        let request = long(70, salt, &[], 8);
        let result = all(&recorded, vec![request.clone()]).await.remove(0);
        assert_eq!(result.expect("there is room").0, expected(&request));
    }
}

#[tokio::test]
async fn seeds_and_neighbours_and_classes_and_memory_change_no_text() {
    for seed in 0..24_u64 {
        // Sizes from the seed: lengths 1 to 60, 0 to 2 images, texts of 1 to 16 tokens.
        let mix = |n: u64| {
            seed.wrapping_mul(0x9e37_79b9)
                .wrapping_add(n.wrapping_mul(0x85eb_ca6b))
        };
        let request = |n: u64| {
            let value = mix(n) >> 3;
            let images: Vec<u8> = (0..value % 3).map(|i| (value + i) as u8).collect();
            let (words, text) = (value % 60 + 1, value / 60 % 16 + 1);
            let class = Class::ALL[(value / 7 % 4) as usize];
            // Half of them share their words with another.
            of(
                class,
                long(words as usize, mix(n / 2), &images, text as u32),
            )
        };
        let requests: Vec<DecodeRequest> = (0..6).map(request).collect();
        let limits = DecodeLimits {
            sequences_max: (seed % 4 + 1) as usize,
            queue_max: 8,
            prefill_tokens_max: (seed % 7 + 1) as u32,
            prefill_measured: false,
            speculation: None,
        };
        // At least one fits: 1 + 60 + 8 + 16 tokens are six blocks.
        let recorded = recorded(limits, 6 + seed % 5);
        let results = all(&recorded, requests.clone()).await;
        for (result, request) in results.into_iter().zip(&requests) {
            let (text, _) = result.expect("it decodes");
            assert_eq!(text, expected(request), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn stop_strings_end_a_text_and_are_never_shown() {
    let engine = engine(LIMITS, PLENTY);
    let base = request(&[1], greedy());
    let (whole, _) = text_of(&engine, base.clone()).await.expect("it decodes");
    let at = whole.find("\nImpression:").expect("it has both headings");
    let mut stopped = base;
    // Two tokens wide: the end of one word and the beginning of the next.
    stopped.decoding.stop = vec![whole[at - 3..at + 4].to_owned()];
    let (text, done) = text_of(&engine, stopped).await.expect("it decodes");
    assert_eq!(text, whole[..at - 3]);
    assert_eq!(done.finish, Finish::Stop);
    let last = done.tokens.last().expect("it wrote");
    assert_eq!(last.end as usize, text.len());
}

#[tokio::test]
async fn a_text_under_a_form_has_it_and_reports_alternatives() {
    use medfleet_model::Constraint;
    let engine = engine(LIMITS, PLENTY);
    let mut asked = request(&[1], greedy());
    asked.decoding.constraint = Some(Constraint::Regex("Final Answer: (yes|no)".to_owned()));
    asked.decoding.alternatives = 4;
    let (text, done) = text_of(&engine, asked).await.expect("it decodes");
    assert!(
        ["Final Answer: yes", "Final Answer: no"].contains(&text.as_str()),
        "{text}"
    );
    assert_eq!(
        (done.finish, done.alternatives.len()),
        (Finish::Stop, text.len())
    );
    assert_eq!(done.alternatives[0].len(), 1, "the first letter is forced");
    assert_eq!(done.alternatives[14].len(), 2, "yes or no");
    let mut bad = request(&[1], greedy());
    bad.decoding.constraint = Some(Constraint::Regex("(".to_owned()));
    let refused = engine.decode(bad).await.expect_err("it cannot be enforced");
    assert!(matches!(refused, EngineError::Constraint(_)));
    let mut bad = request(&[1], greedy());
    bad.decoding.top_p = 0.0;
    let refused = engine.decode(bad).await.expect_err("out of range");
    assert_eq!(
        refused.to_string(),
        "decoding.top_p is 0, allowed is above 0, at most 1"
    );
}
