//! The names of the backends.

use std::fmt;

/// What runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LlmBackendKind {
    /// The pure-Rust CPU kernels.
    Cpu,
    /// MLX, on its default device.
    Mlx,
}

impl LlmBackendKind {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Mlx => "mlx",
        }
    }
}

impl fmt::Display for LlmBackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
