//! BLEU-1 to BLEU-4.
//!
//! BLEU-n = brevity × exp(mean of ln precision of 1- to n-grams), brevity = min(1, exp(1 − reference words / said words)).
//! Source: Papineni et al. 2002; words as mteval-v13a, precisions without a match smoothed "exp" (halved for each in turn),
//! as sacrebleu 2.6's defaults, case kept ([`corpus`]). [`coco`] is coco-caption's other definition, which RadCliQ uses.

use std::collections::HashMap;

/// Longest n-gram.
pub const ORDER_MAX: usize = 4;

const COCO_SMALL: f64 = 1e-9;
const COCO_TINY: f64 = 1e-15;

/// What BLEU needs to know of a report and its reference. Those of several add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Statistics {
    pub matches: [f64; ORDER_MAX],
    pub totals: [f64; ORDER_MAX],
    pub said: f64,
    pub reference: f64,
}

impl Statistics {
    /// Of words as mteval-v13a.
    pub fn of(said: &str, reference: &str) -> Self {
        Self::of_words(&words_13a(said), &words_13a(reference))
    }

    /// Of words between spaces.
    pub fn spaced(said: &str, reference: &str) -> Self {
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        Self::of_words(&words(said), &words(reference))
    }

    fn of_words(said: &[String], reference: &[String]) -> Self {
        let mut statistics = Self {
            said: said.len() as f64,
            reference: reference.len() as f64,
            ..Self::default()
        };
        for order in 1..=ORDER_MAX {
            let mut left: HashMap<&[String], usize> = HashMap::new();
            for gram in reference.windows(order) {
                *left.entry(gram).or_default() += 1;
            }
            for gram in said.windows(order) {
                statistics.totals[order - 1] += 1.0;
                if let Some(left) = left.get_mut(gram)
                    && *left > 0
                {
                    *left -= 1;
                    statistics.matches[order - 1] += 1.0;
                }
            }
        }
        statistics
    }

    /// Adds those of another report, `weight` times.
    pub fn add(&mut self, other: &Self, weight: f64) {
        for order in 0..ORDER_MAX {
            self.matches[order] += other.matches[order] * weight;
            self.totals[order] += other.totals[order] * weight;
        }
        self.said += other.said * weight;
        self.reference += other.reference * weight;
    }
}

/// BLEU-`order` of summed statistics; 0..=1.
pub fn corpus(statistics: &Statistics, order: usize) -> f64 {
    let order = order.clamp(1, ORDER_MAX);
    let matches = &statistics.matches[..order];
    if matches.iter().all(|matched| *matched == 0.0) {
        return 0.0;
    }
    let (mut logs, mut halving) = (0.0, 1.0);
    for (matched, total) in matches.iter().zip(&statistics.totals) {
        if *total == 0.0 {
            // An order without n-grams has precision 0.
            return 0.0;
        }
        let precision = if *matched == 0.0 {
            halving *= 2.0;
            1.0 / (halving * total)
        } else {
            matched / total
        };
        logs += precision.ln();
    }
    brevity(statistics.said, statistics.reference) * (logs / order as f64).exp()
}

fn brevity(said: f64, reference: f64) -> f64 {
    if said >= reference {
        1.0
    } else if said > 0.0 {
        (1.0 - reference / said).exp()
    } else {
        0.0
    }
}

/// BLEU-`order` as coco-caption's `bleu_scorer.py`: every precision is (matches + 1e−15) / (n-grams + 1e−9). The same for
/// one report and for summed statistics; words are those between spaces ([`Statistics::spaced`]).
pub fn coco(statistics: &Statistics, order: usize) -> f64 {
    let order = order.clamp(1, ORDER_MAX);
    let precisions = statistics.matches.iter().zip(&statistics.totals);
    let product: f64 = precisions
        .take(order)
        .map(|(matched, total)| (matched + COCO_TINY) / (total + COCO_SMALL))
        .product();
    let ratio = (statistics.said + COCO_TINY) / (statistics.reference + COCO_SMALL);
    let brevity = if ratio < 1.0 {
        (1.0 - 1.0 / ratio).exp()
    } else {
        1.0
    };
    product.powf(1.0 / order as f64) * brevity
}

/// The words of mteval-v13a, as sacrebleu's `13a` makes them: five passes, in this order.
pub fn words_13a(text: &str) -> Vec<String> {
    let mut text = text
        .trim_end()
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    if text.contains('&') {
        text = text
            .replace("&quot;", "\"")
            .replace("&amp;", "&")
            .replace("&lt;", "<")
            .replace("&gt;", ">");
    }
    let letters: Vec<char> = format!(" {text} ").chars().collect();
    let letters = parted(&letters);
    let letters = pairs(
        &letters,
        |a, b| !a.is_ascii_digit() && mark(b),
        [false, true, true],
    );
    let letters = pairs(
        &letters,
        |a, b| mark(a) && !b.is_ascii_digit(),
        [true, true, false],
    );
    let letters = pairs(
        &letters,
        |a, b| a.is_ascii_digit() && b == '-',
        [false, true, true],
    );
    let text: String = letters.into_iter().collect();
    text.split_whitespace().map(str::to_owned).collect()
}

const fn mark(letter: char) -> bool {
    matches!(letter, '.' | ',')
}

/// Spaces around every ASCII symbol but apostrophe, comma, dash and point.
fn parted(letters: &[char]) -> Vec<char> {
    let mut out = Vec::with_capacity(letters.len() * 2);
    for letter in letters {
        if matches!(letter, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/') {
            out.extend([' ', *letter, ' ']);
        } else {
            out.push(*letter);
        }
    }
    out
}

/// Every pair of letters that `suits`, from left to right and each letter in one pair only, with spaces before, between and
/// behind it.
fn pairs(letters: &[char], suits: impl Fn(char, char) -> bool, spaces: [bool; 3]) -> Vec<char> {
    let mut out = Vec::with_capacity(letters.len() * 2);
    let mut place = 0;
    while let Some(first) = letters.get(place) {
        match letters.get(place + 1) {
            Some(second) if suits(*first, *second) => {
                let [before, between, behind] = spaces;
                out.extend(before.then_some(' '));
                out.push(*first);
                out.extend(between.then_some(' '));
                out.push(*second);
                out.extend(behind.then_some(' '));
                place += 2;
            }
            _ => {
                out.push(*first);
                place += 1;
            }
        }
    }
    out
}
