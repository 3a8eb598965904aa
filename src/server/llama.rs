//! llama.cpp's own API: `/completion`, `/infill` and `/props`, which editors and older tools ask for.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::Uri;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::answers::{AnswerPart, Answers, Finish, Job, Scored, Update, Usage};
use super::app::App;
use super::completions::{Prompt, prompts};
use super::failure::{Dialect, Failure, json_body};
use super::json::{Fields, shown};
use super::openai::scored_json;
use super::params::{self, MAX_TOKENS};
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use super::until::Until;
use crate::error::Result as Made;
use crate::generate::Options;
use crate::model::Model;
use crate::sample::{Grammar, SamplingOptions};
use crate::text::Infill;

/// What changes no answer here: where sequences are kept, how work is cut up, and what more is told of it.
const IGNORED: [&str; 20] = [
    "cache_prompt",
    "id_slot",
    "slot_id",
    "n_keep",
    "n_discard",
    "n_cache_reuse",
    "min_keep",
    "t_max_prompt_ms",
    "timings_per_token",
    "return_progress",
    "penalize_nl",
    // What these say counts with those of `OFF` alone.
    "dynatemp_exponent",
    "mirostat_tau",
    "mirostat_eta",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "xtc_threshold",
    "adaptive_decay",
];

/// Samplers that are not here, and the numbers that leave them out.
const OFF: [(&str, &[i64]); 8] = [
    ("dynatemp_range", &[0]),
    ("typical_p", &[1]),
    ("tfs_z", &[1]),
    ("top_n_sigma", &[-1, 0]),
    ("mirostat", &[0]),
    ("dry_multiplier", &[0]),
    ("xtc_probability", &[0]),
    ("adaptive_target", &[-1]),
];

/// What both routes take.
struct Asked {
    options: Options,
    grammar: Option<Grammar>,
    stream: bool,
    form: Form,
}

/// How an answer is told.
struct Form {
    app: Arc<Served>,
    /// Whether no token is wanted: the prompt is read for those that begin like it.
    is_nothing: bool,
    /// Where the text was to end.
    until: Until,
    /// Whether the tokens are told, and their log-probabilities.
    tokens: bool,
    probabilities: bool,
    /// The members that are told, by their paths; all of them where it is empty.
    members: Vec<String>,
    /// What it was sampled with.
    settings: Value,
}

impl Asked {
    fn take(app: &Arc<Served>, fields: &mut Fields) -> Result<Self, Failure> {
        fields.ignore(&IGNORED);
        for (name, off) in OFF {
            let off: Vec<Value> = off.iter().flat_map(|&x| [x.into(), (x as f64).into()]).collect();
            fields.only(name, &off)?;
        }
        // llama.cpp's own language of grammars is not spoken here.
        fields.only("grammar", &["".into()])?;
        for name in ["lora", "image_data"] {
            fields.only(name, &[json!([])])?;
        }
        fields.only("n_cmpl", &[1.into()])?;
        fields.only("post_sampling_probs", &[false.into()])?;
        let grammar = fields.take("json_schema").map(Grammar::JsonSchema);
        fields.change("logit_bias", biases);
        let mut sampling = params::sampling(app, fields)?;
        params::last_n(fields, &mut sampling)?;
        samplers(fields, &mut sampling)?;
        let probabilities = fields.whole("n_probs", 0, 20)?.unwrap_or(0) as usize;
        let tokens = fields.flag("return_tokens")?.unwrap_or(false);
        sampling.logprobs = (probabilities > 0 || tokens).then_some(probabilities);

        let other_name = params::signed(fields, "max_tokens")?;
        let most = params::signed(fields, "n_predict")?.or(other_name);
        let is_nothing = most == Some(0);
        // One token is the least that an engine makes; it is not told.
        let max_tokens = most.filter(|&most| most >= 0).map(|most| most.clamp(1, MAX_TOKENS as i64) as usize);
        let time = fields.whole("t_max_predict_ms", 0, MAX_TOKENS)?.filter(|&ms| ms > 0);
        let indent = fields.whole("n_indent", 0, 1 << 20)?.unwrap_or(0) as usize;
        let until = Until { time: time.map(Duration::from_millis), indent };
        let options = Options {
            max_tokens,
            stop: params::stops(fields, "stop")?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            cache_salt: fields.space()?,
            sampling,
            ..Options::default()
        };
        let stream = fields.flag("stream")?.unwrap_or(false);
        let members = members(fields)?;
        let settings = settings(app, &options);
        let form = Form {
            app: Arc::clone(app),
            is_nothing,
            until,
            tokens,
            probabilities: probabilities > 0,
            members,
            settings,
        };
        Ok(Self { options, grammar, stream, form })
    }
}

/// Biases as pairs become those of an object; `false` forbids a token.
fn biases(given: &mut Value) {
    let Some(pairs) = given.as_array() else { return };
    let pair = |pair: &Value| match pair.as_array()?.as_slice() {
        [Value::Number(token), Value::Bool(false)] => Some((token.to_string(), json!(-100))),
        [Value::Number(token), bias @ Value::Number(_)] => Some((token.to_string(), bias.clone())),
        _ => None,
    };
    if let Some(all) = pairs.iter().map(pair).collect::<Option<Map<String, Value>>>() {
        *given = Value::Object(all);
    }
}

/// `samplers`: those that are not named are left out; their order is always that of this server.
fn samplers(fields: &mut Fields, sampling: &mut SamplingOptions) -> Result<(), Failure> {
    let Some(list) = fields.list("samplers")? else { return Ok(()) };
    let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    if names.len() < list.len() {
        return Err(fields.wrong("samplers", "expected names"));
    }
    let has = |name: &str| names.contains(&name);
    let free = SamplingOptions::default();
    if !has("temperature") {
        sampling.temperature = 1.0;
    }
    if !has("top_k") {
        sampling.top_k = 0;
    }
    if !has("top_p") {
        sampling.top_p = 1.0;
    }
    if has("infill") {
        // It takes what has a fifth of the probability at least.
        sampling.min_p = sampling.min_p.max(0.2);
        fields.note("samplers");
    } else if !has("min_p") {
        sampling.min_p = 0.0;
    }
    if !has("penalties") {
        sampling.repeat_penalty = free.repeat_penalty;
        sampling.presence_penalty = free.presence_penalty;
        sampling.frequency_penalty = free.frequency_penalty;
    }
    Ok(())
}

/// `response_fields`: the members of the answer that are wanted, by their paths.
fn members(fields: &mut Fields) -> Result<Vec<String>, Failure> {
    let mut members = Vec::new();
    for path in fields.list("response_fields")?.unwrap_or_default() {
        match path {
            Value::String(path) => members.push(path),
            other => {
                let what = format_args!("expected paths of members, got {}", shown(&other));
                return Err(fields.wrong("response_fields", what));
            }
        }
    }
    Ok(members)
}

/// What a text was sampled with, as it is told.
fn settings(app: &Served, options: &Options) -> Value {
    let of = &options.sampling;
    json!({
        "n_ctx": app.model.info().context,
        "n_predict": options.max_tokens.map_or(-1, |most| most as i64),
        "seed": of.seed,
        "temperature": of.temperature,
        "top_k": of.top_k,
        "top_p": of.top_p,
        "min_p": of.min_p,
        "repeat_penalty": of.repeat_penalty,
        "presence_penalty": of.presence_penalty,
        "frequency_penalty": of.frequency_penalty,
        "stop": options.stop,
    })
}

/// `POST /completion`
pub(crate) async fn completion(app: Arc<Served>, mut fields: Fields) -> Reply {
    let asked = Asked::take(&app, &mut fields)?;
    let prompts = prompts(&mut fields, "prompt", 1)?;
    fields.finish()?;
    answer(&app, asked, move |model| {
        let mut tokens = prompts.into_iter().map(|prompt| prompt.encode(model, true));
        Ok((tokens.next().unwrap_or_else(|| Prompt::Tokens(Vec::new()).encode(model, true))?, Vec::new()))
    })
    .await
}

/// `POST /infill`: what stands between `input_prefix`, behind which `prompt` goes on, and `input_suffix`. `input_extra` are parts
/// of other files.
pub(crate) async fn infill(app: Arc<Served>, mut fields: Fields) -> Reply {
    let asked = Asked::take(&app, &mut fields)?;
    let mut text = |name: &str| {
        let text = fields.string(name)?;
        fields.required(name, text)
    };
    let (prefix, suffix) = (text("input_prefix")?, text("input_suffix")?);
    let begun = fields.string("prompt")?.unwrap_or_default();
    let mut others = Vec::new();
    for (i, other) in fields.list("input_extra")?.unwrap_or_default().into_iter().enumerate() {
        let mut other = fields.item("input_extra", i, other)?;
        let text = other.string("text")?;
        let text = other.required("text", text)?;
        others.push((other.string("filename")?.unwrap_or_else(|| "file".to_owned()), text));
        other.ignore(&["time"]);
        other.finish()?;
    }
    fields.finish()?;
    let infill = Infill { prefix: prefix + &begun, suffix, others };
    let wanted = asked.options.max_tokens.unwrap_or(usize::MAX);
    answer(&app, asked, move |model| {
        // What is asked for has room, up to a half.
        let context = model.info().context;
        model.infill_prompt(&infill, Some(context - wanted.min(context / 2)))
    })
    .await
}

/// Answers behind the tokens that `prompt` makes; it gives those that end an answer, too.
async fn answer(
    app: &Arc<Served>,
    asked: Asked,
    prompt: impl FnOnce(&Model) -> Made<(Vec<u32>, Vec<u32>)> + Send + 'static,
) -> Reply {
    let Asked { options, grammar, stream, form } = asked;
    let places = app.places(1)?;
    let (tokens, ends, constraint) = app
        .apart(move |model| {
            let constraint = grammar.map(|grammar| model.constraint(&grammar)).transpose()?;
            let (tokens, ends) = prompt(model)?;
            Ok((tokens, ends, constraint))
        })
        .await?;
    let options = Options { constraint, stop_tokens: ends, ..options };
    let job = Job { prompts: vec![tokens], n: 1, options, parser: None, until: form.until };
    let answers = Answers::start(app, &job, places)?;
    if stream {
        let prompt = answers.usage().prompt;
        return Ok(sse::stream(answers, Chunks { form, prompt, generated: 0, end: None }));
    }
    let (texts, usage) = answers.collect().await?;
    let text = texts.into_iter().next();
    let (text, scored, finish) = text
        .map_or((String::new(), Vec::new(), Finish::Length), |text| (text.text, text.tokens, text.finish));
    let text = form.until.kept(&text);
    Ok(json_body(&form.whole(text, &scored, &finish, usage)))
}

impl Form {
    /// The answer, or the end of a stream.
    fn whole(&self, text: &str, scored: &[Scored], finish: &Finish, usage: Usage) -> Value {
        let (stop, word) = match finish {
            Finish::Stop(Some(word)) => ("word", word.as_str()),
            Finish::Stop(None) | Finish::Calls => ("eos", ""),
            Finish::Length => ("limit", ""),
        };
        let (text, scored) = if self.is_nothing { ("", &[][..]) } else { (text, scored) };
        let generated = if self.is_nothing { 0 } else { usage.generated };
        let mut timings = usage.timings_json();
        if self.is_nothing {
            timings["predicted_n"] = 0.into();
        }
        let mut whole = json!({
            "index": 0,
            "content": text,
            "tokens": self.ids(scored),
            "id_slot": 0,
            "stop": true,
            "model": self.app.name,
            "tokens_predicted": generated,
            "tokens_evaluated": usage.prompt,
            "generation_settings": self.settings,
            "has_new_line": text.contains('\n'),
            "truncated": false,
            "stop_type": stop,
            "stopping_word": word,
            "tokens_cached": usage.prompt + generated,
            "timings": timings,
        });
        self.add_probabilities(&mut whole, scored);
        if self.members.is_empty() {
            return whole;
        }
        let member = |path: &String| Some((path.clone(), whole.pointer(&format!("/{path}"))?.clone()));
        Value::Object(self.members.iter().filter_map(member).collect())
    }

    fn ids(&self, scored: &[Scored]) -> Vec<u32> {
        scored.iter().filter(|_| self.tokens).map(|one| one.token).collect()
    }

    fn add_probabilities(&self, to: &mut Value, scored: &[Scored]) {
        if !self.probabilities || scored.is_empty() {
            return;
        }
        let one = |scored: &Scored| {
            let mut entry = scored_json(&self.app, scored);
            entry["id"] = scored.token.into();
            for (top, (id, _)) in entry["top_logprobs"].as_array_mut().into_iter().flatten().zip(&scored.top)
            {
                top["id"] = (*id).into();
            }
            entry
        };
        to["completion_probabilities"] = scored.iter().map(one).collect();
    }
}

/// A stream: `content` as it comes, and then all that is told of it.
struct Chunks {
    form: Form,
    /// Tokens of the prompt, and those so far.
    prompt: usize,
    generated: usize,
    end: Option<Finish>,
}

impl Encoder for Chunks {
    fn begin(&mut self, _: &mut Events) {}

    fn update(&mut self, update: Update, out: &mut Events) {
        self.end = update.finish.or(self.end.take());
        let texts = update.parts.into_iter().filter_map(|part| match part {
            AnswerPart::Text(text) | AnswerPart::Broken(text) => Some(text),
            AnswerPart::Reasoning(_) | AnswerPart::Call { .. } | AnswerPart::Arguments { .. } => None,
        });
        let text: String = texts.collect();
        self.generated += 1;
        let scored = update.token.as_slice();
        if self.form.is_nothing || text.is_empty() && scored.is_empty() {
            return;
        }
        let mut chunk = json!({
            "index": 0,
            "content": text,
            "tokens": self.form.ids(scored),
            "stop": false,
            "id_slot": 0,
            "tokens_predicted": self.generated,
            "tokens_evaluated": self.prompt,
        });
        self.form.add_probabilities(&mut chunk, scored);
        out.data(&chunk);
    }

    fn end(&mut self, usage: Usage, out: &mut Events) {
        let finish = self.end.take().unwrap_or(Finish::Length);
        out.data(&self.form.whole("", &[], &finish, usage));
    }

    fn fail(&mut self, failure: &Failure, out: &mut Events) {
        out.data(&failure.json(Dialect::OpenAi));
    }
}

/// The model that a query names.
fn named(uri: &Uri) -> Option<String> {
    let mut members = uri.query()?.split('&');
    let name = members.find_map(|member| member.strip_prefix("model="))?;
    Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
}

/// `GET /props`, or `/props?model=NAME`: what a client may want to know before it asks.
pub(crate) async fn props(State(app): State<Arc<App>>, uri: Uri) -> Reply {
    let called = named(&uri);
    app.look_for(called.as_deref(), Dialect::OpenAi).await;
    let name = app.find(called.as_deref(), Dialect::OpenAi)?;
    let status = app.models.list().into_iter().find(|status| status.name == name);
    let status = status.ok_or_else(|| Failure::bad("the model is gone"))?;
    let described = app.describe(&status).await?;
    let mut settings = described.defaults();
    settings["n_ctx"] = described.context.into();
    Ok(json_body(&json!({
        "default_generation_settings": { "n_ctx": described.context, "params": settings },
        "total_slots": app.options.parallel,
        "model_alias": status.name,
        "model_path": status.name,
        "chat_template": described.template,
        "modalities": { "vision": false, "audio": false },
        "is_sleeping": status.model.is_none(),
        "build_info": format!("backstop {}", env!("CARGO_PKG_VERSION")),
    })))
}
