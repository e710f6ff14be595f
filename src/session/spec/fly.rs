//! What the Fly engine alone knows of an instance.

/// `[instance.fly]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlySpec {
    /// How large the session's volume is made, in bytes.
    pub volume_size: u64,
}

impl Default for FlySpec {
    fn default() -> Self {
        Self { volume_size: 1 << 30 }
    }
}
