//! Prompts are built in Gemma 3's chat form, in code. A folder whose template is of another form would be prompted
//! wrongly, so the template, where there is one, is checked for the marks of that form.

use std::path::Path;

use serde::Deserialize;

use crate::config::{parse_json, read_optional};
use crate::error::LoadError;

const MARKERS: [&str; 4] = ["<start_of_turn>", "<end_of_turn>", "model", "user"];

#[derive(Deserialize)]
struct Holder {
    chat_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    template: String,
}

/// Checks every template in the folder; a folder without one (a pre-trained model) passes.
pub(crate) fn check(dir: &Path) -> Result<(), LoadError> {
    if let Some(text) = read_optional(dir, "chat_template.jinja")? {
        check_text("chat_template.jinja", &text)?;
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(text) = read_optional(dir, file)? else {
            continue;
        };
        let holder: Holder = parse_json(file, &text)?;
        match holder.chat_template {
            None => (),
            Some(Template::One(text)) => check_text(file, &text)?,
            Some(Template::Named(all)) => all
                .iter()
                .try_for_each(|named| check_text(file, &named.template))?,
        }
    }
    Ok(())
}

fn check_text(file: &'static str, text: &str) -> Result<(), LoadError> {
    match MARKERS.iter().find(|marker| !text.contains(**marker)) {
        Some(marker) => Err(LoadError::ChatTemplate { file, marker }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_form_is_refused() {
        assert!(check_text("chat_template.jinja", "<|im_start|>user").is_err());
        assert!(
            check_text(
                "chat_template.jinja",
                "'<start_of_turn>' user model '<end_of_turn>'"
            )
            .is_ok()
        );
    }
}
