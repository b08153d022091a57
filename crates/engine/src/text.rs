//! Reading the text a model wrote: its sentences with the model's confidence in them, and the two parts of a report.
//! Everything is byte ranges into the text, so that what a reader sees is exactly what the model wrote.

use std::ops::Range;

use crate::backend::Alternative;

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

/// How likely the model found each of `options` as the end of a text that begins with `lead`, given what it wrote and the
/// alternatives to each of its tokens. The shares sum to 1; none where no token decided between the options.
///
/// A token decides for an option when, after it, only that option can still be written. What is left undecided, because a
/// token could begin several, is shared by the tokens that follow. Tokens that could lead to none do not count.
pub fn choose_among(
    lead: &str,
    options: &[&str],
    text: &str,
    tokens: &[TokenSpan],
    alternatives: &[Vec<Alternative>],
) -> Option<Vec<f64>> {
    let mut shares = vec![0.0_f64; options.len()];
    let mut undecided = 1.0_f64;
    let whole: Vec<String> = options
        .iter()
        .map(|option| format!("{lead}{option}"))
        .collect();
    let could_be = |begun: &str| -> Vec<usize> {
        let fits = |index: &usize| whole[*index].starts_with(begun);
        (0..whole.len()).filter(fits).collect()
    };
    for (token, alternatives) in tokens.iter().zip(alternatives) {
        let before = text.get(..token.start as usize)?;
        let written = text.get(..token.end as usize)?;
        let possible: Vec<(f64, Vec<usize>, String)> = alternatives
            .iter()
            .map(|a| {
                let begun = format!("{before}{}", a.text);
                (f64::from(a.log_probability).exp(), could_be(&begun), begun)
            })
            .filter(|(_, fits, _)| !fits.is_empty())
            .collect();
        let sum: f64 = possible.iter().map(|(mass, _, _)| mass).sum();
        if sum <= 0.0 {
            continue;
        }
        let mut open = 0.0;
        for (mass, fits, begun) in &possible {
            match fits.as_slice() {
                [only] => shares[*only] += undecided * mass / sum,
                // Several tokens can have one text: a space is a piece of the vocabulary, and a byte.
                _ if begun == written => open += mass / sum,
                _ => {}
            }
        }
        undecided *= open;
    }
    let decided: f64 = shares.iter().sum();
    (decided > 0.0).then(|| shares.iter().map(|share| share / decided).collect())
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

/// Finds the parts of a report by their headings, whatever their case and markup ("**Findings:**", "## IMPRESSION"). Other
/// headings belong to the findings, such as the names of organs, and end an impression.
pub fn sections(text: &str) -> Sections {
    let mut sections = Sections::default();
    let mut current: Option<Heading> = None;
    for line in text.split_inclusive('\n') {
        match heading(line) {
            // What stands under it is a finding too.
            Some((None, _)) if current == Some(Heading::Findings) => {
                append(&mut sections, current, line);
            }
            Some((heading, rest)) => {
                current = heading;
                append(&mut sections, current, rest);
            }
            None => append(&mut sections, current, line),
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
mod tests;
