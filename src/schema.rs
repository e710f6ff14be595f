//! JSON Schemas of our two kinds of file, made from the types that read them, so that editors can
//! complete and validate. Committed under `schema/`; `tests/config` fails when they are stale.

mod reference;

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

pub use reference::reference;

use crate::{config::file::ConfigFile, route::file::RouteFile};

/// A kind of file that an operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaFile {
    /// `dormouse.toml`.
    Dormouse,
    /// `routes/NAME.toml`.
    Route,
}

impl SchemaFile {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Dormouse, Self::Route];

    /// The name of the committed file in `schema/`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Dormouse => "dormouse.schema.json",
            Self::Route => "route.schema.json",
        }
    }

    /// The schema.
    pub fn generate(self) -> Value {
        match self {
            Self::Dormouse => schema_of::<ConfigFile>("dormouse.toml"),
            Self::Route => schema_of::<RouteFile>("routes/NAME.toml"),
        }
    }

    /// The schema as it is committed.
    pub fn text(self) -> String {
        format!("{:#}\n", self.generate())
    }
}

fn schema_of<T: JsonSchema>(title: &str) -> Value {
    // Draft 7 and no references: what every editor's TOML plugin understands.
    let settings = SchemaSettings::draft07()
        .with(|settings| settings.inline_subschemas = true)
        .with_transform(RecursiveTransform(fit_to_toml));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".into(), title.into());
    schema.to_value()
}

/// TOML has no null: a key that may be missing is just not required. And a table's default is
/// what its keys' defaults say.
fn fit_to_toml(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = &types[..] {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if matches!(schema.get("default"), Some(Value::Null | Value::Object(_))) {
        schema.remove("default");
    }
    if let Some(Value::String(description)) = schema.get_mut("description") {
        // The line breaks are the source's.
        *description = description.replace('\n', " ");
    }
}
