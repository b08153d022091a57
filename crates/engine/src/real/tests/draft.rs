//! A second model: what it proposes is what it would write, and changes no bit of what the first one writes.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use medfleet_model::GgufWriter;
use tempfile::TempDir;

use super::speculation::{ALWAYS, all, mixed, same};
use super::*;
use crate::backend::{Sequence, Work};
use crate::config::{FolderWeights, LoadedModel, ModelConfig, ModelDevice, ModelDtype};
use crate::real::drafter::likeliest;
use crate::speculation::chances::Source;
use crate::speculation::{DraftSteps, Phrases, Proposing, Speculation};

/// Prompt and text of a model that writes the likeliest tokens, whatever they are.
fn written(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let (mut pool, mut table) = (small_pool(model), model::BlockTable::default());
    pool.reserve(&mut table, prompt.len() + count)
        .expect("it fits");
    let (mut tokens, mut start) = (prompt.to_vec(), 0);
    for _ in 0..count {
        let chunk = model::Chunk {
            tokens: &tokens[start..],
            images: &[],
            start,
            table: &table,
            want: model::Want::Last,
        };
        let rows = model.forward(&mut pool, &[chunk]).expect("it computes");
        let guess = likeliest(&rows[0].rows[0], model.forbidden_tokens()).expect("a number");
        start = tokens.len();
        tokens.push(guess.token);
    }
    tokens
}

fn prompt(model: &Model, text: &str, images: usize) -> Vec<u32> {
    let messages = [model::Message::user(images, text)];
    let prompt = model.prompt(&messages, images).expect("a prompt");
    prompt.tokens().to_vec()
}

fn drafter(loaded: &Loaded) -> Drafter {
    let model = Arc::clone(&loaded.model);
    Drafter::new(model, 1 << 24, &loaded.model).expect("a small pool")
}

/// What it proposes behind `known` certain tokens and these proposals, one step after the other.
fn guesses(
    drafter: &mut Drafter,
    sequence: Sequence,
    (certain, proposed): (&[u32], &[u32]),
    count: usize,
) -> Vec<u32> {
    drafter.follow(sequence, certain, proposed);
    let mut proposed = proposed.to_vec();
    let before = proposed.len();
    for _ in 0..count {
        let stepped = drafter.step(&[(sequence, proposed.clone())]);
        proposed.push(stepped.guesses[0].expect("it is read to its end").token);
    }
    proposed.split_off(before)
}

#[test]
fn it_proposes_what_it_would_write_however_much_of_that_was_right_before() {
    let loaded = tiny();
    let model = &loaded.model;
    let prompt = prompt(model, "what is seen?", 0);
    let text = written(model, &prompt, 120);
    let (mut drafter, sequence) = (drafter(&loaded), Sequence(3));
    drafter.open(sequence, Digest::new([0; 32]), &prompt);
    let mut known = prompt.len();
    let wrong = |token: u32| if token == 300 { 301 } else { 300 };
    // Proposals of a round, and how many tokens are certain after it; nothing, all and more than it had read ahead.
    let rounds = [
        (4, 1),
        (4, 2),
        (4, 4),
        (4, 5),
        (1, 1),
        (1, 2),
        (7, 3),
        (0, 6),
        (3, 3),
        (5, 20),
    ];
    for (round, (count, further)) in rounds.into_iter().cycle().take(15).enumerate() {
        let certain = &text[..known];
        let found = guesses(&mut drafter, sequence, (certain, &[]), count);
        assert_eq!(found, text[known..known + count], "round {round}");
        if round % 3 == 1 {
            // The same round with another's proposals in front, of which the second is wrong.
            let others = [text[known], wrong(text[known + 1])];
            guesses(&mut drafter, sequence, (certain, &others), 2);
        }
        if round == 8 {
            drafter.suspend(sequence);
            assert_eq!(drafter.blocks_used(), 0);
        }
        known += further;
    }
    drafter.release(sequence);
    assert_eq!(drafter.blocks_used(), 0);
    drafter.follow(sequence, &text, &[]);
    assert!(drafter.step(&[(sequence, Vec::new())]).guesses[0].is_none());
}

#[test]
fn it_reads_prompts_without_their_images_and_long_ones_a_stretch_at_a_time() {
    let loaded = tiny();
    let model = &loaded.model;
    let (with, without) = (prompt(model, "what?", 2), prompt(model, "what?", 0));
    let markers = loaded.model.tokenizer().and_then(|of| of.special().image);
    let markers = markers.expect("it sees images");
    let image = [markers.start, markers.soft, markers.end];
    let read: Vec<u32> = with
        .iter()
        .copied()
        .filter(|token| !image.contains(token))
        .collect();
    assert!(read.len() > without.len() && read.len() < with.len());
    let text = written(model, &read, 8);
    let long = prompt(model, &"a long question, ".repeat(90), 0);
    assert!(long.len() > 300, "{} tokens", long.len());
    let mut drafter = drafter(&loaded);
    let scope = Digest::new([0; 32]);
    let texts = [Sequence(0), Sequence(1)];
    drafter.open(texts[0], scope, &with);
    drafter.open(texts[1], scope, &long);
    drafter.follow(texts[0], &with, &[]);
    drafter.follow(texts[1], &long, &[]);
    let going = texts.map(|sequence| (sequence, Vec::new()));
    let stepped = drafter.step(&going);
    assert!(stepped.caught_up && stepped.guesses[1].is_none());
    let first = stepped.guesses[0].expect("it is read to its end");
    assert_eq!(first.token, text[read.len()]);
    // The other one is read on at the next passes; this one goes on as if it were alone.
    let certain: Vec<u32> = with.iter().chain(&text[read.len()..]).copied().collect();
    drafter.follow(texts[0], &certain[..with.len() + 1], &[]);
    let mut second = drafter.step(&going).guesses;
    let further = second[0].expect("it is read to its end");
    assert_eq!(further.token, text[read.len() + 1]);
    for _ in 0..10 {
        if second[1].is_none() {
            drafter.follow(texts[1], &long, &[]);
            second = drafter.step(&going).guesses;
        }
    }
    let of_long = second[1].expect("it is read to its end").token;
    assert_eq!(of_long, written(model, &long, 1)[long.len()]);
    for sequence in texts {
        drafter.release(sequence);
    }
    assert_eq!(drafter.blocks_used(), 0);
}

#[test]
fn what_is_no_numbers_is_not_taken_over_and_not_tried_again() {
    let loaded = tiny();
    let folder = poisoned("language_model.model.norm.weight", 0, f32::NAN);
    let damaged = Arc::new(text_half(folder.path()));
    let drafter = Drafter::new(damaged, 1 << 24, &loaded.model);
    let mut drafter = drafter.expect("a small pool");
    let prompt = prompt(&loaded.model, &"what is seen? ".repeat(8), 0);
    assert!(prompt.len() > BLOCK_TOKENS, "it fills a block");
    let (first, second) = (Sequence(0), Sequence(1));
    for sequence in [first, second] {
        drafter.open(sequence, Digest::new([0; 32]), &prompt);
    }
    drafter.follow(first, &prompt, &[]);
    assert!(drafter.step(&[(first, Vec::new())]).guesses[0].is_none());
    assert_eq!(drafter.blocks_used(), 0, "it is not read any further");
    drafter.follow(second, &prompt, &[]);
    assert_eq!(drafter.blocks_used(), 0, "it finds nothing of the first");
}

/// The language model of the tiny checkpoint alone, with its weights or others.
fn text_only(other_weights: bool) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let from = tiny_folder();
    for name in [
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(from.join(name), folder.path().join(name)).expect("it is copied");
    }
    let config = fs::read_to_string(from.join("config.json")).expect("it is there");
    let (_, text) = config.split_once("\"text_config\": ").expect("it has one");
    let (text, _) = text.split_once(",\n \"vision_config\"").expect("it ends");
    fs::write(folder.path().join("config.json"), text).expect("it is written");
    let mut weights = fs::read(from.join("model.safetensors")).expect("they are there");
    if other_weights {
        let header = weights.first_chunk().expect("it has a header");
        let data = 8 + usize::try_from(u64::from_le_bytes(*header)).expect("a length");
        // All numbers in reverse order: the same numbers in other places.
        weights[data..].reverse();
        weights[data..]
            .chunks_exact_mut(4)
            .for_each(<[u8]>::reverse);
    }
    fs::write(folder.path().join("model.safetensors"), weights).expect("they are written");
    folder
}

/// A language model with the tokens of the tiny checkpoint, in a GGUF with matrices of Q5_0, for which there are no kernels.
/// All its weights are zeros.
fn in_q5_0(folder: &Path) -> PathBuf {
    // ggml's numbers of the two types.
    const F32: u32 = 0;
    const Q5_0: u32 = 6;
    let mut writer = GgufWriter::default().text("general.architecture", "gemma3");
    for (key, size) in [
        ("context_length", 4096),
        ("embedding_length", 64),
        ("block_count", 2),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 24),
        ("attention.value_length", 24),
        ("attention.sliding_window", 12),
        ("attention.sliding_window_pattern", 2),
    ] {
        writer = writer.size(&format!("gemma3.{key}"), size);
    }
    let of_layer: [(&str, &[usize]); 13] = [
        ("attn_norm", &[64]),
        ("attn_q", &[96, 64]),
        ("attn_k", &[48, 64]),
        ("attn_v", &[48, 64]),
        ("attn_output", &[64, 96]),
        ("attn_q_norm", &[24]),
        ("attn_k_norm", &[24]),
        ("post_attention_norm", &[64]),
        ("ffn_norm", &[64]),
        ("ffn_gate", &[128, 64]),
        ("ffn_up", &[128, 64]),
        ("ffn_down", &[64, 128]),
        ("post_ffw_norm", &[64]),
    ];
    let around: [(&str, &[usize]); 2] = [("token_embd", &[638, 64]), ("output_norm", &[64])];
    let around = around.map(|(name, shape)| (name.to_owned(), shape));
    let mut tensors = Vec::from(around);
    for layer in 0..2 {
        tensors.extend(of_layer.map(|(name, shape)| (format!("blk.{layer}.{name}"), shape)));
    }
    let mut bytes = Vec::new();
    for (name, shape) in tensors {
        let values: usize = shape.iter().product();
        let (dtype, held) = match shape.len() {
            1 => (F32, values * 4),
            // 32 weights in 22 bytes.
            _ => (Q5_0, values / 32 * 22),
        };
        writer.tensor(&format!("{name}.weight"), shape, dtype, held as u64);
        bytes.push(held);
    }
    let path = folder.join("draft.gguf");
    let mut file = fs::File::create(&path).expect("it is created");
    let zeros = |at: usize, file: &mut dyn Write| file.write_all(&vec![0; bytes[at]]);
    writer.write(&mut file, zeros).expect("it is written");
    let tokenizer = folder.join("tokenizer.json");
    fs::copy(tiny_folder().join("tokenizer.json"), tokenizer).expect("it is copied");
    path
}

fn text_half(folder: &Path) -> Model {
    let options = LoadOptions {
        dtype: model::Dtype::F32,
        parts: Parts::Text,
        device: ComputeDevice::Cpu,
    };
    Model::load(folder, options).expect("it loads")
}

fn drafted_by(loaded: &Loaded, folder: &Path) -> Loaded {
    let with = loaded.clone().with_draft(text_half(folder));
    with.expect("its tokens are the same")
}

#[tokio::test]
async fn no_draft_changes_a_bit_of_what_is_written() {
    let loaded = tiny();
    let tokens = two_images(&loaded).await;
    let (itself, good, bad) = (tiny_folder(), text_only(false), text_only(true));
    for (what, folder, seed) in [
        ("itself", itself.as_path(), 0),
        ("its language model", good.path(), 1),
        ("other weights", bad.path(), 2),
    ] {
        let requests = mixed(seed, &tokens);
        let plain = start(&loaded, LIMITS, KV_BYTES_MAX);
        let expected = all(&plain, &requests).await;
        let with = drafted_by(&loaded, folder);
        // Much memory, and hardly enough for the largest of them beside as much for the second model.
        let sizes = requests.iter().map(|request| blocks(&loaded, request));
        let (most, block_bytes) = sizes.max().expect("four requests");
        for memory in [KV_BYTES_MAX, 2 * (block_bytes * (most + 1)) as u64] {
            let engine = start(&with, ALWAYS, memory);
            for turn in 0..2 {
                let found = all(&engine, &requests).await;
                same(&format!("{what}, turn {turn}"), &found, &expected);
            }
            let drafted = engine.load()().drafted;
            assert!(drafted.proposed > 20, "{what}: {drafted:?}");
            if what == "other weights" {
                assert!(drafted.accepted * 2 < drafted.proposed, "{drafted:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_model_itself_proposes_what_it_writes() {
    let loaded = tiny();
    let with = drafted_by(&loaded, &tiny_folder());
    let limits = DecodeLimits {
        speculation: Some(Speculation {
            tokens_max: 4,
            memory_bytes_max: 0,
            always: true,
        }),
        ..LIMITS
    };
    let engine = start(&with, limits, KV_BYTES_MAX);
    let asked = request(&answer("what is seen?"), &[], Decoding::greedy(60));
    only_drafts(&engine.phrases().expect("it proposes"), asked.scope);
    let (text, done) = write_text(&engine, asked.clone()).await;
    check(&asked, &loaded, &text, &done);
    let load = engine.load()();
    assert_eq!(load.looked_up.proposed, 0);
    assert!(load.drafted.proposed > 0, "{load:?}");
    // To the bit what the first one computes, so that all of it is right.
    assert_eq!(load.drafted.accepted, load.drafted.proposed);
}

/// Lets a scope's texts have what follows the same tokens so seldom that it gives way to a second model.
fn only_drafts(phrases: &Phrases, scope: Digest) {
    let mut memory = phrases.lock();
    let tenant = memory.tenant(scope, std::time::Instant::now());
    for length in 2..=12 {
        for _ in 0..20 {
            tenant.chances_mut().measure(Source::own(length), false);
        }
    }
}

/// Proposes until each of these texts has what a second model proposed, which reads their prompts first.
fn drafted(decoder: &mut Decoder, texts: &[Sequence]) -> Proposing {
    for _ in 0..20 {
        let proposing = decoder.propose(texts, 4, 4);
        let of_texts = &proposing.texts;
        if of_texts.iter().all(|of| of.iter().any(|one| one.drafted)) {
            return proposing;
        }
    }
    panic!("nothing is drafted");
}

/// Takes a text on, and reads its prompt in one pass.
fn read(decoder: &mut Decoder, sequence: Sequence, asked: &DecodeRequest) {
    decoder.open(sequence, asked).expect("it is taken on");
    decoder.begin(sequence);
    let work = Work {
        sequence,
        tokens: decoder.stretch(sequence, u32::MAX),
        proposed: 0,
    };
    assert!(decoder.reserve(sequence, work.tokens));
    decoder.run(&[work]).expect("it is read");
}

#[test]
fn a_text_without_memory_is_no_measure_of_what_a_step_takes() {
    let loaded = tiny();
    // Of each group of layers a block, which is less than the prompt takes.
    let bytes = (loaded.model.kv_position_bytes() * BLOCK_TOKENS) as u64;
    let small = Drafter::new(Arc::clone(&loaded.model), bytes, &loaded.model);
    let small = small.expect("a pool of one block");
    let mut decoder = small_decoder(&loaded).with_drafter(Some(small));
    let phrases = Phrases::new(0);
    assert!(decoder.speculate(phrases.clone()));
    let (text, asked) = (
        Sequence(0),
        request(&answer("what is seen?"), &[], Decoding::greedy(60)),
    );
    only_drafts(&phrases, asked.scope);
    read(&mut decoder, text, &asked);
    let proposing = decoder.propose(&[text], 4, 4);
    assert!(proposing.texts.iter().flatten().all(|one| !one.drafted));
    assert_eq!(proposing.steps, DraftSteps::default());
    assert_eq!(decoder.draft_blocks_used(), 0);
}

#[test]
fn a_text_that_is_released_leaves_nothing_in_either_memory() {
    let loaded = tiny();
    let mut decoder = small_decoder(&loaded).with_drafter(Some(drafter(&loaded)));
    let phrases = Phrases::new(0);
    assert!(decoder.speculate(phrases.clone()));
    let texts = [Sequence(0), Sequence(1)];
    for (sequence, scope) in texts.into_iter().zip([1, 2]) {
        let asked = DecodeRequest {
            scope: Digest::new([scope; 32]),
            ..request(&answer("what is seen?"), &[], Decoding::greedy(60))
        };
        only_drafts(&phrases, asked.scope);
        read(&mut decoder, sequence, &asked);
    }
    assert!(decoder.draft_chance(&texts).is_some());
    let proposing = drafted(&mut decoder, &texts);
    assert!(proposing.steps.count > 0, "{proposing:?}");
    let used = |decoder: &Decoder| {
        let kv = decoder.kv();
        (kv.blocks - kv.available, decoder.draft_blocks_used())
    };
    let (of_both, of_drafts) = used(&decoder);
    assert!(of_both > 0 && of_drafts > 0);
    // One is cancelled with its proposals unverified, the other gives way and comes back.
    decoder.release(texts[0]);
    let (of_one, of_draft) = used(&decoder);
    assert!(of_one < of_both && of_draft < of_drafts && of_draft > 0);
    decoder.suspend(texts[1]);
    assert_eq!(used(&decoder), (0, 0));
    decoder.begin(texts[1]);
    let left = decoder.left(texts[1]);
    assert!(decoder.reserve(texts[1], left));
    let work = Work {
        sequence: texts[1],
        tokens: left,
        proposed: 0,
    };
    decoder.run(&[work]).expect("it is read again");
    drafted(&mut decoder, &texts[1..]);
    assert!(used(&decoder).1 > 0);
    decoder.release(texts[1]);
    assert_eq!(used(&decoder), (0, 0));
}

#[test]
fn another_vocabulary_is_refused_with_what_differs() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo/phantom-demo");
    let refused = tiny().with_draft(text_half(&demo));
    let error = refused.expect_err("its tokens are others");
    let reason = error.source().expect("why").to_string();
    assert!(
        reason.starts_with("the draft model has other tokens: id "),
        "{reason}"
    );
}

/// Gemma 3 270M and 1B in Q4_K_M have such matrices: a fleet in bf16 that names one of these files starts all the same.
#[test]
fn a_draft_in_a_form_that_bf16_is_not_multiplied_with_is_dequantised() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = in_q5_0(folder.path());
    let held = |dtype| {
        let config = ModelConfig::Folder {
            path: tiny_folder(),
            dtype,
            weights: FolderWeights::Q8_0,
            device: ModelDevice::default(),
            digest_cache: None,
            quantised_cache: None,
            pin_threads: false,
        };
        let loaded = config.load_with_draft(Half::Decode, Some(&file));
        let LoadedModel::Real(loaded) = loaded.expect("both load") else {
            panic!("another model");
        };
        assert_eq!(loaded.description.weights, "q8_0");
        let draft = loaded.draft.as_ref().expect("it has one");
        (
            draft.held().to_owned(),
            loaded.draft_without_kernels().to_owned(),
        )
    };
    assert_eq!(held(ModelDtype::Bf16), (String::new(), String::new()));
    assert_eq!(
        held(ModelDtype::F32),
        ("q5_0".to_owned(), "q5_0".to_owned())
    );
}

#[tokio::test]
async fn where_rows_do_not_stand_alone_a_draft_is_left_out() {
    let with = drafted_by(
        &tiny_on("cpu:generic".parse().expect("a device")),
        &tiny_folder(),
    );
    assert!(!with.verifies_proposals());
    let cause = with.verifies_none_because().expect("it does not");
    assert!(cause.contains("on this device (cpu "), "{cause}");
    assert_eq!(tiny().verifies_none_because(), None);
    // Without proposals too a text is another beside others.
    let cause = with.varies_because().expect("it does");
    assert!(cause.ends_with(')'), "{cause}");
    assert_eq!(tiny().varies_because(), None);
    assert!(!with.description().reproducible && tiny().description().reproducible);
    let engine = start(&with, ALWAYS, KV_BYTES_MAX);
    assert!(engine.phrases().is_none());
    let asked = request(&answer("what is seen?"), &[], Decoding::greedy(12));
    write_text(&engine, asked).await;
    assert_eq!(engine.load()().verified().proposed, 0);
}
