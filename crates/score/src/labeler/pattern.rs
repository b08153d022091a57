//! Patterns over words, as the tables of phrases and cues write them.
//!
//! Words in order, each with marks: `a|b` either, `stem~` any word that begins so, `word?` may be left out, and `*` up to
//! four words that aren't commas, "and" or "or".

/// Words that `*` stands for, at most.
const GAP_MAX: usize = 4;

/// The end of the longest match of `pattern` that begins at `start`, if any.
pub(super) fn match_at(pattern: &str, words: &[String], start: usize) -> Option<usize> {
    let parts: Vec<&str> = pattern.split(' ').collect();
    longest(&parts, words, start)
}

fn longest(parts: &[&str], words: &[String], at: usize) -> Option<usize> {
    let Some((part, rest)) = parts.split_first() else {
        return Some(at);
    };
    if *part == "*" {
        let gap = |word: &&String| !matches!(word.as_str(), "," | "and" | "or");
        let most = words[at.min(words.len())..]
            .iter()
            .take(GAP_MAX)
            .take_while(gap)
            .count();
        return (0..=most)
            .filter_map(|skip| longest(rest, words, at + skip))
            .max();
    }
    let (part, optional) = part
        .strip_suffix('?')
        .map_or((*part, false), |part| (part, true));
    let taken = words
        .get(at)
        .filter(|word| part.split('|').any(|one| is(one, word)))
        .and_then(|_| longest(rest, words, at + 1));
    taken.or_else(|| {
        if optional {
            longest(rest, words, at)
        } else {
            None
        }
    })
}

fn is(one: &str, word: &str) -> bool {
    one.strip_suffix('~')
        .map_or_else(|| one == word, |stem| word.starts_with(stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, text: &str, expected: Option<usize>) {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        assert_eq!(
            match_at(pattern, &words, 0),
            expected,
            "{pattern} in {text}"
        );
    }

    #[test]
    fn patterns() {
        check("heart * enlarged", "heart is not enlarged", Some(4));
        check("heart * enlarged", "heart enlarged", Some(2));
        check(
            "heart * enlarged",
            "heart is normal and aorta enlarged",
            None,
        );
        check("pleural? effusion~", "effusions are seen", Some(1));
        check("pleural? effusion~", "pleural effusion", Some(2));
        check("no|without change", "without change", Some(2));
        check("no change", "no", None);
    }
}
