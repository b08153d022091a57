//! Reading the text a model wrote: its sentences with the model's confidence in them, and the two parts of a report.
//! Everything is byte ranges into the text, so that what a reader sees is exactly what the model wrote.

use std::ops::Range;

/// Bytes of the text that one token wrote, and the probability the model gave it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenSpan {
    /// First byte.
    pub start: u32,
    /// One past the last byte; equal to `start` while a character was incomplete.
    pub end: u32,
    /// Natural-log probability.
    pub log_probability: f32,
}

/// A sentence of the text.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
    /// Mean natural-log probability of the tokens that touch it.
    pub mean_log_probability: f32,
    /// Lowest natural-log probability among them.
    pub min_log_probability: f32,
}

/// The parts of a report; empty where the text has no such heading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections {
    /// Under "Findings:".
    pub findings: String,
    /// Under "Impression:".
    pub impression: String,
}

/// Divides a text into sentences. A sentence ends after `.`, `!` or `?` that white space or the end follows, and at a line end;
/// white space around it belongs to no sentence, and a number with a full stop ("1.") does not end one.
#[must_use]
pub fn sentences(text: &str, tokens: &[TokenSpan]) -> Vec<Sentence> {
    let ranges = sentence_ranges(text);
    let mut first = 0;
    ranges
        .into_iter()
        .map(|range| {
            while tokens
                .get(first)
                .is_some_and(|token| token.end as usize <= range.start)
            {
                first += 1;
            }
            let touching = tokens[first..]
                .iter()
                .take_while(|token| (token.start as usize) < range.end)
                .map(|token| token.log_probability);
            let (mut sum, mut count, mut min) = (0.0_f64, 0_u32, f32::INFINITY);
            for log_probability in touching {
                sum += f64::from(log_probability);
                count += 1;
                min = min.min(log_probability);
            }
            Sentence {
                start: offset(range.start),
                end: offset(range.end),
                mean_log_probability: if count == 0 {
                    0.0
                } else {
                    (sum / f64::from(count)) as f32
                },
                min_log_probability: if count == 0 { 0.0 } else { min },
            }
        })
        .collect()
}

/// Byte offsets in a text; texts are bounded by the token limit, far below 4 GiB.
fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn sentence_ranges(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let end = at + character.len_utf8();
        let followed_by_space = characters
            .peek()
            .is_none_or(|(_, next)| next.is_whitespace());
        let ends = match character {
            '\n' => true,
            '!' | '?' => followed_by_space,
            '.' => followed_by_space && !is_list_number(&text[start..at]),
            _ => false,
        };
        if ends {
            push_trimmed(text, start..end, &mut ranges);
            start = end;
        }
    }
    push_trimmed(text, start..text.len(), &mut ranges);
    ranges
}

fn is_list_number(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn push_trimmed(text: &str, range: Range<usize>, ranges: &mut Vec<Range<usize>>) {
    let piece = &text[range.clone()];
    let trimmed = piece.trim();
    if trimmed.is_empty() {
        return;
    }
    let start = range.start + (piece.len() - piece.trim_start().len());
    ranges.push(start..start + trimmed.len());
}

/// Finds the parts of a report by their headings, whatever their case and markup ("**Findings:**", "## IMPRESSION").
#[must_use]
pub fn sections(text: &str) -> Sections {
    let mut sections = Sections::default();
    let mut current: Option<Heading> = None;
    for line in text.split_inclusive('\n') {
        if let Some((heading, rest)) = heading(line) {
            current = heading;
            append(&mut sections, current, rest);
        } else {
            append(&mut sections, current, line);
        }
    }
    sections.findings = sections.findings.trim().to_owned();
    sections.impression = sections.impression.trim().to_owned();
    sections
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heading {
    Findings,
    Impression,
}

fn append(sections: &mut Sections, heading: Option<Heading>, text: &str) {
    match heading {
        Some(Heading::Findings) => sections.findings.push_str(text),
        Some(Heading::Impression) => sections.impression.push_str(text),
        None => {}
    }
}

/// The heading a line opens with and what follows it on the same line; `Some(None)` for another heading.
fn heading(line: &str) -> Option<(Option<Heading>, &str)> {
    let markup = |c: char| c == '*' || c == '#' || c == '_' || c.is_whitespace();
    let body = line.trim_start_matches(markup);
    let marked = body.len() < line.trim_start().len();
    let word_end = body
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(body.len());
    let (word, rest) = body.split_at(word_end);
    let rest = rest.trim_start_matches(['*', '_']);
    let known = match word.to_ascii_lowercase().as_str() {
        "findings" => Some(Heading::Findings),
        "impression" | "impressions" => Some(Heading::Impression),
        _ => None,
    };
    if let Some(rest) = rest.strip_prefix(':') {
        let rest = rest.trim_start_matches(['*', '_']);
        let alone = rest.trim().is_empty();
        return (known.is_some() || (marked && alone)).then_some((known, rest));
    }
    (known.is_some() && rest.trim().is_empty()).then_some((known, ""))
}

#[cfg(test)]
mod tests {
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
        check_sections("The findings: none of note.", "", "");
        check_sections(
            "Findings: a\nHeart: normal\nImpression: b",
            "a\nHeart: normal",
            "b",
        );
    }
}
