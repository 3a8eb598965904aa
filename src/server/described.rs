//! What a model is, for those who choose one: of a loaded model, or from its files' headers.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Result;
use crate::model::{Model, ModelFiles};
use crate::sample::SamplingOptions;
use crate::text::ChatTemplate;

/// What a model is.
#[derive(Debug)]
pub(crate) struct Described {
    pub config: Arc<Config>,
    pub parameters: u64,
    pub weight_type: String,
    pub gguf: bool,
    /// Tokens that a sequence may hold.
    pub context: usize,
    /// What it can do, by Ollama's names.
    pub capabilities: Vec<&'static str>,
    /// Its chat template; empty where it has none.
    pub template: String,
    /// What a request leaves open.
    pub sampling: SamplingOptions,
}

impl Described {
    /// A loaded model.
    pub fn of(model: &Model) -> Self {
        let info = model.info();
        let template = model.template().ok();
        Self {
            config: Arc::clone(&info.config),
            parameters: info.parameters,
            weight_type: info.weight_type.clone(),
            gguf: info.gguf,
            context: info.context,
            capabilities: capabilities(
                model.check_generates().is_ok(),
                model.tokenizer().is_ok_and(|tokenizer| tokenizer.infill_marks().is_some()),
                template,
                model.pooling().is_ok_and(|pooling| pooling.is_trained()),
            ),
            template: template.map_or_else(String::new, |template| template.source_for(false).to_owned()),
            sampling: model.default_sampling(),
        }
    }

    /// A model that is not loaded and may have `most` tokens of context, where that is said; else it is what the model was trained for.
    ///
    /// # Errors
    /// A template that does not parse.
    pub fn of_files(files: &ModelFiles, most: Option<usize>) -> Result<Self> {
        let config = files.config();
        let template = files.template(None)?;
        let generates = !config.bidirectional && !config.headless;
        let embeds = files.pooling().is_ok_and(|pooling| pooling.is_trained());
        Ok(Self {
            config: Arc::new(config.clone()),
            parameters: files.parameters(),
            weight_type: files.weight_type(),
            gguf: files.checkpoint.gguf().is_some(),
            context: most.unwrap_or(usize::MAX).min(config.max_context()),
            // Whether it fills in its vocabulary says, which is not read before it is loaded.
            capabilities: capabilities(generates, false, template.as_ref().filter(|_| generates), embeds),
            template: template.map_or_else(String::new, |template| template.source_for(false).to_owned()),
            sampling: files.generation.sampling(),
        })
    }

    /// What a request leaves open.
    pub fn defaults(&self) -> Value {
        let of = &self.sampling;
        // As it was written: 0.9, and not the digits that an f32 has beyond.
        let plain = |x: f32| x.to_string().parse::<f64>().unwrap_or_default();
        json!({
            "temperature": plain(of.temperature),
            "top_k": of.top_k,
            "top_p": plain(of.top_p),
            "min_p": plain(of.min_p),
            "repeat_penalty": plain(of.repeat_penalty),
        })
    }
}

fn capabilities(
    generates: bool,
    fills_in: bool,
    template: Option<&ChatTemplate>,
    embeds: bool,
) -> Vec<&'static str> {
    let mut out = Vec::new();
    out.extend(generates.then_some("completion"));
    out.extend((generates && fills_in).then_some("insert"));
    if let Some(template) = template {
        let format = template.reply_format(true);
        out.extend(format.tools.as_ref().map(|_| "tools"));
        out.extend(format.reasoning.as_ref().map(|_| "thinking"));
    }
    out.extend(embeds.then_some("embedding"));
    out
}
