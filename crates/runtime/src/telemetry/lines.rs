//! What a log line says of the spans that it was written in: names, ids and counts of our own, the method that was called and
//! the subject that a unit came by. The other fields are words of a collector's conventions: they are left out, and a value
//! that is written only when it is read (`%`) is then never written.
//!
//! Spans of a log in JSON are written here, straight into their text, as every unit of work has one and hardly any a line.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, FormatFields, Writer};

/// Fields that begin so are for a collector.
const CONVENTIONS: [&str; 4] = ["otel.", "messaging.", "rpc.", "gen_ai."];
/// But these say what was done: no other field does.
const KEPT: [&str; 2] = ["messaging.destination.name", "rpc.method"];

fn is_for_lines(name: &str) -> bool {
    let is_convention = CONVENTIONS.iter().any(|prefix| name.starts_with(*prefix));
    !is_convention || KEPT.contains(&name)
}

/// Fields of spans in JSON: one object.
#[derive(Debug)]
pub(super) struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        write_object(writer, &fields)
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut more = String::new();
        write_object(Writer::new(&mut more), fields)?;
        let current = &mut current.fields;
        if more == NOTHING {
            return Ok(());
        }
        if current.is_empty() || current.as_str() == NOTHING {
            *current = more;
        } else {
            // One object of the two. Of two values of one field the later counts for who reads it.
            current.pop();
            current.push(',');
            current.push_str(&more[1..]);
        }
        Ok(())
    }
}

const NOTHING: &str = "{}";

fn write_object(writer: Writer<'_>, fields: &impl RecordFields) -> fmt::Result {
    let mut object = Object {
        writer,
        is_empty: true,
        result: Ok(()),
    };
    object.writer.write_char('{')?;
    fields.record(&mut object);
    object.result?;
    object.writer.write_char('}')
}

/// Writes one entry after another.
struct Object<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Object<'_> {
    fn entry(&mut self, field: &Field, value: fmt::Arguments<'_>, is_text: bool) {
        let name = field.name();
        if self.result.is_ok() && is_for_lines(name) {
            self.result = self.write(name, value, is_text);
        }
    }

    fn write(&mut self, name: &str, value: fmt::Arguments<'_>, is_text: bool) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.writer.write_char(',')?;
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        self.text(format_args!("{name}"))?;
        self.writer.write_char(':')?;
        if is_text {
            self.text(value)
        } else {
            self.writer.write_fmt(value)
        }
    }

    fn text(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        self.writer.write_char('"')?;
        Escaped(&mut self.writer).write_fmt(text)?;
        self.writer.write_char('"')
    }
}

impl Visit for Object<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no word for what is no number.
        if value.is_finite() {
            self.entry(field, format_args!("{value:?}"), false);
        } else {
            self.entry(field, format_args!("null"), false);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.entry(field, format_args!("{value}"), false);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.entry(field, format_args!("{value}"), false);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.entry(field, format_args!("{value}"), false);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.entry(field, format_args!("{value}"), true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.entry(field, format_args!("{value:?}"), true);
    }
}

/// Text inside the quotes of JSON.
struct Escaped<'a, 'writer>(&'a mut Writer<'writer>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut written = 0;
        for (at, byte) in text.bytes().enumerate() {
            if byte < b' ' || byte == b'"' || byte == b'\\' {
                self.0.write_str(&text[written..at])?;
                write!(self.0, "\\u{byte:04x}")?;
                written = at + 1;
            }
        }
        self.0.write_str(&text[written..])
    }
}

/// Fields of spans and of events in a log for people.
#[derive(Debug)]
pub(super) struct TextFields;

impl<'writer> FormatFields<'writer> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        write_text(writer, &fields)
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut more = String::new();
        write_text(Writer::new(&mut more), fields)?;
        let current = &mut current.fields;
        if !more.is_empty() && !current.is_empty() {
            current.push(' ');
        }
        current.push_str(&more);
        Ok(())
    }
}

fn write_text(writer: Writer<'_>, fields: &impl RecordFields) -> fmt::Result {
    let mut text = ForLines(DefaultVisitor::new(writer, true));
    fields.record(&mut text);
    text.0.finish()
}

/// Passes on what a line is to say.
struct ForLines<V>(V);

impl<V: Visit> Visit for ForLines<V> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if is_for_lines(field.name()) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        if is_for_lines(field.name()) {
            self.0.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if is_for_lines(field.name()) {
            self.0.record_debug(field, value);
        }
    }
}
