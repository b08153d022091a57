//! The repository's own rules, checked: a rule that nothing checks drifts.
//!
//! Every check is a function from facts (cargo's metadata, the files of the repository) to a list of violations, each
//! a sentence that names the place; `run` gathers the facts, prints the violations and fails if there is one.

mod architecture;
mod edges;
mod features;
pub(crate) mod files;
mod licences;
mod links;
mod profile;
mod reasons;
mod untested;
mod workspace;

use anyhow::Result;

use crate::violations;
use workspace::Workspace;

/// Runs every check; prints all violations before failing.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::load()?;
    let files = files::list()?;

    let mut violations = Vec::new();
    violations.extend(workspace.without_shared_lints()?);
    violations.extend(profile::check(&workspace)?);
    violations.extend(edges::arrows(&workspace));
    violations.extend(edges::owners(&workspace));
    violations.extend(edges::unlinked(&workspace));
    violations.extend(features::check()?);
    violations.extend(files::check(&files)?);
    violations.extend(architecture::check(&workspace)?);
    violations.extend(licences::check(&workspace)?);
    violations.extend(links::check(&files)?);
    violations.extend(reasons::check()?);
    violations.extend(untested::check(&workspace, &files)?);
    violations::none("tidy", &violations)?;
    println!(
        "tidy: {} packages and {} files keep the rules",
        workspace.packages.len(),
        files.len()
    );
    Ok(())
}
