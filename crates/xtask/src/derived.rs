//! Derived files: whole files, or the part of a hand-written page between two marks, that are generated from another source in
//! the tree. The gate compares them, and `--bless` writes them.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use crate::places;

/// What to do about a derived file that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Check,
    /// Write it.
    Bless,
}

/// A part of a page: what is between its two marks.
pub(crate) struct Section {
    /// The page, below the root.
    pub(crate) page: &'static str,
    /// What the marks call it.
    pub(crate) name: String,
    /// The command of ours that writes it.
    pub(crate) command: &'static str,
}

/// Compares a derived file with what it should be, or writes it; `command` is the one that does.
pub(crate) fn settle(mode: Mode, command: &str, path: &str, wanted: &str) -> Result<()> {
    let file = places::root().join(path);
    if fs::read_to_string(&file).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if mode == Mode::Check {
        bail!("{path} is not what its source says: run `cargo xtask {command} --bless`");
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&file, wanted).with_context(|| format!("write {path}"))?;
    println!("{command}: wrote {path}");
    Ok(())
}

impl Section {
    /// The whole page with this text between the marks; what people wrote around them stays.
    pub(crate) fn page_with(&self, text: &str) -> Result<String> {
        let path = places::root().join(self.page);
        let page = fs::read_to_string(&path).with_context(|| format!("read {}", self.page))?;
        self.replaced(&page, text)
    }

    fn marks(&self) -> [String; 2] {
        let Self { name, command, .. } = self;
        [
            format!(
                "<!-- {name}: begin; what is between these marks is written by `cargo xtask {command}` -->"
            ),
            format!("<!-- {name}: end -->"),
        ]
    }

    fn replaced(&self, page: &str, text: &str) -> Result<String> {
        let [begin, end] = self.marks();
        let lost = || format!("{} has lost one of its marks, {begin} and {end}", self.page);
        let (before, rest) = page.split_once(&begin).with_context(lost)?;
        let (_, after) = rest.split_once(&end).with_context(lost)?;
        ensure!(
            !after.contains(&begin),
            "{} has the marks of {} twice",
            self.page,
            self.name
        );
        let text = text.trim();
        Ok(format!("{before}{begin}\n\n{text}\n\n{end}{after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str) -> Section {
        Section {
            page: "docs/a.md",
            name: name.to_owned(),
            command: "measure",
        }
    }

    #[test]
    fn only_what_is_between_the_marks_of_the_section_changes() {
        let reports = section("reports");
        let [begin, end] = reports.marks();
        let models = section("models").marks().join("\nmodels\n");
        let page = format!("before\n\n{begin}\nold\n{end}\n\n{models}\n");
        let once = reports.replaced(&page, "| new |\n").unwrap();
        assert_eq!(
            once,
            format!("before\n\n{begin}\n\n| new |\n\n{end}\n\n{models}\n")
        );
        assert_eq!(reports.replaced(&once, "| new |\n").unwrap(), once);
        assert!(reports.replaced("no marks", "| new |").is_err());
        assert!(reports.replaced(&begin, "| new |").is_err());
    }
}
