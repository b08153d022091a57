//! The table's place in `docs/performance.md`: between two marks, so that what people wrote around it stays.

use anyhow::{Context, Result, ensure};

use super::results::Cell;
use super::{Part, table};
use crate::places;

const PAGE: &str = "docs/performance.md";

/// What stands between the marks.
pub(super) fn section(heading: &str, cells: &[&Cell]) -> String {
    format!("{heading}\n\n{}", table::markdown(cells))
}

/// Puts the section of one part of the measurements there; the others' stay.
pub(super) fn put(part: Part, section: &str) -> Result<()> {
    let path = places::root().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let page = replaced(&page, part, section)?;
    std::fs::write(&path, page).with_context(|| format!("write {PAGE}"))
}

/// Where a part's section begins and ends.
fn marks(part: Part) -> [String; 2] {
    let part = part.name();
    [
        format!(
            "<!-- bench-peers {part}: begin; what is between these marks is written by `cargo xtask bench-peers` -->"
        ),
        format!("<!-- bench-peers {part}: end -->"),
    ]
}

fn replaced(page: &str, part: Part, section: &str) -> Result<String> {
    let [begin, end] = marks(part);
    let lost = || format!("{PAGE} has lost one of its marks, {begin} and {end}");
    let (before, rest) = page.split_once(&begin).with_context(lost)?;
    let (_, after) = rest.split_once(&end).with_context(lost)?;
    ensure!(
        !after.contains(&begin),
        "{PAGE} has the marks of {} twice",
        part.name()
    );
    let section = section.trim();
    Ok(format!("{before}{begin}\n\n{section}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_of_the_part_changes() {
        let [begin, end] = marks(Part::Reports);
        let models = marks(Part::Models).join("\nmodels\n");
        let page = format!("before\n\n{begin}\nold\n{end}\n\n{models}\n");
        let once = replaced(&page, Part::Reports, "| new |\n").unwrap();
        assert_eq!(
            once,
            format!("before\n\n{begin}\n\n| new |\n\n{end}\n\n{models}\n")
        );
        assert_eq!(replaced(&once, Part::Reports, "| new |\n").unwrap(), once);
        assert!(replaced("no marks", Part::Reports, "| new |").is_err());
        assert!(replaced(&begin, Part::Reports, "| new |").is_err());
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = std::fs::read_to_string(places::root().join(PAGE)).unwrap();
        for part in [Part::Models, Part::Reports] {
            assert!(replaced(&page, part, "| new |").is_ok());
        }
    }
}
