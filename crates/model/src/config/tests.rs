//! Both spellings, the hub's omissions, and what is refused.

use super::*;

/// The 4B file as the hub has it: class defaults left out.
const HUB: &str = r#"{
  "model_type": "gemma3", "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256,
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}
}"#;

fn check(config: &str, expected_field: Option<&str>) {
    let found = match Config::parse(config, None) {
        Ok(_) => None,
        Err(LoadError::Config { field, .. }) => Some(field),
        Err(LoadError::Json { .. }) => Some("json"),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(found, expected_field, "{config}");
}

#[test]
fn the_hub_file_is_completed() {
    let config = Config::parse(HUB, None).unwrap();
    let text = &config.text;
    assert_eq!(
        (
            text.vocab,
            text.heads,
            text.kv_heads,
            text.head_dim,
            text.window
        ),
        (262_208, 8, 4, 256, 1024)
    );
    assert_eq!(
        (
            text.rope_local_theta,
            text.rope_global_theta,
            text.rope_global_factor
        ),
        (1e4, 1e6, 8.0)
    );
    assert_eq!(
        text.layers
            .iter()
            .filter(|k| **k == LayerKind::Global)
            .count(),
        5
    );
    assert_eq!(text.layers[5], LayerKind::Global);
    let vision = config.vision.unwrap();
    assert_eq!(
        (
            vision.patches_per_side(),
            vision.tokens_per_side(),
            vision.pool()
        ),
        (64, 16, 4)
    );
    assert_eq!(config.stop_tokens, [1, 106]);
}

#[test]
fn the_newer_spelling_means_the_same() {
    let types: Vec<_> = (1..=34)
        .map(|i| {
            if i % 6 == 0 {
                "full_attention"
            } else {
                "sliding_attention"
            }
        })
        .collect();
    let new = HUB.replace(
        r#""rope_scaling": {"factor": 8.0, "rope_type": "linear"}"#,
        &format!(
            r#""layer_types": {}, "rope_parameters": {{"full_attention": {{"rope_type": "linear", "factor": 8.0,
            "rope_theta": 1000000.0}}, "sliding_attention": {{"rope_type": "default", "rope_theta": 10000.0}}}}"#,
            serde_json::to_string(&types).unwrap()
        ),
    );
    assert_eq!(
        Config::parse(&new, None).unwrap(),
        Config::parse(HUB, None).unwrap()
    );
}

/// As transformers saves again what it has read: with the keys it was given beside its own.
#[test]
fn both_spellings_at_once_mean_the_same_unless_they_contradict_each_other() {
    let with = |keys: &str| {
        let text = r#""text_config": {"#;
        let rope = r#""rope_type": "linear""#;
        let both = HUB.replace(rope, r#""rope_type": "linear", "type": "linear""#);
        both.replace(text, &format!("{text}{keys}, "))
    };
    let pattern = r#""sliding_window_pattern": 6, "_sliding_window_pattern": 6"#;
    let activation = r#""hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh""#;
    for keys in [pattern, activation] {
        let found = Config::parse(&with(keys), None).unwrap();
        assert_eq!(found, Config::parse(HUB, None).unwrap(), "{keys}");
    }
    let differing = pattern.replacen('6', "5", 1);
    check(
        &with(&differing),
        Some("text_config.sliding_window_pattern"),
    );
    let differing = with(pattern).replace(r#""type": "linear""#, r#""type": "yarn""#);
    check(&differing, Some("text_config.rope_parameters.rope_type"));
}

/// Text of the hub's file with another rope, and the factor that it says.
fn factor(rope: &str) -> Option<f64> {
    let old = r#""rope_scaling": {"factor": 8.0, "rope_type": "linear"}"#;
    assert!(HUB.contains(old));
    let config = Config::parse(&HUB.replace(old, rope), None);
    config.ok().map(|config| config.text.rope_global_factor)
}

#[test]
fn a_rope_factor_is_never_left_aside() {
    let full = r#""rope_parameters": {"full_attention": {"rope_type": "default"}}"#;
    let scaling = r#""rope_scaling": {"factor": 8.0, "type": "linear"}"#;
    assert_eq!(factor(full), Some(1.0));
    assert_eq!(factor(scaling), Some(8.0));
    assert_eq!(factor(&format!("{full}, {scaling}")), Some(8.0));
    for ambiguous in [
        r#""rope_scaling": {"factor": 8.0}"#,
        r#""rope_parameters": {"full_attention": {"factor": 8.0}}"#,
        r#""rope_parameters": {"factor": 8.0, "rope_type": "linear"}"#,
        r#""rope_scaling": {"rope_type": "linear"}"#,
    ] {
        assert_eq!(factor(ambiguous), None, "{ambiguous}");
    }
}

#[test]
fn stop_tokens_come_from_the_generation_file_first() {
    assert_eq!(
        Config::parse(HUB, Some(r#"{"eos_token_id": 7}"#))
            .unwrap()
            .stop_tokens,
        [7]
    );
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    check(HUB, None);
    check("{", Some("json"));
    check("{}", Some("vision_config"));
    check(&HUB.replace("gemma3", "llama"), Some("model_type"));
    check(
        &HUB.replace(r#""linear""#, r#""yarn""#),
        Some("text_config.rope_parameters.rope_type"),
    );
    check(
        &HUB.replace(r#""factor": 8.0"#, r#""factor": 0"#),
        Some("text_config.rope_scaling.factor"),
    );
    check(
        &HUB.replace(r#""hidden_size": 2560"#, r#""hidden_size": 0"#),
        Some("text_config.hidden_size"),
    );
    check(
        &HUB.replace(r#""hidden_size": 2560"#, r#""attention_bias": true"#),
        Some("text_config.attention_bias"),
    );
    check(
        &HUB.replace(r#""hidden_size": 2560"#, r#""tie_word_embeddings": false"#),
        Some("tie_word_embeddings"),
    );
    check(
        &HUB.replace(r#""hidden_size": 2560"#, r#""num_key_value_heads": 3"#),
        Some("text_config.num_key_value_heads"),
    );
    check(&HUB.replace("256,", "250,"), Some("mm_tokens_per_image"));
    check(
        &HUB.replace(r#""patch_size": 14"#, r#""patch_size": 15"#),
        Some("vision_config.patch_size"),
    );
}
