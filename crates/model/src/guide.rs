//! Text that must have a form: a JSON Schema or a regular expression becomes, before every token, the set of tokens that
//! can still lead to a whole text. The work is done by llguidance, which does not show in the interface.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::ConstraintError;

/// The form that a text must have.
#[derive(Clone, PartialEq, Eq)]
pub enum Constraint {
    /// The text is one JSON value of this schema, with one space after each comma and colon.
    JsonSchema(String),
    /// The whole text matches.
    Regex(String),
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A caller wrote it, and it stays out of logs.
        f.write_str(match self {
            Self::JsonSchema(_) => "JsonSchema(..)",
            Self::Regex(_) => "Regex(..)",
        })
    }
}

/// A set of token ids.
#[derive(Debug, Clone)]
pub struct TokenSet(SimpleVob);

impl TokenSet {
    /// These ids of a vocabulary of `size`.
    pub fn of(size: usize, ids: &[u32]) -> Self {
        let mut set = SimpleVob::alloc(size);
        for id in ids.iter().filter(|id| (**id as usize) < size) {
            set.allow_token(*id);
        }
        Self(set)
    }

    /// Whether an id is in it.
    pub fn contains(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }

    /// −∞ in place of the scores of all that is not in it.
    pub(crate) fn mask(&self, scores: &mut [f32]) {
        const BITS: usize = u32::BITS as usize;
        let words = self.0.as_slice();
        for (at, scores) in scores.chunks_mut(BITS).enumerate() {
            let word = words.get(at).copied().unwrap_or(0);
            for (bit, score) in scores.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// The ids in it, ascending.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter()
    }
}

/// A vocabulary, prepared for constraints: made once a model, which takes a fraction of a second.
pub struct Guides(ParserFactory);

impl std::fmt::Debug for Guides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Guides").finish()
    }
}

/// What comes before a control token's name in llguidance's tries, so that text never matches it.
const CONTROL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

impl Guides {
    /// `words` are the bytes of each token by id; empty ones are never allowed. `end` is the id that ends a text.
    pub fn new(mut words: Vec<Vec<u8>>, end: u32) -> Result<Self, ConstraintError> {
        let refuse = |reason: &str| ConstraintError::Vocabulary {
            reason: reason.to_owned(),
        };
        let size = u32::try_from(words.len()).map_err(|_| refuse("it has 2^32 tokens or more"))?;
        let word = words.get_mut(end as usize);
        let word = word.ok_or_else(|| refuse("the id that ends a text is not in it"))?;
        *word = [&[CONTROL], b"<end>".as_slice()].concat();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment)
            .map_err(|_| refuse("the library does not take it"))?;
        // The library would write a caller's words to stderr.
        factory.quiet();
        Ok(Self(factory))
    }

    /// Starts one text.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide, ConstraintError> {
        let (grammar, schema) = match constraint {
            Constraint::Regex(regex) => (TopLevelGrammar::from_regex(regex), false),
            Constraint::JsonSchema(schema) => {
                (TopLevelGrammar::from_json_schema(strict(schema)?), true)
            }
        };
        let mut matcher = Matcher::new(self.0.create_parser(grammar));
        // Warnings are about keywords that the library would ignore: an unenforced schema is no promise.
        let trouble = matcher
            .get_error()
            .or_else(|| matcher.grammar_warnings().into_iter().next());
        match trouble {
            None => Ok(Guide { matcher }),
            Some(message) if schema => Err(ConstraintError::Schema {
                reason: keywords(&message),
            }),
            Some(_) => Err(ConstraintError::Regex),
        }
    }
}

/// The schema with white space fixed, so that no text is padded for ever.
fn strict(schema: &str) -> Result<Value, ConstraintError> {
    let mut schema: Value = serde_json::from_str(schema).map_err(|error| {
        let reason = format!("line {} column {}", error.line(), error.column());
        ConstraintError::Json { reason }
    })?;
    let options = json!({
        "whitespace_flexible": false,
        "item_separator": ", ",
        "key_separator": ": ",
    });
    match &mut schema {
        Value::Object(object) => {
            object.insert("x-guidance".to_owned(), options);
            Ok(schema)
        }
        _ => Err(ConstraintError::Schema {
            reason: "it is not an object".to_owned(),
        }),
    }
}

/// Words of JSON Schema that may be repeated from an error; all others could be a caller's.
const KEYWORDS: [&str; 24] = [
    "oneOf",
    "anyOf",
    "allOf",
    "not",
    "if",
    "uniqueItems",
    "contains",
    "minContains",
    "maxContains",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "minProperties",
    "maxProperties",
    "multipleOf",
    "format",
    "pattern",
    "patternProperties",
    "minLength",
    "minItems",
    "$ref",
    "enum",
];

fn keywords(message: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphabetic() || c == '$';
    let words = message.split(|c: char| !is_word(c));
    let mut found: Vec<&str> = words.filter(|word| KEYWORDS.contains(word)).collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        "it is contradictory, too large, or no JSON Schema".to_owned()
    } else {
        format!("look at {}", found.join(", "))
    }
}

/// One text under a constraint.
pub struct Guide {
    matcher: Matcher,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").finish_non_exhaustive()
    }
}

impl Guide {
    /// The tokens that can come next; the one that ends the text among them where it is whole.
    pub fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
        let set = self.matcher.compute_mask_or_eos();
        set.map(TokenSet).map_err(|_| ConstraintError::Broken {
            reason: "no token fits",
        })
    }

    /// Takes the token that was chosen.
    pub fn take(&mut self, token: u32) -> Result<(), ConstraintError> {
        let taken = self.matcher.consume_token(token);
        taken.map_err(|_| ConstraintError::Broken {
            reason: "a token was chosen that does not fit",
        })
    }

    /// Whether the text is whole and nothing can follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 256;

    /// Single bytes, and "yes" and "no" as tokens of their own.
    fn guides() -> Guides {
        let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        words.extend([vec![], b"yes".to_vec(), b"no".to_vec(), b"yesno".to_vec()]);
        Guides::new(words, END).unwrap()
    }

    fn allowed(guide: &mut Guide) -> Vec<u32> {
        guide.allowed().unwrap().ids().collect()
    }

    /// Whether a text can be written, byte by byte, to its end.
    fn accepts(constraint: &Constraint, text: &str) -> bool {
        let mut guide = guides().guide(constraint).unwrap();
        for byte in text.bytes() {
            if !guide.allowed().unwrap().contains(byte.into()) {
                return false;
            }
            guide.take(byte.into()).unwrap();
        }
        guide.allowed().unwrap().contains(END)
    }

    #[test]
    fn tokens_that_can_lead_to_a_whole_text_are_allowed() {
        let constraint = Constraint::Regex("A: (yes|no)".to_owned());
        let mut guide = guides().guide(&constraint).unwrap();
        for byte in b"A: " {
            assert_eq!(allowed(&mut guide), [u32::from(*byte)]);
            guide.take(u32::from(*byte)).unwrap();
        }
        // 'n', 'y', "yes", "no", and not "yesno".
        assert_eq!(allowed(&mut guide), [110, 121, 257, 258]);
        assert!(!guide.is_finished());
        guide.take(258).unwrap();
        assert!(guide.is_finished());
        assert_eq!(allowed(&mut guide), [END]);
    }

    #[test]
    fn json_has_the_form_of_its_schema_and_fixed_spaces() {
        let schema = r#"{"type": "object", "properties": {"side": {"enum": ["left", "right"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["side", "size"], "additionalProperties": false}"#;
        let schema = Constraint::JsonSchema(schema.to_owned());
        let check = |text, expected| assert_eq!(accepts(&schema, text), expected, "{text}");
        check(r#"{"side": "left", "size": 12}"#, true);
        check(r#"{"side": "left"}"#, false);
        check(r#"{"side": "left", "size": 100}"#, false);
        check(r#"{"side": "both", "size": 12}"#, false);
        check(r#"{"side":  "left", "size": 12}"#, false);
        check(r#"{"side": "left", "size": 12"#, false);
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_without_its_words() {
        let refused = |constraint| guides().guide(&constraint).unwrap_err().to_string();
        let json = |text: &str| refused(Constraint::JsonSchema(text.to_owned()));
        assert_eq!(
            json("{\"secret"),
            "the JSON Schema is not JSON: line 1 column 8"
        );
        assert!(json("[]").contains("not an object"));
        let unsupported = json(r#"{"type": "array", "secret": 1, "uniqueItems": true}"#);
        assert!(unsupported.contains("uniqueItems"), "{unsupported}");
        assert!(!unsupported.contains("secret"), "{unsupported}");
        let regex = refused(Constraint::Regex("(secret".to_owned()));
        assert_eq!(regex, "the regular expression cannot be enforced");
    }
}
