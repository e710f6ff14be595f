//! JSON Schemas of our two kinds of file, made from the types that read them, so that editors can
//! complete and validate. Committed under `schema/`; `tests/config.rs` fails when they are stale.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::{config::file::ConfigFile, route::file::RouteFile};

/// A kind of file that an operator writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// `dormouse.toml`.
    Dormouse,
    /// `routes/NAME.toml`.
    Route,
}

impl Schema {
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
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.insert("title".into(), title.into());
    schema.to_value()
}
