//! Model folders as they come, and as they should not: naming schemes, shards, and every kind of damage.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::all;
use super::fixtures::{Fixtures, tiny, tiny_copy, tiny_dir};
use crate::{Dtype, FolderSource, LoadError, Model};

/// The folder with its tensors renamed, and those for which `rename` says nothing left out.
fn renamed(rename: impl Fn(&str) -> Option<String>) -> TempDir {
    let dir = tiny_copy();
    let bytes = std::fs::read(tiny_dir().join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let kept = all
        .iter()
        .filter_map(|(name, view)| Some((rename(name)?, view)));
    let kept: BTreeMap<String, TensorView> = kept.collect();
    safetensors::serialize_to_file(kept, None, &dir.path().join("model.safetensors")).unwrap();
    dir
}

fn write_index(dir: &Path, index: &str) {
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

fn logits(model: &Model) -> Vec<Vec<f32>> {
    let case = Fixtures::read().case(model, "one_image");
    super::schedules::whole(model, case.prompt.tokens(), &case)
}

fn check_same(dir: &Path) {
    let (found, expected) = (Model::load(dir, all(Dtype::F32)).unwrap(), tiny());
    assert_eq!(found.digests(), expected.digests());
    assert_eq!(logits(&found), logits(&expected));
}

#[test]
fn every_naming_scheme_is_the_same_model() {
    let in_memory = |name: &str| {
        let name = name.replace("language_model.model.", "language_model.");
        Some(format!("model.{name}"))
    };
    check_same(renamed(in_memory).path());
    let newest = |name: &str| Some(name.replace("vision_tower.vision_model.", "vision_tower."));
    check_same(renamed(newest).path());
}

/// The head is the embedding: a copy of it in the file changes nothing, in whatever place a scheme has it.
#[test]
fn a_tied_head_may_be_absent_or_present() {
    let bytes = std::fs::read(tiny_dir().join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = all
        .tensor("language_model.model.embed_tokens.weight")
        .unwrap();
    for place in ["lm_head.weight", "language_model.lm_head.weight"] {
        let dir = tiny_copy();
        let mut tensors: BTreeMap<String, TensorView> =
            all.iter().map(|(n, v)| (n.to_owned(), v)).collect();
        tensors.insert(place.to_owned(), embedding.clone());
        safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors"))
            .unwrap();
        check_same(dir.path());
    }
    let untied = damaged_config(
        "\"model_type\": \"gemma3\"",
        "\"model_type\": \"gemma3\", \"tie_word_embeddings\": false",
    );
    let text = untied.to_string();
    assert!(
        text.contains("tie_word_embeddings is false, allowed is true"),
        "{text}"
    );
}

/// Prompts are in the chat form, whatever the files say of the end.
#[test]
fn the_end_of_a_turn_always_ends_an_answer() {
    let dir = tiny_copy();
    let special = *tiny().tokenizer().unwrap().special();
    let ends = [special.eos, special.end_of_turn];
    let check = |stated: &str, expected: &[u32]| {
        let path = dir.path().join("generation_config.json");
        std::fs::write(path, format!("{{{stated}}}")).unwrap();
        let model = Model::load(dir.path(), all(Dtype::F32)).unwrap();
        assert_eq!(model.stop_tokens(), expected, "{stated}");
    };
    check("", &ends);
    check(&format!("\"eos_token_id\": {}", special.eos), &ends);
    let other = special.end_of_turn + 1;
    let three = [special.eos, special.end_of_turn, other];
    check(&format!("\"eos_token_id\": {other}"), &three);
}

#[test]
fn remembered_digests_are_the_computed_ones() {
    let (dir, cache) = (tiny_copy(), TempDir::new().unwrap());
    let source = FolderSource {
        digest_cache: Some(cache.path().to_owned()),
        ..FolderSource::new(dir.path())
    };
    let load = || Model::load_folder(&source, all(Dtype::F32)).unwrap();
    let expected = *tiny().digests();
    assert_eq!(*load().digests(), expected);
    assert_eq!(*load().digests(), expected);
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
}

#[test]
fn shards_are_the_same_model() {
    let dir = tiny_copy();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = BTreeMap::new();
    for shard in 0..3 {
        let file = format!("model-0000{}-of-00003.safetensors", shard + 1);
        let part: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(i, _)| i % 3 == shard)
            .map(|(_, pair)| pair)
            .collect();
        map.extend(
            part.iter()
                .map(|(name, _)| ((*name).to_owned(), file.clone())),
        );
        safetensors::serialize_to_file(part, None, &dir.path().join(file)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    write_index(dir.path(), &index);
    // Which of the two is meant nobody knows: transformers would take the other one.
    let both = error(dir.path()).to_string();
    assert!(both.contains("only one of the two is the model"), "{both}");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    check_same(dir.path());

    let outside = index.replacen("model-00001", "../model-00001", 1);
    write_index(dir.path(), &outside);
    assert!(matches!(error(dir.path()), LoadError::Safetensors { .. }));
    std::fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    write_index(dir.path(), &index);
    assert!(matches!(error(dir.path()), LoadError::Read { .. }));
}

/// As where a folder was written over another that had other shards.
#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = tiny_copy();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let twice = "language_model.model.norm.weight";
    let (first, second) = ("a.safetensors", "b.safetensors");
    let shard_of = |name: &str| if name == twice { second } else { first };
    let map: BTreeMap<&str, &str> = all.iter().map(|(name, _)| (name, shard_of(name))).collect();
    safetensors::serialize_to_file(all.iter(), None, &dir.path().join(first)).unwrap();
    let again = [(twice, all.tensor(twice).unwrap())];
    safetensors::serialize_to_file(again, None, &dir.path().join(second)).unwrap();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    write_index(dir.path(), &index);
    let found = error(dir.path());
    let LoadError::Safetensors { file, reason } = &found else {
        panic!("{found}");
    };
    assert!(file == second && reason.contains(twice), "{file}: {reason}");
}

#[test]
fn one_changed_weight_changes_the_digests_it_belongs_to() {
    let expected = *tiny().digests();
    let change = |tensor: &str| {
        let dir = tiny_copy();
        let path = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let at = tensors.tensor(tensor).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        *Model::load(dir.path(), all(Dtype::F32)).unwrap().digests()
    };
    let text = change("language_model.model.norm.weight");
    assert!(text.model != expected.model && text.encoder == expected.encoder);
    let vision = change("vision_tower.vision_model.post_layernorm.bias");
    assert!(vision.model != expected.model && vision.encoder != expected.encoder);
}

/// What decides a text beside the weights has a digest of its own.
#[test]
fn one_changed_setting_changes_the_settings_digest_alone() {
    let expected = tiny();
    let load = |change: &dyn Fn(&Path)| {
        let dir = tiny_copy();
        change(dir.path());
        let model = Model::load(dir.path(), all(Dtype::F32)).unwrap();
        assert_eq!(model.digests(), expected.digests());
        *model.settings_digest()
    };
    assert_eq!(load(&|_| {}), *expected.settings_digest());
    for file in ["config.json", "generation_config.json", "tokenizer.json"] {
        let found = load(&|dir| {
            let path = dir.join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
            // White space is enough: nobody has to judge what matters.
            std::fs::write(path, format!("{text}\n")).unwrap();
        });
        assert_ne!(found, *expected.settings_digest(), "{file}");
    }
    let other = load(&|dir| std::fs::write(dir.join("README.md"), "text").unwrap());
    assert_eq!(other, *expected.settings_digest());
}

fn error(dir: &Path) -> LoadError {
    Model::load(dir, all(Dtype::F32)).unwrap_err()
}

#[test]
fn a_missing_tensor_is_named() {
    for missing in [
        "language_model.model.layers.3.mlp.up_proj.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias",
        "multi_modal_projector.mm_soft_emb_norm.weight",
        "language_model.model.embed_tokens.weight",
    ] {
        let dir = renamed(|name| (name != missing).then(|| name.to_owned()));
        match error(dir.path()) {
            LoadError::MissingTensor { name, expected } => {
                assert_eq!(name, missing);
                assert!(!expected.is_empty());
            }
            other => panic!("{other}"),
        }
    }
}

/// The error after `from` was replaced by `to` in a file of the folder.
fn damaged(file: &str, from: &str, to: &str) -> LoadError {
    let dir = tiny_copy();
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    error(dir.path())
}

fn damaged_config(from: &str, to: &str) -> LoadError {
    damaged("config.json", from, to)
}

#[test]
fn misshapen_tensors_are_named_with_both_shapes() {
    let error = damaged_config("\"intermediate_size\": 128", "\"intermediate_size\": 120");
    let text = error.to_string();
    assert!(
        text.contains("layers.0.mlp.gate_proj.weight") && text.contains("[128, 64]"),
        "{text}"
    );
    assert!(text.contains("[120, 64]") && text.contains("F32"), "{text}");
}

#[test]
fn damaged_folders_are_refused() {
    let truncated = |file: &str, keep: f64| {
        let dir = tiny_copy();
        let path = dir.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        let kept = (bytes.len() as f64 * keep) as usize;
        std::fs::write(path, &bytes[..kept]).unwrap();
        error(dir.path())
    };
    for keep in [0.0, 1e-6, 0.001, 0.5, 0.999] {
        let found = truncated("model.safetensors", keep);
        assert!(
            matches!(
                found,
                LoadError::Safetensors { .. } | LoadError::Read { .. }
            ),
            "{keep}: {found}"
        );
    }
    assert!(matches!(
        truncated("tokenizer.json", 0.5),
        LoadError::Tokenizer { .. }
    ));
    for file in ["config.json", "generation_config.json"] {
        assert!(matches!(truncated(file, 0.5), LoadError::Json { .. }));
    }
    let template = damaged("chat_template.jinja", "<start_of_turn>", "<|turn|>");
    assert!(matches!(template, LoadError::ChatTemplate { .. }));
    let small = damaged_config("\"vocab_size\": ", "\"vocab_size\": 5, \"was\": ");
    assert!(
        matches!(
            small,
            LoadError::TokenizerTooLarge { rows: 5, .. } | LoadError::TensorShape { .. }
        ),
        "{small}"
    );
    let soft = damaged_config(
        "\"image_token_index\": ",
        "\"image_token_index\": 3, \"was\": ",
    );
    assert!(
        matches!(
            soft,
            LoadError::Config {
                field: "image_token_index",
                ..
            }
        ),
        "{soft}"
    );
    let empty = TempDir::new().unwrap();
    assert!(matches!(error(empty.path()), LoadError::Read { .. }));
}

#[test]
fn a_stored_dtype_that_is_not_read_is_named() {
    let dir = tiny_copy();
    let path = dir.path().join("model.safetensors");
    let text = "\"dtype\":\"F32\"";
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length])
        .unwrap()
        .replace(text, "\"dtype\":\"I32\"");
    std::fs::write(
        &path,
        [&bytes[..8], header.as_bytes(), &bytes[8 + length..]].concat(),
    )
    .unwrap();
    assert!(matches!(error(dir.path()), LoadError::TensorDtype { .. }));
}

/// Each names the thing, what was found and what was expected.
#[test]
fn refusals_say_what_was_found_and_what_was_expected() {
    let check = |error: LoadError, parts: &[&str]| {
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    };
    let dir = tiny_copy();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    check(
        error(dir.path()),
        &["model.safetensors is not a complete safetensors file"],
    );
    check(
        damaged_config("\"intermediate_size\": 112", "\"intermediate_size\": 113"),
        &["layers.0.mlp.fc1.weight", "[112, 48]", "expected [113, 48]"],
    );
    check(
        damaged_config("\"image_size\": 224", "\"image_size\": 56"),
        &[
            "position_embedding.weight",
            "[256, 48]",
            "expected [16, 48]",
        ],
    );
    let dir = renamed(|name| {
        (!name.ends_with("layers.3.self_attn.q_norm.weight")).then(|| name.to_owned())
    });
    check(
        error(dir.path()),
        &[
            "layers.3.self_attn.q_norm.weight is missing",
            "expected shape [24]",
        ],
    );
    check(
        damaged(
            "tokenizer.json",
            "\"<image_soft_token>\"",
            "\"<image_other_token>\"",
        ),
        &["tokenizer.json has no token <image_soft_token>"],
    );
    let rows = tiny().config().text.vocab;
    let tokenizer = std::fs::read_to_string(tiny_dir().join("tokenizer.json")).unwrap();
    // The soft token is never looked up: it alone may lie past the rows.
    let soft = tiny().tokenizer().unwrap().special().image.unwrap().soft;
    assert!(rows > soft as usize);
    crate::Tokenizer::parse(&tokenizer, soft as usize, true).unwrap();
    let small = crate::Tokenizer::parse(&tokenizer, soft as usize - 1, true).unwrap_err();
    check(
        small,
        &[
            &format!("the id {}", soft - 1),
            &format!("only {} rows", soft - 1),
        ],
    );
    check(
        damaged_config("\"gemma3\"", "\"gemma4\""),
        &["model_type is gemma4", "allowed is gemma3 or gemma3_text"],
    );
}
