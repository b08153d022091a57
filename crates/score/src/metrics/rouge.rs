//! ROUGE-1, ROUGE-2 and ROUGE-L of a report and its reference: F1 of shared words, word pairs, and of the longest common
//! subsequence.
//!
//! P = shared / said, R = shared / reference. Source: Lin 2004, as google-research's rouge-score 0.1.2 makes it: lower case,
//! words of a–z and 0–9, all else parts them; optionally words of four letters and more brought to their Porter stems (as
//! NLTK, RadEval's setting). The corpus' figure is the mean of the reports'.

use std::collections::HashMap;

use super::stem::stem;

/// Whether words are brought to their stems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// As they are (rouge-score's default).
    Whole,
    /// Porter stems (`use_stemmer=True`).
    Stemmed,
}

/// The F1s of one report; 0..=1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    pub one: f64,
    /// Of pairs of words.
    pub two: f64,
    pub longest: f64,
}

/// ROUGE of a report for a reference.
pub fn rouge(said: &str, reference: &str, words: Words) -> Rouge {
    let (said, reference) = (tokens(said, words), tokens(reference, words));
    Rouge {
        one: grams(&said, &reference, 1),
        two: grams(&said, &reference, 2),
        longest: f1(
            longest_common(&said, &reference),
            said.len(),
            reference.len(),
        ),
    }
}

fn tokens(text: &str, words: Words) -> Vec<String> {
    let text = text.to_lowercase();
    let parts = text.split(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit());
    parts
        .filter(|word| !word.is_empty())
        .map(|word| match words {
            Words::Stemmed if word.len() > 3 => stem(word),
            _ => word.to_owned(),
        })
        .collect()
}

fn grams(said: &[String], reference: &[String], order: usize) -> f64 {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for gram in reference.windows(order) {
        *left.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in said.windows(order) {
        if let Some(left) = left.get_mut(gram)
            && *left > 0
        {
            *left -= 1;
            common += 1;
        }
    }
    let count = |words: &[String]| (words.len() + 1).saturating_sub(order);
    f1(common, count(said), count(reference))
}

fn f1(common: usize, said: usize, reference: usize) -> f64 {
    let common = common as f64;
    super::harmonic(
        super::ratio(common, said as f64),
        super::ratio(common, reference as f64),
    )
}

fn longest_common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (place, other) in b.iter().enumerate() {
            let above = row[place + 1];
            row[place + 1] = if word == other {
                diagonal + 1
            } else {
                above.max(row[place])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}
