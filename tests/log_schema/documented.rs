//! What docs/logs.md documents about each record.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use zmq_echo::log::PLACE;

use crate::support::tables::table_of;

pub const LOGS: &str = include_str!("../../docs/logs.md");

/// The sections that list records: the server's, and the client's.
pub const SECTIONS: [&str; 2] = ["## Records", "## Records of the client"];

/// The message and target, which identify a record, with its level and fields.
pub type Records = BTreeMap<(String, String), (String, BTreeSet<String>)>;

pub fn documented() -> Records {
    let [mut all, client] = SECTIONS.map(documented_in);
    let count = all.len() + client.len();
    all.extend(client);
    assert_eq!(all.len(), count, "a record is documented in both sections");
    all
}

pub fn documented_in(section: &str) -> Records {
    let rows = table_of(LOGS, &format!("{section}\n"), "| message | level |");
    let count = rows.len();
    let records: Records = rows
        .into_iter()
        .map(|row| {
            let names = row[3].split(", ").map(|name| name.trim_matches('`').to_owned());
            let fields = names.filter(|name| !name.is_empty()).collect();
            ((row[0].clone(), row[2].clone()), (row[1].clone(), fields))
        })
        .collect();
    assert_eq!(records.len(), count, "a record is documented twice");
    records
}

/// The types of the fields in the table under this heading.
pub fn types(heading: &str) -> BTreeMap<String, String> {
    let rows = table_of(LOGS, heading, "| field | type |");
    rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// Checks a record of a process that has either none of Kubernetes' variables or all of them.
#[track_caller]
pub fn assert_documented(record: &Json, in_kubernetes: bool) {
    let text = |field: &str| record[field].as_str().expect("the field is a string").to_owned();
    let (level, own) = documented()
        .remove(&(text("message"), text("target")))
        .unwrap_or_else(|| panic!("docs/logs.md does not document this record: {record}"));
    assert_eq!(text("level"), level, "{record}");
    let mut types_of = types("## Every record");
    if !in_kubernetes {
        types_of.retain(|field, _| PLACE.iter().all(|(_, place)| place != field));
    }
    let mut expected: BTreeSet<String> = types_of.keys().cloned().collect();
    expected.extend(own);
    let found: BTreeSet<String> = record.as_object().unwrap().keys().cloned().collect();
    assert_eq!(found, expected, "{record}");
    types_of.extend(types("## Fields"));
    for (field, value) in record.as_object().unwrap() {
        let holds = match &*types_of[field] {
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            other => panic!("docs/logs.md names an unknown type: {other}"),
        };
        assert!(holds, "{field} is not a {}: {record}", types_of[field]);
    }
}
