//! What the API lists page by page, shown as one list.

use std::io;

use crate::client::ClientError;
use crate::exit::{CommandResult, Exit};
use crate::show;

/// What is listed, and how much of it.
pub(super) struct Shown {
    /// In words, in the plural.
    pub(super) what: &'static str,
    /// Items at most.
    pub(super) limit: usize,
    /// The head of the table, where it is one.
    pub(super) head: Option<String>,
}

/// Fetches page after page (`page` takes a page's token and gives its items and the next token) and prints each item.
pub(super) async fn show<T>(
    shown: Shown,
    page: impl AsyncFn(String) -> Result<(Vec<T>, String), ClientError>,
    print: impl Fn(&T) -> io::Result<()>,
) -> CommandResult {
    let (mut count, mut token) = (0, String::new());
    let mut head = shown.head;
    loop {
        let (items, next) = page(token).await?;
        // An empty table would say that there is nothing, where nobody was asked.
        if let Some(head) = head.take() {
            show::print(&head)?;
        }
        for item in &items {
            if count == shown.limit {
                let what = shown.what;
                eprintln!("medfleet: more than {count} {what}; see the rest with --limit N");
                return Ok(Exit::Done);
            }
            count += 1;
            print(item)?;
        }
        if next.is_empty() {
            return Ok(Exit::Done);
        }
        token = next;
    }
}
