//! llama.cpp's own API: `/completion`, `/infill` and `/props`, which editors and older tools ask for.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::Uri;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::answers::{Answers, Finish, Job, Scored, Timings, Update, Usage};
use super::app::App;
use super::completions::{prompts, text_part};
use super::failure::{Dialect, Failure, json_body};
use super::json::{Fields, shown};
use super::openai::scored_json;
use super::params::{self, MAX_TOKENS};
use super::request::Reply;
use super::served::Served;
use super::sse::{self, Encoder, Events};
use super::until::Until;
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

/// Samplers that may be named and are here, or are off.
const SAMPLERS: [&str; 9] =
    ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"];
/// Most texts of one request, members that are told by their paths, and bytes of such a path.
const MAX_N: u64 = 128;
const MEMBERS: (usize, usize) = (64, 128);

/// What both routes take.
struct Asked {
    options: Options,
    until: Until,
    grammar: Option<Grammar>,
    stream: bool,
    form: Form,
}

/// How an answer is told.
struct Form {
    app: Arc<Served>,
    /// Whether no token is wanted: the prompt is read for those that begin like it.
    is_nothing: bool,
    /// How many texts were asked for.
    n: usize,
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
        let n = fields.whole("n_cmpl", 1, MAX_N)?.unwrap_or(1) as usize;
        fields.only("post_sampling_probs", &[false.into()])?;
        let grammar = fields.take("json_schema").map(Grammar::JsonSchema);
        biases(fields)?;
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
        // Below 0 they are none.
        let mut positive = |name: &str| {
            let given = params::signed(fields, name)?;
            Ok::<_, Failure>(given.and_then(|given| u64::try_from(given).ok()).filter(|&given| given > 0))
        };
        let time = positive("t_max_predict_ms")?.map(Duration::from_millis);
        let indent = positive("n_indent")?.map_or(0, |indent| usize::try_from(indent).unwrap_or(usize::MAX));
        let until = Until { time, indent };
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
        let settings = settings(app, &options, most);
        let form = Form {
            app: Arc::clone(app),
            is_nothing,
            n,
            tokens,
            probabilities: probabilities > 0,
            members,
            settings,
        };
        Ok(Self { options, until, grammar, stream, form })
    }
}

/// Biases as pairs become those of an object; `false` forbids a token.
fn biases(fields: &mut Fields) -> Result<(), Failure> {
    let number = |bias: &Value| if *bias == json!(false) { json!(-100) } else { bias.clone() };
    let is_pairs = match fields.peek("logit_bias") {
        Some(Value::Array(pairs)) => {
            let is_pair =
                |pair: &Value| matches!(pair.as_array().map(Vec::as_slice), Some([Value::Number(_), _]));
            if !pairs.iter().all(is_pair) {
                return Err(fields.wrong("logit_bias", "expected pairs of a token id and a number"));
            }
            true
        }
        _ => false,
    };
    fields.change("logit_bias", |given| {
        if is_pairs {
            let pairs = given.as_array().into_iter().flatten();
            *given = Value::Object(pairs.map(|pair| (pair[0].to_string(), number(&pair[1]))).collect());
        }
        given.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(|bias| *bias = number(bias));
    });
    Ok(())
}

/// `samplers`: those that are not named are left out; their order is always that of this server.
fn samplers(fields: &mut Fields, sampling: &mut SamplingOptions) -> Result<(), Failure> {
    let Some(list) = fields.list("samplers")? else { return Ok(()) };
    let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    if names.len() < list.len() {
        return Err(fields.wrong("samplers", "expected names"));
    }
    let has = |name: &str| names.contains(&name);
    if names.iter().any(|name| !SAMPLERS.contains(name)) {
        fields.note("samplers");
    }
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
    let (most, bytes) = MEMBERS;
    let given = fields.list("response_fields")?.unwrap_or_default();
    let mut members: Vec<String> = Vec::new();
    for path in given {
        match path {
            Value::String(path) if members.contains(&path) => {}
            Value::String(path) if path.len() <= bytes && members.len() < most => members.push(path),
            Value::String(_) => {
                let what = format_args!("expected at most {most} paths of {bytes} bytes");
                return Err(fields.wrong("response_fields", what));
            }
            other => {
                let what = format_args!("expected paths of members, got {}", shown(&other));
                return Err(fields.wrong("response_fields", what));
            }
        }
    }
    Ok(members)
}

/// What a text was sampled with, as it is told.
fn settings(app: &Served, options: &Options, most: Option<i64>) -> Value {
    let of = &options.sampling;
    json!({
        "n_ctx": app.model.info().context,
        "n_predict": most.unwrap_or(-1),
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
    let prompt = prompts(&mut fields, "prompt", 1)?.pop();
    let prompt = fields.required("prompt", prompt)?;
    fields.finish()?;
    answer(&app, asked, move |model| prompt.encode_before(model, true, None)).await
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
    prompt: impl FnOnce(&Model) -> crate::error::Result<(Vec<u32>, Vec<u32>)> + Send + 'static,
) -> Reply {
    let Asked { options, until, grammar, stream, form } = asked;
    let places = app.places(form.n)?;
    let (tokens, ends, constraint) = app
        .apart(move |model| {
            let constraint = grammar.map(|grammar| model.constraint(&grammar)).transpose()?;
            let (tokens, ends) = prompt(model)?;
            Ok((tokens, ends, constraint))
        })
        .await?;
    let options = Options { constraint, stop_tokens: ends, ..options };
    let job = Job { until, ..Job::plain(vec![tokens], form.n, options) };
    let answers = Answers::start(app, &job, places)?;
    let prompt = answers.usage().prompt;
    if stream {
        let told = vec![Told::default(); form.n];
        return Ok(sse::stream(answers, Chunks { form, prompt, told }));
    }
    let (texts, _) = answers.collect().await?;
    let whole = texts.into_iter().enumerate().map(|(index, text)| {
        let told = Told { generated: 0, has_new_line: text.text.contains('\n') };
        form.whole(
            index,
            prompt,
            &text.text,
            &text.tokens,
            &text.finish,
            text.timings.unwrap_or_default(),
            told,
        )
    });
    let mut whole: Vec<Value> = whole.collect();
    // Of several texts it is a list.
    Ok(json_body(&if form.n == 1 { whole.pop().unwrap_or_default() } else { whole.into() }))
}

impl Form {
    /// An answer, or the end of its stream.
    #[expect(clippy::too_many_arguments, reason = "the members of one object")]
    fn whole(
        &self,
        index: usize,
        prompt: usize,
        text: &str,
        scored: &[Scored],
        finish: &Finish,
        of: Timings,
        told: Told,
    ) -> Value {
        let (stop, word) = match finish {
            Finish::Stop(Some(word)) => ("word", word.as_str()),
            Finish::Stop(None) | Finish::Calls => ("eos", ""),
            Finish::Length => ("limit", ""),
        };
        let (text, scored) = if self.is_nothing { ("", &[][..]) } else { (text, scored) };
        let generated = if self.is_nothing { 0 } else { of.generated() };
        let context = self.app.model.info().context;
        let mut timings = of.json();
        if self.is_nothing {
            timings["predicted_n"] = 0.into();
        }
        let mut whole = json!({
            "index": index,
            "content": text,
            "tokens": self.ids(scored),
            "id_slot": 0,
            "stop": true,
            "model": self.app.name,
            "tokens_predicted": generated,
            "tokens_evaluated": prompt,
            "generation_settings": self.settings,
            "has_new_line": told.has_new_line && !self.is_nothing,
            "truncated": *finish == Finish::Length && prompt + generated >= context,
            "stop_type": stop,
            "stopping_word": word,
            "tokens_cached": prompt + generated,
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

/// What a stream has told of a text.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Tokens, whether they brought text or not.
    generated: usize,
    has_new_line: bool,
}

/// A stream: `content` as it comes, and then all that is told of it.
struct Chunks {
    form: Form,
    /// Tokens of the prompt.
    prompt: usize,
    /// Of each text.
    told: Vec<Told>,
}

impl Encoder for Chunks {
    fn begin(&mut self, _: &mut Events) {}

    fn update(&mut self, update: Update, out: &mut Events) {
        let Update { choice, parts, token, finish, timings } = update;
        let text: String = parts.into_iter().filter_map(text_part).collect();
        let scored = token.as_slice();
        let told = &mut self.told[choice];
        told.generated += usize::from(finish.is_none());
        told.has_new_line |= text.contains('\n');
        if !self.form.is_nothing && (!text.is_empty() || !scored.is_empty()) {
            let mut chunk = json!({
                "index": choice,
                "content": text,
                "tokens": self.form.ids(scored),
                "stop": false,
                "id_slot": 0,
                "tokens_predicted": told.generated,
                "tokens_evaluated": self.prompt,
            });
            self.form.add_probabilities(&mut chunk, scored);
            out.data(&chunk);
        }
        if let Some(finish) = finish {
            let (of, told) = (timings.unwrap_or_default(), *told);
            out.data(&self.form.whole(choice, self.prompt, "", &[], &finish, of, told));
        }
    }

    fn end(&mut self, _: Usage, _: &mut Events) {}

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
