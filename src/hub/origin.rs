//! Whose a model on this machine is.

/// Where a model was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The Hugging Face cache.
    Hub,
    /// LM Studio's folder.
    LmStudio,
    /// Ollama's folder.
    Ollama,
}

impl Origin {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::LmStudio => "LM Studio",
            Self::Ollama => "Ollama",
        }
    }
}
