//! Sentences, sections and choices in texts whose reading is known.

use super::*;

fn check_sentences(text: &str, expected: &[&str]) {
    let found: Vec<&str> = sentence_ranges(text)
        .into_iter()
        .map(|r| &text[r])
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn sentences_end_where_a_reader_expects() {
    check_sentences(
        "No effusion. Heart 1.5 cm larger?\n\nStable",
        &["No effusion.", "Heart 1.5 cm larger?", "Stable"],
    );
    check_sentences(
        "1. Clear lungs.\n2. No effusion.",
        &["1. Clear lungs.", "2. No effusion."],
    );
    check_sentences("  \n ", &[]);
    check_sentences("Größe: normal! Ende", &["Größe: normal!", "Ende"]);
}

#[test]
fn a_sentence_has_the_confidence_of_the_tokens_that_touch_it() {
    let span = |start, end, log_probability| TokenSpan {
        start,
        end,
        log_probability,
    };
    // "Ab. Cd." written as "Ab", ". C", "d."
    let tokens = [span(0, 2, -1.0), span(2, 5, -3.0), span(5, 7, -5.0)];
    let found = sentences("Ab. Cd.", &tokens);
    let means: Vec<(f32, f32)> = found
        .iter()
        .map(|s| (s.mean_log_probability, s.min_log_probability))
        .collect();
    assert_eq!(means, [(-2.0, -3.0), (-4.0, -5.0)]);
    assert_eq!((found[1].start, found[1].end), (4, 7));
}

fn check_sections(text: &str, findings: &str, impression: &str) {
    let expected = Sections {
        findings: findings.to_owned(),
        impression: impression.to_owned(),
    };
    assert_eq!(sections(text), expected, "{text:?}");
}

#[test]
fn headings_are_found_in_the_forms_models_write() {
    check_sections("Findings: clear.\nImpression: normal.", "clear.", "normal.");
    check_sections(
        "**Findings:**\n- clear\n\n**Impression:** normal",
        "- clear",
        "normal",
    );
    check_sections(
        "## FINDINGS\nclear\n## Impression\nnormal\n",
        "clear",
        "normal",
    );
    check_sections("Impression: normal\n\n**Note:**\nother", "", "normal");
    check_sections(
        "**Findings:**\n**Lungs:**\n- clear\n**Heart:**\n- large\n\n**Impression:**\nlarge heart",
        "**Lungs:**\n- clear\n**Heart:**\n- large",
        "large heart",
    );
    check_sections("## Technique:\nAP\n## Findings:\nclear", "clear", "");
    check_sections("The findings: none of note.", "", "");
    check_sections(
        "Findings: a\nHeart: normal\nImpression: b",
        "a\nHeart: normal",
        "b",
    );
}

/// The tokens of a text by their pieces, each with its alternatives as (text, probability).
fn written(steps: &[(&str, &[(&str, f64)])]) -> (String, Vec<TokenSpan>, Vec<Vec<Alternative>>) {
    let (mut text, mut tokens, mut alternatives) = (String::new(), Vec::new(), Vec::new());
    for (piece, others) in steps {
        let start = offset(text.len());
        text.push_str(piece);
        tokens.push(TokenSpan {
            start,
            end: offset(text.len()),
            log_probability: 0.0,
        });
        let alternative = |(text, probability): &(&str, f64)| Alternative {
            id: 0,
            text: (*text).to_owned(),
            log_probability: probability.ln() as f32,
        };
        alternatives.push(others.iter().map(alternative).collect());
    }
    (text, tokens, alternatives)
}

#[track_caller]
fn check_choice(steps: &[(&str, &[(&str, f64)])], expected: Option<[f64; 2]>) {
    let (text, tokens, alternatives) = written(steps);
    let found = choose_among("A:", &[" yes", " no"], &text, &tokens, &alternatives);
    match (found, expected) {
        (None, None) => {}
        (Some(found), Some(expected)) => {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
            }
        }
        (found, expected) => panic!("{found:?} is not {expected:?}"),
    }
}

#[test]
fn a_choice_has_the_shares_of_the_tokens_that_decided_it() {
    // Forced, then one token decides; " n" decides for no as well.
    let branch: &[(&str, f64)] = &[(" yes", 0.3), (" no", 0.05), (" n", 0.05)];
    check_choice(
        &[("A:", &[("A:", 0.9)]), (" yes", branch)],
        Some([0.75, 0.25]),
    );
    // The space leaves both open and the next token decides; " yes" at once has its part.
    let space: &[(&str, f64)] = &[(" ", 0.6), (" yes", 0.2)];
    let after: &[(&str, f64)] = &[("no", 0.4), ("yes", 0.1)];
    check_choice(
        &[("A:", &[]), (" ", space), ("no", after)],
        Some([0.4, 0.6]),
    );
    // The space is there as a byte as well, which the model hardly ever writes: what follows decides all the same.
    let twice: &[(&str, f64)] = &[(" ", 0.6), (" yes", 0.2), (" ", 1e-9)];
    check_choice(
        &[("A:", &[]), (" ", twice), ("no", after)],
        Some([0.4, 0.6]),
    );
    // What fits neither has no share.
    let foreign: &[(&str, f64)] = &[(" maybe", 0.9), (" no", 0.01)];
    check_choice(&[("A:", &[]), (" no", foreign)], Some([0.0, 1.0]));
    check_choice(&[("A:", &[])], None);
}
