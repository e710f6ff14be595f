//! `docs/reference.md`: every key of both files, written from the same schemas that editors use.
//!
//! Pure. Says nothing of its own about a key: that is the comment beside its type.

use std::fmt::Write as _;

use serde_json::Value;

use super::SchemaFile;

const HEAD: &str = "\
# Every key

Made from the types that read the files; do not edit. `DORMOUSE_BLESS=1 cargo test --test config`
writes it anew, and that test fails when it is stale. The same words are in `schema/*.json`, which
editors use: put `#:schema PATH` into a file's first line (Taplo, Even Better TOML).

A duration is text such as `\"500ms\"`, `\"30s\"`, `\"15m\"`, `\"2h\"`, `\"30d\"`; a size is text such as
`\"512MiB\"`, `\"2GiB\"`. A key that is not listed here is an error. *Required* means that the table it
stands in cannot be without it.
";

/// The page, as it is committed.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    for (file, root) in
        [(SchemaFile::Dormouse, "dormouse.toml"), (SchemaFile::Route, "routes/NAME.toml")]
    {
        let schema = file.generate();
        line(&mut page, &format!("\n## `{root}`\n\n{}", description(&schema)));
        table(&mut page, "", &schema);
    }
    page
}

/// One TOML table: its own keys first, then the tables inside it.
fn table(page: &mut String, path: &str, schema: &Value) {
    let (tables, keys): (Vec<_>, Vec<_>) =
        properties(schema).into_iter().partition(|(_, property)| inner(property).is_some());
    if !path.is_empty() {
        line(page, &format!("\n### `[{path}]`\n\n{}", description(schema)));
    }
    if !keys.is_empty() {
        line(page, "\n| key | what it may be | default | what it is |\n|---|---|---|---|");
    }
    for (key, property) in keys {
        row(page, schema, key, "", property);
    }
    for (key, property) in tables {
        let (part, inner) = inner(property).unwrap_or(("", property));
        let path = join(&join(path, key), part);
        let mut inner = inner.clone();
        if !part.is_empty() {
            let own = description(&inner).trim_start_matches(&format!("`[{path}]`. "));
            inner["description"] = format!("{} {own}", description(property)).into();
        }
        table(page, &path, &inner);
    }
}

/// A key, and below it the keys of an inline table that it may be. `outer` is the key of the table
/// that this one stands in, where that is an inline one.
fn row(page: &mut String, schema: &Value, key: &str, outer: &str, property: &Value) {
    let required = schema["required"].as_array().is_some_and(|all| all.contains(&key.into()));
    let (text, told) = match description(property).rsplit_once(" Default: ") {
        Some((text, told)) if property["default"].is_null() => (text, told.trim_end_matches('.')),
        _ => (description(property), ""),
    };
    let default = match &property["default"] {
        _ if required => "*required*".to_owned(),
        Value::Null => told.to_owned(),
        default => format!("`{default}`"),
    };
    let shown = if outer.is_empty() { key.to_owned() } else { format!("{outer} {{ {key} }}") };
    line(page, &format!("| `{shown}` | {} | {default} | {text} |", kind(property)));
    let items = &property["items"];
    let any = [property, items].into_iter().filter_map(|all| all["anyOf"].as_array()).flatten();
    let tables = any.chain([items]);
    for table in tables {
        for (name, property) in properties(table) {
            row(page, table, name, key, property);
        }
    }
}

/// The schema of the TOML table that a key opens, with the part of its path that operators choose.
fn inner(property: &Value) -> Option<(&'static str, &Value)> {
    let named = &property["additionalProperties"];
    if property["properties"].is_object() {
        Some(("", property))
    } else if named["properties"].is_object() {
        Some(("NAME", named))
    } else {
        None
    }
}

fn kind(property: &Value) -> String {
    let words = |words: &Value| -> Vec<_> {
        words.as_array().into_iter().flatten().map(|word| format!("`{word}`")).collect()
    };
    let choices = words(&property["enum"]);
    if !choices.is_empty() {
        return choices.join(", ");
    }
    for any in [&property["oneOf"], &property["anyOf"]] {
        if let Some(any) = any.as_array() {
            let kinds: Vec<_> = any
                .iter()
                .map(|one| match &one["const"] {
                    Value::Null => kind(one),
                    word => format!("`{word}`"),
                })
                .collect();
            return kinds.join(" or ");
        }
    }
    match &property["type"] {
        Value::Array(types) => {
            let types: Vec<_> = types.iter().filter_map(Value::as_str).map(type_word).collect();
            types.join(" or ")
        }
        Value::String(name) if name == "array" => format!("list of {}", kind(&property["items"])),
        Value::String(name) if name == "object" && property["properties"].is_null() => {
            "table of text".to_owned()
        }
        Value::String(name) if name == "string" => text_word(property).to_owned(),
        Value::String(name) => type_word(name).to_owned(),
        _ => String::new(),
    }
}

fn type_word(name: &str) -> &str {
    match name {
        "string" => "text",
        "integer" => "whole number",
        "object" => "table",
        "boolean" => "`true` or `false`",
        other => other,
    }
}

/// What a text must look like, as its examples tell.
fn text_word(property: &Value) -> &'static str {
    match property["examples"][0].as_str() {
        Some("500ms") => "duration",
        Some("512MiB") => "size",
        Some(example) if example.contains('/') && !example.contains(':') => "network",
        Some(example) if example.contains(':') => "address",
        _ => "text",
    }
}

fn properties(schema: &Value) -> Vec<(&str, &Value)> {
    let all = schema["properties"].as_object();
    all.into_iter().flatten().map(|(key, property)| (key.as_str(), property)).collect()
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() || key.is_empty() { format!("{path}{key}") } else { format!("{path}.{key}") }
}

fn line(page: &mut String, text: &str) {
    writeln!(page, "{text}").expect("a String takes all");
}
