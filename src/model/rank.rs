//! Scores of pairs of texts: how well a document answers a query, by a head that classifies both, or by what a model would say next.

use std::sync::Arc;
use std::sync::mpsc::channel;

use serde_json::{Value as Json, json};

use super::{Model, ModelFiles};
use crate::engine::{Answer, CancelOnDrop, EmbedRequest, RequestKind, RowSink, ScoreRequest, receive};
use crate::error::{Error, Result};
use crate::forward::modules::{self, LogitScore, Made, PairForm};
use crate::forward::{Pooling, score_squash};
use crate::text::{ChatTemplate, Cut, Message, RenderOptions, Rendered, Specials};

/// What templates look for in contents that are lists of parts, by which sentence-transformers tells these templates.
const PARTS: [&str; 6] = ["content[0]", ".type", "'type'", "\"type\"", "item.type", "message.content["];

/// How a pair of texts becomes a score.
#[derive(Debug, Clone)]
pub(crate) struct Ranking {
    by: RankBy,
    form: PairForm,
}

#[derive(Debug, Clone)]
enum RankBy {
    /// A head over the hidden states of both.
    Head(Arc<Pooling>),
    /// The logits behind a prompt that holds both.
    Logits(LogitScore),
}

impl Ranking {
    /// The same, with what the model's template says of it.
    ///
    /// # Errors
    /// [`Error::Template`] for one that does not write both texts of a pair.
    pub fn with_template(mut self, template: Option<&ChatTemplate>) -> Result<Self> {
        let form = &mut self.form;
        form.by_template &= matches!(self.by, RankBy::Logits(_));
        let Some(template) = template.filter(|_| form.by_template) else {
            form.by_template = false;
            return Ok(self);
        };
        form.in_parts.get_or_insert_with(|| PARTS.iter().any(|part| template.source().contains(part)));
        let [query, document] = ["query7192", "document7192"];
        let text = render(form, template, query, document)?;
        if ![query, document].iter().all(|text_of| text.text().contains(text_of)) {
            let what = "it leaves out messages of the roles query and document, which scores of pairs are made of: \
                load the model with a template that writes them (--chat-template FILE)";
            return Err(Error::Template(what.to_owned()));
        }
        Ok(self)
    }
}

/// A pair as the chat template writes it: a message each, of roles of their own.
fn render(form: &PairForm, template: &ChatTemplate, query: &str, document: &str) -> Result<Rendered> {
    let content = |text: &str| match form.in_parts {
        Some(true) => json!([{ "type": "text", "text": text }]),
        _ => Json::from(text),
    };
    let message = |role: &str, text: &str| Message { content: content(text), ..Message::new(role, "") };
    let prompt = form.prompt.iter().map(|prompt| message("system", prompt));
    let messages: Vec<Message> =
        prompt.chain([message("query", query), message("document", document)]).collect();
    let options = RenderOptions {
        add_generation_prompt: form.generation_prompt,
        extra: form.variables.clone(),
        ..RenderOptions::default()
    };
    template.render(&messages, &options)
}

impl ModelFiles {
    /// How a pair of texts becomes a score, where the model is a cross-encoder.
    ///
    /// # Errors
    /// A weight that is missing, a module that is not known, and a function of the score that is not.
    pub(crate) fn ranking(&self) -> Result<Option<Ranking>> {
        let by = match (self.architecture.head(), self.config().labels) {
            (Some(head), Some(1)) => {
                RankBy::Head(Arc::new(head.load(&self.checkpoint, score_squash(&self.path, 1)?)?))
            }
            (Some(_), _) => return Ok(None),
            (None, _) => match self.made()? {
                Some(Made::Scores(_)) if self.config().headless => return Err(Error::no_head(&self.name())),
                Some(Made::Scores(score)) if !self.config().bidirectional => RankBy::Logits(score),
                _ => return Ok(None),
            },
        };
        let form = if crate::files::is_dir(&self.path) {
            modules::pair_form(&self.path)?
        } else {
            PairForm::default()
        };
        Ok(Some(Ranking { by, form }))
    }
}

impl ModelFiles {
    /// Whether a pair of texts gets a score by what the model would say next.
    pub fn ranks_by_logits(&self) -> bool {
        let config = self.config();
        !config.bidirectional && !config.headless && matches!(self.made(), Ok(Some(Made::Scores(_))))
    }
}

impl Model {
    /// How well `document` answers `query`, as a cross-encoder scores them: the larger, the better. What the number means is the
    /// model's own; most give one from 0 to 1.
    ///
    /// # Errors
    /// [`Error::Task`] of a model that is no cross-encoder; those of the chat template where it writes the pair, of the tokenizer, and
    /// of [`Self::embed`].
    pub fn rank(&self, query: &str, document: &str) -> Result<f32> {
        let pair = self.encode_pair(query, document, None)?;
        let (sender, answers) = channel();
        let _asked = self.start_rank(pair, move |score| drop(sender.send(score)))?;
        receive(&answers)?
    }

    /// The tokens of a query and a document, and where those of the second begin. Special tokens that are written in them are
    /// read as such where `parse` says so; where it says nothing, they are, unless a chat template writes the pair.
    ///
    /// # Errors
    /// As [`Self::rank`], before anything is computed.
    pub fn encode_pair(&self, query: &str, document: &str, parse: Option<bool>) -> Result<(Vec<u32>, usize)> {
        self.encode_pair_cut(query, document, parse, Cut::default())
    }

    /// The same of texts that are cut: where a chat template writes the pair, the document alone is.
    ///
    /// # Errors
    /// As [`Self::encode_pair`], and a cut that leaves nothing of the document, and does not do.
    pub fn encode_pair_cut(
        &self,
        query: &str,
        document: &str,
        parse: Option<bool>,
        cut: Cut,
    ) -> Result<(Vec<u32>, usize)> {
        let Ranking { form, .. } = self.ranking()?;
        // It is encoded for each document anew, however it is cut.
        self.check_length(query)?;
        if cut == Cut::default() {
            self.check_length(document)?;
        }
        if !form.by_template {
            let prompted = form.prompt.as_ref().map(|prompt| format!("{prompt}{query}"));
            let query = prompted.as_deref().unwrap_or(query);
            return self.tokenizer()?.encode_pair_cut(query, document, parse.unwrap_or(true), cut);
        }
        Ok((self.encode_by_template(form, query, document, parse, cut)?, usize::MAX))
    }

    /// The tokens of a pair as the chat template writes it.
    fn encode_by_template(
        &self,
        form: &PairForm,
        query: &str,
        document: &str,
        parse: Option<bool>,
        cut: Cut,
    ) -> Result<Vec<u32>> {
        let (template, tokenizer) = (self.template()?, self.tokenizer()?);
        let encode = |document: &str| {
            let rendered = render(form, template, query, document)?;
            match parse {
                Some(true) => tokenizer.encode_with(rendered.text(), Specials { add: false, parse: true }),
                _ => tokenizer.encode_rendered(&rendered),
            }
        };
        let count = |text: &str| {
            Ok::<_, Error>(tokenizer.encode_with(text, Specials { add: false, parse: false })?.len())
        };
        let mut document = match cut.second {
            Some(most) => tokenizer.beginning(document, most)?,
            None => document,
        };
        let Some(most) = cut.most else { return encode(document) };
        // What is left in any case takes some of them.
        let around = encode("")?.len();
        if around > most {
            return Err(Error::Prompt(format!(
                "it is cut to {most} tokens, and without its document it has {around}"
            )));
        }
        let mut kept = count(document)?.min(most - around);
        document = tokenizer.beginning(document, kept)?;
        loop {
            let tokens = encode(document)?;
            // Where texts meet, their tokens may be others.
            if tokens.len() <= most || kept == 0 {
                return Ok(tokens);
            }
            kept = kept.saturating_sub(tokens.len() - most);
            document = tokenizer.beginning(document, kept)?;
        }
    }

    /// Begins to score what [`Self::encode_pair`] gave, otherwise as [`Self::start_embed`].
    ///
    /// # Errors
    /// As [`Self::rank`].
    pub(crate) fn start_rank(
        &self,
        (tokens, second): (Vec<u32>, usize),
        take: impl FnOnce(Result<f32>) + Send + 'static,
    ) -> Result<CancelOnDrop> {
        match &self.ranking()?.by {
            RankBy::Head(pooling) => {
                let answer = Answer::new(move |vector: Result<Vec<f32>>| {
                    take(vector.map(|vector| vector.first().copied().unwrap_or_default()));
                });
                let pooling = Arc::clone(pooling);
                self.submit(tokens, RequestKind::Embed(EmbedRequest { pooling, second, answer }))
            }
            RankBy::Logits(score) => {
                self.check_tokens(&tokens)?;
                let (score, rows) = (*score, tokens.len() - 1..tokens.len());
                let mut take = Some(take);
                let sink = RowSink::new(move |row| {
                    if let Some(take) = take.take() {
                        take(row.and_then(|row| score.of(row)));
                    }
                    false
                });
                self.submit(tokens, RequestKind::Score(ScoreRequest { rows, sink }))
            }
        }
    }

    /// Refuses a model that is no cross-encoder.
    #[cfg(feature = "server")]
    pub(crate) fn check_ranks(&self) -> Result<()> {
        self.ranking().map(drop)
    }

    /// What makes a score of a pair.
    ///
    /// # Errors
    /// [`Error::Task`] of a model that is no cross-encoder, or one whose files say how in a way that is not known.
    fn ranking(&self) -> Result<&Ranking> {
        let ranking = self.ranking.as_ref().map_err(|what| self.cannot(what))?;
        ranking.as_deref().ok_or_else(|| {
            self.cannot(match self.info.config.labels {
                Some(_) => "it gives several numbers for a pair of texts, and no one score of them",
                None => "it is no cross-encoder, and has no score for a pair of texts",
            })
        })
    }
}
