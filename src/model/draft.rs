//! A smaller model that guesses the texts of another: what it has to have in common with it, and what it takes.

use super::{LoadOptions, MemorySetting, ModelFiles};
use crate::backend::LlmBackendKind;
use crate::backend::select::MemoryNeed;
use crate::engine::Drafts;
use crate::error::{Error, Result};
use crate::json::quote;
use crate::text::Tokenizer;
use crate::weights::TensorInfo;

/// Rows of its steps, at most: what it catches up on before one step of the model.
const CHUNK: usize = 256;

/// How a draft model is loaded beside one that is loaded by `options`.
pub(super) fn options(options: &LoadOptions) -> LoadOptions {
    LoadOptions {
        faults: Default::default(),
        context: None,
        drafts: Drafts::Off,
        draft: None,
        adapters: Vec::new(),
        ..options.clone()
    }
}

impl ModelFiles {
    /// Whether it has a layer that guesses further tokens, and no other: `mtp-….gguf`.
    pub fn is_layer_ahead(&self) -> bool {
        let mut names = self.checkpoint.tensors().map(TensorInfo::name);
        self.guesses_ahead() && !names.any(|name| name.starts_with("model.layers.0."))
    }

    /// The model that is to guess this one's texts, opened as this one was.
    pub(super) fn draft(&self, options: &LoadOptions) -> Result<Option<Self>> {
        match &options.draft {
            None => Ok(None),
            Some(_) if options.drafts == Drafts::Off => {
                let expected = "none where drafts are off";
                Err(Error::Option { option: "draft", got: "a model".into(), expected })
            }
            Some(path) => {
                let mut draft = Self::open_by(path, self.checkpoint.access())?;
                draft.checkpoint.tell(&options.progress);
                let list = draft.architecture.weights();
                let has = |name: &str| draft.checkpoint.find(&format!("{name}.weight")).is_some();
                let is_part = !list.names().filter(|name| name.contains(".0.")).any(has);
                if is_part && draft.checkpoint.gguf().is_some() {
                    let got = format!("{}: it has no first layer", draft.name());
                    let expected = "a model, or the layer of this one that guesses further tokens";
                    return Err(Error::Option { option: "draft", got, expected });
                }
                Ok(Some(draft))
            }
        }
    }

    /// Bytes that it takes as the draft model of one with such a `context`: it keeps all that it has seen.
    pub(super) fn need_as_draft(
        &self,
        backend: LlmBackendKind,
        context: usize,
        options: &LoadOptions,
    ) -> MemoryNeed {
        let context = context.min(self.config().max_context());
        self.memory_need(MemorySetting { context, ..self.memory_setting(backend, &self::options(options)) })
    }

    /// As [`Self::fitting_context`], beside `draft`.
    pub(super) fn fitting_context_beside(
        &self,
        draft: &Self,
        backend: LlmBackendKind,
        options: &LoadOptions,
        memory: Option<u64>,
    ) -> usize {
        let fitting = |context: usize| {
            let MemoryNeed { weights, kv, activations } = draft.need_as_draft(backend, context, options);
            let memory = memory
                .map(|memory| memory.saturating_sub(weights).saturating_sub(activations).saturating_sub(kv));
            let kv_memory = options.kv_memory.map(|bytes| bytes.saturating_sub(kv));
            self.fitting_context(backend, &LoadOptions { kv_memory, ..options.clone() }, memory)
        };
        // What it keeps of so many tokens leaves room for fewer.
        fitting(fitting(CHUNK))
    }

    /// Refuses a draft model whose token ids do not mean what they do here.
    pub(super) fn check_vocabulary(&self, tokenizer: Option<&Tokenizer>, draft: &Self) -> Result<()> {
        let refused = |what: String| {
            let got = format!("{}: {what}", draft.name());
            Err(Error::Option { option: "draft", got, expected: "a model with the same vocabulary" })
        };
        let (own, other) = match (tokenizer, draft.tokenizer()?) {
            (Some(own), Some(other)) => (own, other),
            // From token ids alone there is nothing more to compare.
            (None, None) if self.config().vocab_size == draft.config().vocab_size => return Ok(()),
            (None, None) => {
                let sizes = [self, draft].map(|files| files.config().vocab_size);
                return refused(format!("it has {} tokens, the model {}", sizes[1], sizes[0]));
            }
            (None, Some(_)) => return refused("it has a tokenizer, the model has none".into()),
            (Some(_), None) => return refused("it has no tokenizer".into()),
        };
        // GGUF files name what only fills their tables.
        let is_token = |text: &String| !text.starts_with("[PAD");
        let mut rows = 0;
        for id in 0..own.vocab_size().max(other.vocab_size()) as u32 {
            let texts = [own.token_text(id), other.token_text(id)].map(|text| text.filter(is_token));
            if texts[0].is_some() {
                rows = id as usize + 1;
            }
            if texts[0] != texts[1] {
                let [own, other] = texts.map(|text| text.map_or("nothing".into(), |text| quote(&text)));
                return refused(format!("its token {id} is {other}, the model's {own}"));
            }
        }
        // Rows behind the tokens are padding.
        if rows > draft.config().vocab_size {
            return refused(format!("it has {} rows for them", draft.config().vocab_size));
        }
        Ok(())
    }
}
