//! The API reference in Markdown, made from the descriptors of the public package and the comments beside them.
//!
//! Descriptors carry comments apart from what they describe, keyed by a path of field numbers of `descriptor.proto`;
//! `Comments` finds them by that path. The error catalogue is made of the `Errors:` sentences of the methods.

use std::collections::BTreeMap;
use std::fmt::Write;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto,
};

/// The package that clients see.
const PACKAGE: &str = "medfleet.v1";

/// What every method answers, before what each does.
const ERRORS: &str = "\n## Errors\n\n\
    Every method also answers UNAUTHENTICATED to a call without a known token, RESOURCE_EXHAUSTED with the reason `BUSY` and \
    a delay where too many requests are under way, DEADLINE_EXCEEDED with the reason `REQUEST_LATE` to a request that does \
    not come whole within `ingest.limits.request_time_max` (two minutes), uploads apart \
    (send large files by UploadInput), and INTERNAL where medfleet has a defect.\n\
    UNAVAILABLE is also what a client makes of a connection that breaks or is refused.\n\
    The reasons that `ErrorInfo` has for each code, and which calls to try again: \
    [submit from another language](../how-to/submit-from-another-language.md#errors).\n";

/// What every method may answer, and says of itself when: each asks the queue.
const EVERYWHERE: &str = "UNAVAILABLE";

/// Field numbers in `descriptor.proto`, of which the paths of comments are made.
mod number {
    pub(super) const FILE_MESSAGE: i32 = 4;
    pub(super) const FILE_ENUM: i32 = 5;
    pub(super) const FILE_SERVICE: i32 = 6;
    pub(super) const SERVICE_METHOD: i32 = 2;
    pub(super) const MESSAGE_FIELD: i32 = 2;
    pub(super) const MESSAGE_NESTED: i32 = 3;
    pub(super) const MESSAGE_ENUM: i32 = 4;
    pub(super) const ENUM_VALUE: i32 = 2;
}

pub(crate) fn page(set: &FileDescriptorSet) -> String {
    let files: Vec<&FileDescriptorProto> = set
        .file
        .iter()
        .filter(|file| file.package() == PACKAGE)
        .collect();
    let mut page = String::from(
        "<!-- Made by `cargo xtask proto --bless` from the .proto files; do not edit. -->\n\
         # API reference\n\nThe package is `medfleet.v1`. Field numbers and names never change their meaning.\n",
    );
    let mut errors = Vec::new();
    for file in &files {
        let comments = Comments::of(file);
        for (index, service) in file.service.iter().enumerate() {
            write_service(&mut page, &comments, index, service, &mut errors);
        }
    }
    write_catalogue(&mut page, &files, &errors);
    page.push_str("\n## Messages\n");
    for file in &files {
        let comments = Comments::of(file);
        for (index, message) in file.message_type.iter().enumerate() {
            write_message(
                &mut page,
                &comments,
                &[number::FILE_MESSAGE, position(index)],
                "",
                message,
            );
        }
    }
    page.push_str("\n## Enumerations\n");
    for file in &files {
        let comments = Comments::of(file);
        for (index, kind) in file.enum_type.iter().enumerate() {
            write_enum(
                &mut page,
                &comments,
                &[number::FILE_ENUM, position(index)],
                "",
                kind,
            );
        }
    }
    page
}

/// Methods whose `Errors:` sentence leaves out what every method may answer.
pub(crate) fn silent(set: &FileDescriptorSet) -> Vec<String> {
    let mut silent = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == PACKAGE) {
        let comments = Comments::of(file);
        for (index, service) in file.service.iter().enumerate() {
            let path = [number::FILE_SERVICE, position(index)];
            for (index, method) in service.method.iter().enumerate() {
                let lines = comments.at(&below(&path, number::SERVICE_METHOD, index));
                let (_, codes) = split_errors(&lines);
                if !codes.iter().any(|(code, _)| code == EVERYWHERE) {
                    silent.push(format!("{}.{}", service.name(), method.name()));
                }
            }
        }
    }
    silent
}

/// One row of the error catalogue.
#[derive(Debug, PartialEq, Eq)]
struct ErrorRow {
    method: String,
    code: String,
    when: String,
}

/// Comments of a file by the path of what they stand at.
struct Comments<'a> {
    by_path: BTreeMap<&'a [i32], &'a str>,
}

impl<'a> Comments<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let by_path = locations
            .map(|location| (location.path.as_slice(), location.leading_comments()))
            .collect();
        Self { by_path }
    }

    /// The comment's lines without their leading blanks.
    fn at(&self, path: &[i32]) -> Vec<&'a str> {
        let text = self.by_path.get(path).copied().unwrap_or_default();
        text.lines().map(str::trim).collect()
    }

    /// The comment as one line, for a cell of a table.
    fn cell(&self, path: &[i32]) -> String {
        self.at(path).join(" ").trim().replace('|', "\\|")
    }
}

fn position(index: usize) -> i32 {
    i32::try_from(index).expect("a file has fewer than two thousand million declarations")
}

fn below(path: &[i32], number: i32, index: usize) -> Vec<i32> {
    [path, &[number, position(index)]].concat()
}

fn write_service(
    page: &mut String,
    comments: &Comments<'_>,
    index: usize,
    service: &ServiceDescriptorProto,
    errors: &mut Vec<ErrorRow>,
) {
    let path = [number::FILE_SERVICE, position(index)];
    line(page, &format!("\n## {}\n", service.name()));
    line(page, &comments.at(&path).join("\n"));
    for (index, method) in service.method.iter().enumerate() {
        let lines = comments.at(&below(&path, number::SERVICE_METHOD, index));
        let (about, codes) = split_errors(&lines);
        line(
            page,
            &format!("\n### {}.{}\n", service.name(), method.name()),
        );
        line(page, &format!("`{}`\n", signature(method)));
        line(page, &about);
        for (code, when) in codes {
            errors.push(ErrorRow {
                method: method.name().to_owned(),
                code,
                when,
            });
        }
    }
}

fn signature(method: &MethodDescriptorProto) -> String {
    let side = |streams: bool, name: &str| {
        let stream = if streams { "stream " } else { "" };
        format!("({stream}{})", short(name))
    };
    let takes = side(method.client_streaming(), method.input_type());
    let gives = side(method.server_streaming(), method.output_type());
    format!("rpc {}{takes} returns {gives}", method.name())
}

fn write_catalogue(page: &mut String, files: &[&FileDescriptorProto], errors: &[ErrorRow]) {
    page.push_str(ERRORS);
    page.push_str("\n| method | code | when |\n|---|---|---|\n");
    for row in errors {
        line(
            page,
            &format!(
                "| {} | {} | {} |",
                row.method,
                row.code,
                row.when.replace('|', "\\|")
            ),
        );
    }
    for file in files {
        let comments = Comments::of(file);
        for (index, kind) in file
            .enum_type
            .iter()
            .enumerate()
            .filter(|(_, kind)| kind.name() == "FailureReason")
        {
            page.push_str("\nReasons of failed jobs:\n\n| reason | when |\n|---|---|\n");
            let path = [number::FILE_ENUM, position(index)];
            for (index, value) in kind
                .value
                .iter()
                .enumerate()
                .filter(|(_, value)| value.number() != 0)
            {
                let when = comments.cell(&below(&path, number::ENUM_VALUE, index));
                line(page, &format!("| {} | {when} |", value.name()));
            }
        }
    }
}

/// Splits a method's comment into its description and the codes of its `Errors:` sentence.
///
/// The sentence reads `Errors: CODE (when), CODE, CODE (when).`
fn split_errors(lines: &[&str]) -> (String, Vec<(String, String)>) {
    let start = lines
        .iter()
        .position(|line| line.starts_with("Errors:"))
        .unwrap_or(lines.len());
    let about = lines[..start].join("\n");
    let sentence = lines[start..].join(" ");
    let sentence = sentence
        .trim_start_matches("Errors:")
        .trim()
        .trim_end_matches('.');
    let mut codes = Vec::new();
    let mut depth = 0_usize;
    let mut item = String::new();
    for c in sentence.chars().chain([',']) {
        match c {
            ',' if depth == 0 => {
                codes.extend(code_and_when(&item));
                item.clear();
                continue;
            }
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        item.push(c);
    }
    (about, codes)
}

fn code_and_when(item: &str) -> Option<(String, String)> {
    let item = item.trim();
    if item.is_empty() {
        return None;
    }
    let (code, when) = item.split_once(" (").unwrap_or((item, ""));
    let when = when.strip_suffix(')').unwrap_or(when);
    Some((code.to_owned(), when.to_owned()))
}

fn write_message(
    page: &mut String,
    comments: &Comments<'_>,
    path: &[i32],
    outer: &str,
    message: &DescriptorProto,
) {
    if message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry())
    {
        return;
    }
    let name = format!("{outer}{}", message.name());
    line(page, &format!("\n### {name}\n"));
    line(page, &comments.at(path).join("\n"));
    if !message.field.is_empty() {
        page.push_str("\n| # | field | type | meaning |\n|---|---|---|---|\n");
    }
    for (index, field) in message.field.iter().enumerate() {
        let meaning = comments.cell(&below(path, number::MESSAGE_FIELD, index));
        let choice = one_of(message, field)
            .map(|name| format!(" (one of `{name}`)"))
            .unwrap_or_default();
        line(
            page,
            &format!(
                "| {} | `{}` | {}{choice} | {meaning} |",
                field.number(),
                field.name(),
                type_name(field)
            ),
        );
    }
    let outer = format!("{name}.");
    for (index, nested) in message.nested_type.iter().enumerate() {
        write_message(
            page,
            comments,
            &below(path, number::MESSAGE_NESTED, index),
            &outer,
            nested,
        );
    }
    for (index, kind) in message.enum_type.iter().enumerate() {
        write_enum(
            page,
            comments,
            &below(path, number::MESSAGE_ENUM, index),
            &outer,
            kind,
        );
    }
}

/// The name of the choice that a field is a part of; `optional` fields are no choice though they are stored as one.
fn one_of<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> Option<&'a str> {
    let index = usize::try_from(field.oneof_index?).ok()?;
    (!field.proto3_optional()).then(|| message.oneof_decl.get(index).map(|choice| choice.name()))?
}

fn write_enum(
    page: &mut String,
    comments: &Comments<'_>,
    path: &[i32],
    outer: &str,
    kind: &EnumDescriptorProto,
) {
    line(page, &format!("\n### {outer}{}\n", kind.name()));
    line(page, &comments.at(path).join("\n"));
    page.push_str("\n| # | value | meaning |\n|---|---|---|\n");
    for (index, value) in kind.value.iter().enumerate() {
        let meaning = comments.cell(&below(path, number::ENUM_VALUE, index));
        line(
            page,
            &format!("| {} | `{}` | {meaning} |", value.number(), value.name()),
        );
    }
}

fn type_name(field: &FieldDescriptorProto) -> String {
    let base = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => short(field.type_name()).to_owned(),
        scalar => scalar
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    };
    match field.label() {
        Label::Repeated => format!("repeated {base}"),
        _ if field.proto3_optional() => format!("optional {base}"),
        _ => base,
    }
}

/// A type's name without the leading dot and our own package.
fn short(name: &str) -> &str {
    let name = name.trim_start_matches('.');
    name.strip_prefix(PACKAGE)
        .map_or(name, |rest| rest.trim_start_matches('.'))
}

fn line(page: &mut String, text: &str) {
    writeln!(page, "{}", text.trim_end_matches(' ')).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use prost_types::SourceCodeInfo;
    use prost_types::source_code_info::Location;

    use super::*;

    fn check_errors(comment: &[&str], about: &str, expected: &[(&str, &str)]) {
        let (found_about, found) = split_errors(comment);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(code, when)| (code.as_str(), when.as_str()))
            .collect();
        assert_eq!(found_about, about);
        assert_eq!(found, expected);
    }

    #[test]
    fn errors_are_read_from_the_comment() {
        check_errors(
            &["Does.", "Errors: NOT_FOUND."],
            "Does.",
            &[("NOT_FOUND", "")],
        );
        check_errors(
            &["Errors: A (one, two), B,", "C (three)."],
            "",
            &[("A", "one, two"), ("B", ""), ("C", "three")],
        );
        check_errors(&["Does.", "More."], "Does.\nMore.", &[]);
    }

    #[test]
    fn a_method_that_does_not_say_that_it_may_be_away_is_found() {
        let found = |comment: &str| {
            let location = Location {
                path: vec![number::FILE_SERVICE, 0, number::SERVICE_METHOD, 0],
                leading_comments: Some(comment.to_owned()),
                ..Location::default()
            };
            let method = MethodDescriptorProto {
                name: Some("Do".to_owned()),
                ..MethodDescriptorProto::default()
            };
            let service = ServiceDescriptorProto {
                name: Some("Service".to_owned()),
                method: vec![method],
                ..ServiceDescriptorProto::default()
            };
            let file = FileDescriptorProto {
                package: Some(PACKAGE.to_owned()),
                service: vec![service],
                source_code_info: Some(SourceCodeInfo {
                    location: vec![location],
                }),
                ..FileDescriptorProto::default()
            };
            silent(&FileDescriptorSet { file: vec![file] })
        };
        assert_eq!(found(" Does.\n Errors: NOT_FOUND.\n"), ["Service.Do"]);
        assert!(found(" Does.\n Errors: NOT_FOUND, UNAVAILABLE (it is away).\n").is_empty());
    }

    #[test]
    fn types_are_named_as_a_reader_knows_them() {
        assert_eq!(short(".medfleet.v1.Job"), "Job");
        assert_eq!(
            short(".google.protobuf.Duration"),
            "google.protobuf.Duration"
        );
    }
}
