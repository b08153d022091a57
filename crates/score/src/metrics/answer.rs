//! Short answers against the right ones.

use std::collections::HashMap;

/// An answer without what doesn't matter: lower case, punctuation away (a dash or slash parts words, a point between digits
/// stays), the articles a, an and the away, number words as digits, one space between words.
///
/// Source: the VQA evaluation's `processPunctuation` and `processDigitArticle` (Antol et al. 2015), without its list of
/// contractions.
pub fn normalised(answer: &str) -> String {
    words(answer).join(" ")
}

fn words(answer: &str) -> Vec<String> {
    let letters: Vec<char> = answer.to_lowercase().chars().collect();
    let digit = |place: Option<usize>| {
        let letter = place.and_then(|place| letters.get(place));
        letter.is_some_and(char::is_ascii_digit)
    };
    let mut text = String::with_capacity(answer.len());
    for (place, letter) in letters.iter().enumerate() {
        let between = digit(place.checked_sub(1)) && digit(Some(place + 1));
        match letter {
            '.' | ',' if between && *letter == '.' => text.push('.'),
            // Thousands.
            ',' if between => {}
            '\'' | '’' | '"' | '`' => {}
            _ if letter.is_alphanumeric() => text.push(*letter),
            _ => text.push(' '),
        }
    }
    let words = text.split_whitespace();
    let words = words.filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.map(|word| digits(word).to_owned()).collect()
}

fn digits(word: &str) -> &str {
    match word {
        "none" | "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        _ => word,
    }
}

/// Whether the normalised answers are equal.
pub fn exact(said: &str, truth: &str) -> bool {
    words(said) == words(truth)
}

/// 2PR/(P+R) over the words that both normalised answers share, each as often as both have it. 1 if both are empty.
///
/// Source: SQuAD's evaluation script (Rajpurkar et al. 2016), whose only difference is the normalisation; MedGemma's
/// technical report scores SLAKE and VQA-RAD by "tokenised F1" of the same form.
pub fn token_f1(said: &str, truth: &str) -> f64 {
    let (said, truth) = (words(said), words(truth));
    if said.is_empty() || truth.is_empty() {
        return f64::from(u8::from(said.is_empty() && truth.is_empty()));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &truth {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0usize;
    for word in &said {
        if let Some(left) = left.get_mut(word.as_str())
            && *left > 0
        {
            *left -= 1;
            common += 1;
        }
    }
    let common = common as f64;
    super::harmonic(common / said.len() as f64, common / truth.len() as f64)
}

/// Whether a closed question is answered rightly. Yes and no are told by the first word ("Yes, on the left."), other
/// answers by [`exact`].
pub fn closed(said: &str, truth: &str) -> bool {
    let truth_words = words(truth);
    match truth_words.as_slice() {
        [only] if only == "yes" || only == "no" => words(said).first() == Some(only),
        _ => exact(said, truth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_away() {
        let check = |answer: &str, expected: &str| assert_eq!(normalised(answer), expected);
        check("Left.", "left");
        check(" The  Left-Sided effusion! ", "left sided effusion");
        check("2.5 cm, 1,000 times", "2.5 cm 1000 times");
        check("two of the lungs'", "2 of lungs");
        check("...", "");
    }

    #[test]
    fn scores() {
        assert!(exact("Left.", "left"));
        assert!(!exact("Left side", "left"));
        assert_eq!(token_f1("on the left", "left"), 2.0 / 3.0);
        assert_eq!(token_f1("", "left"), 0.0);
        assert_eq!(token_f1("right", "left"), 0.0);
        assert_eq!(token_f1("left left", "left"), 2.0 / 3.0);
        assert!(closed("Yes, a small one.", "yes"));
        assert!(!closed("There is none, yes.", "yes"));
        assert!(!closed("Not seen", "no"));
    }
}
