//! Work that is held back, as a row of a table and as JSON.

use medfleet_proto::v1::{Class, Pause};
use serde_json::{Value, json};

use super::words::{class_word, time_text};

pub(crate) fn pause_table_head() -> String {
    format!("{:<33} {:<8} {:<24} {}", "TENANT", "CLASS", "SINCE", "BY")
}

pub(crate) fn pause_table_row(pause: &Pause) -> String {
    let (tenant, class) = (tenant(pause), class(pause));
    let time = time_text(pause.create_time.as_ref());
    format!(
        "{:<33} {:<8} {time:<24} {}",
        tenant.unwrap_or("every tenant"),
        class.unwrap_or("all"),
        pause.actor
    )
}

/// Field names as in the `.proto`; null for every tenant and every class.
pub(crate) fn pause_json(pause: &Pause) -> Value {
    json!({
        "tenant": tenant(pause),
        "class": class(pause),
        "actor": pause.actor,
        "create_time": pause.create_time.as_ref().map(ToString::to_string),
    })
}

/// What may go on: named as in [`pause_json`], and that it does.
pub(crate) fn resumed_json(tenant: &str, class: Class) -> Value {
    let pause = Pause {
        tenant: tenant.to_owned(),
        class: class.into(),
        ..Pause::default()
    };
    json!({"tenant": self::tenant(&pause), "class": self::class(&pause), "resumed": true})
}

fn tenant(pause: &Pause) -> Option<&str> {
    (!pause.tenant.is_empty()).then_some(pause.tenant.as_str())
}

fn class(pause: &Pause) -> Option<&'static str> {
    (pause.class() != Class::Unspecified).then(|| class_word(pause.class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_everything() {
        let pause = Pause {
            class: Class::Bulk.into(),
            actor: "night-shift".into(),
            ..Pause::default()
        };
        let (head, row) = (pause_table_head(), pause_table_row(&pause));
        for (title, cell) in [
            ("TENANT", "every tenant"),
            ("CLASS", "BULK"),
            ("BY", "night-shift"),
        ] {
            assert_eq!(head.find(title), row.find(cell), "{title}\n{head}\n{row}");
        }
        assert_eq!(pause_json(&pause)["tenant"], Value::Null);
        assert_eq!(pause_json(&pause)["class"], "BULK");
        let resumed = resumed_json("", Class::Bulk);
        let expected = json!({"tenant": null, "class": "BULK", "resumed": true});
        assert_eq!(resumed, expected);
        assert_eq!(
            resumed_json("north", Class::Unspecified)["class"],
            Value::Null
        );
    }
}
