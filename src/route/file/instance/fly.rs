//! `[instance.fly]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{route::text::SizeText, session::FlySpec};

/// `[instance.fly]`.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FlyTable {
    /// How large a volume of `instance.volumes` is made, in whole GiB. One that exists stays as it
    /// is.
    pub(crate) volume_size: SizeText,
}

impl Default for FlyTable {
    fn default() -> Self {
        Self { volume_size: SizeText(FlySpec::default().volume_size) }
    }
}

impl From<FlyTable> for FlySpec {
    fn from(table: FlyTable) -> Self {
        Self { volume_size: table.volume_size.0 }
    }
}
