//! Which side a phrase is on: that of the words before it in its noun phrase ("small left pleural effusion"), else of the words
//! behind it up to the next phrase ("effusion on the left"), else that of the phrase that it is joined to ("left effusion and
//! atelectasis"), else of the words before it in the clause ("at the left base there is a nodule").

use super::phrases::Found;
use crate::record::Side;

/// The side of each phrase of a clause.
pub(super) fn sides(words: &[String], found: &[Found]) -> Vec<Option<Side>> {
    let mut sides: Vec<Option<Side>> = Vec::with_capacity(found.len());
    for (number, phrase) in found.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| found[before].end);
        let floor = before.unwrap_or(0);
        let noun = noun_start(words, floor, phrase.start);
        let ceiling = found.get(number + 1).map_or(words.len(), |next| {
            noun_start(words, phrase.end, next.start)
        });
        let sided = phrase.entry.labels.iter().any(|label| label.is_sided());
        let joined = before.filter(|_| sided).is_some_and(|end| {
            words[end..phrase.start]
                .iter()
                .all(|word| matches!(word.as_str(), "," | "and" | "or"))
        });
        let side = in_words(words[noun..phrase.end].iter().rev())
            .or_else(|| in_words(words[phrase.end..ceiling].iter()))
            .or_else(|| {
                if joined {
                    sides.last().copied().flatten()
                } else {
                    None
                }
            })
            .or_else(|| {
                if before.is_none() {
                    in_words(words[..noun].iter().rev())
                } else {
                    None
                }
            });
        sides.push(side);
    }
    sides
}

/// Where the words begin that describe what follows: behind the last word that ends a noun phrase.
fn noun_start(words: &[String], floor: usize, start: usize) -> usize {
    let describes = |word: &&String| {
        !super::scope::is_verb(word)
            && !matches!(
                word.as_str(),
                "," | "and"
                    | "or"
                    | "with"
                    | "on"
                    | "in"
                    | "at"
                    | "of"
                    | "to"
                    | "a"
                    | "an"
                    | "the"
                    | "there"
                    | "no"
                    | "without"
            )
    };
    start
        - words[floor..start]
            .iter()
            .rev()
            .take_while(describes)
            .count()
}

fn in_words<'a>(mut words: impl Iterator<Item = &'a String>) -> Option<Side> {
    words.find_map(|word| match word.as_str() {
        "left" | "leftward" | "lingula" | "lingular" => Some(Side::Left),
        "right" | "rightward" => Some(Side::Right),
        "bilateral" | "bilaterally" | "both" | "bibasilar" | "bibasal" | "biapical" => {
            Some(Side::Bilateral)
        }
        _ => None,
    })
}
