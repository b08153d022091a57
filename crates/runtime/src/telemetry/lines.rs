//! What a log line says of the spans around it: our own names, ids and counts, the method that was called, and the subject that a
//! unit came by. Other fields follow a collector's conventions and are left out of log lines; a value that is formatted only when
//! it is read (`%`) is then never formatted.

use std::error::Error;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, FormatFields, JsonVisitor, Writer};

use super::LogFormat;

/// Fields with these prefixes are for a collector.
const CONVENTIONS: [&str; 4] = ["otel.", "messaging.", "rpc.", "gen_ai."];
/// Except these, which alone say what was done.
const KEPT: [&str; 2] = ["messaging.destination.name", "rpc.method"];
/// An object of JSON without an entry.
const NOTHING: &str = "{}";

/// Fields of spans, and in a log for people of events too, as the library writes them.
#[derive(Debug)]
pub(super) struct LineFields(pub(super) LogFormat);

impl LineFields {
    fn write(&self, mut writer: Writer<'_>, fields: &impl RecordFields) -> fmt::Result {
        match self.0 {
            LogFormat::Json => {
                let mut object = ForLines(JsonVisitor::new(&mut writer));
                fields.record(&mut object);
                object.0.finish()
            }
            LogFormat::Text => {
                let mut text = ForLines(DefaultVisitor::new(writer, true));
                fields.record(&mut text);
                text.0.finish()
            }
        }
    }

    /// Appends what became known later. Of two values of one JSON field, readers take the later one; the library would parse and
    /// write the whole object again instead.
    fn join(&self, written: &mut String, more: &str) {
        match self.0 {
            _ if written.is_empty() || written == NOTHING => more.clone_into(written),
            LogFormat::Json if more != NOTHING => {
                written.pop();
                written.push(',');
                written.push_str(&more[1..]);
            }
            LogFormat::Text if !more.is_empty() => {
                written.push(' ');
                written.push_str(more);
            }
            LogFormat::Json | LogFormat::Text => {}
        }
    }
}

impl<'writer> FormatFields<'writer> for LineFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        self.write(writer, &fields)
    }

    fn add_fields(
        &self,
        current: &'writer mut FormattedFields<Self>,
        fields: &Record<'_>,
    ) -> fmt::Result {
        let mut more = String::new();
        self.write(Writer::new(&mut more), fields)?;
        self.join(&mut current.fields, &more);
        Ok(())
    }
}

/// Passes on what a line is to say.
struct ForLines<V>(V);

/// Methods of [`Visit`], each for a type of values.
macro_rules! pass_on {
    ($($record:ident($value:ty)),+ $(,)?) => {
        $(fn $record(&mut self, field: &Field, value: $value) {
            let name = field.name();
            let is_convention = CONVENTIONS.iter().any(|prefix| name.starts_with(*prefix));
            if !is_convention || KEPT.contains(&name) {
                self.0.$record(field, value);
            }
        })+
    };
}

impl<V: Visit> Visit for ForLines<V> {
    pass_on! {
        record_f64(f64),
        record_i64(i64),
        record_u64(u64),
        record_bool(bool),
        record_str(&str),
        record_error(&(dyn Error + 'static)),
        record_debug(&dyn fmt::Debug),
    }
}
