//! Constraints on sequences of the engine, with the built-in model.

use backstop::backend::select::BackendRequest;
use backstop::sample::{Grammar, SamplingOptions};
use backstop::{Drafts, Error, FinishReason, Generation, LoadOptions, Model, ModelFiles, Options, Piece};
use serde_json::{Value, json};

use crate::validator::check;

fn options(model: &Model, grammar: &Grammar) -> Options {
    let sampling = SamplingOptions { temperature: 1.0, seed: 3, ..Default::default() };
    Options { constraint: Some(model.constraint(grammar).unwrap()), sampling, ..Default::default() }
}

/// The built-in model on each backend that there is.
fn models() -> Vec<Model> {
    let load = |backend| {
        Model::load_with(ModelFiles::builtin().unwrap(), LoadOptions { backend, ..LoadOptions::default() })
    };
    let mut models = vec![load(BackendRequest::Cpu).unwrap()];
    match load(BackendRequest::Mlx) {
        Ok(model) => models.push(model),
        Err(error) => println!("skipped on MLX: {error}"),
    }
    models
}

/// The text, why it ended, and whether it conforms.
fn end(mut generation: Generation) -> backstop::Result<(String, FinishReason, Option<bool>)> {
    let (mut text, mut finish) = (String::new(), None);
    for piece in &mut generation {
        let Piece { text: more, finish: ended, .. } = piece?;
        text += &more;
        finish = finish.or(ended);
    }
    Ok((text, finish.unwrap(), generation.conforms()))
}

#[test]
fn texts_conform_beside_each_other_and_with_every_sampler() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "tags": { "type": "array", "items": { "enum": ["red", "größe", "日本"] }, "maxItems": 3 },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    });
    let grammar = Grammar::JsonSchema(schema.clone());
    let conforms = |generation| {
        let (text, finish, conforms) = end(generation).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        check(&schema, &value).unwrap();
        assert_eq!((finish, conforms), (FinishReason::Stop, Some(true)));
    };
    let samplers = [
        SamplingOptions::default(),
        SamplingOptions { temperature: 1.0, ..Default::default() },
        SamplingOptions { temperature: 5.0, top_k: 3, ..Default::default() },
        SamplingOptions { temperature: 2.0, top_p: 0.5, min_p: 0.1, ..Default::default() },
        SamplingOptions {
            repeat_penalty: 2.0,
            presence_penalty: 2.0,
            frequency_penalty: 2.0,
            ..Default::default()
        },
    ];
    let plain = Options { max_tokens: Some(40), ..Default::default() };
    for (model, reproducible) in models().into_iter().zip([true, false]) {
        let alone = model.generate("Once upon a time", &plain).unwrap().text().unwrap();
        let running: Vec<Generation> = (samplers.iter().cycle().take(20).enumerate())
            .map(|(i, sampling)| {
                let sampling = SamplingOptions { seed: i as u64, ..sampling.clone() };
                model.generate("The child is ", &Options { sampling, ..options(&model, &grammar) }).unwrap()
            })
            .collect();
        let free: Vec<Generation> =
            (0..4).map(|_| model.generate("Once upon a time", &plain).unwrap()).collect();
        running.into_iter().for_each(conforms);
        for generation in free {
            let (text, _, conforms) = end(generation).unwrap();
            assert!(conforms.is_none() && (!reproducible || text == alone), "{text}");
        }
        // Alone and greedy: on MLX the next step is then started ahead, if nothing forbids it.
        let greedy = Options { sampling: SamplingOptions::default(), ..options(&model, &grammar) };
        conforms(model.generate("The child is ", &greedy).unwrap());
    }
}

#[test]
fn equal_seeds_draw_equal_texts_whatever_runs_beside() {
    let model = Model::builtin().unwrap();
    let options = options(&model, &Grammar::Regex("([a-z]{2,9} ){5}end".into()));
    let alone = model.generate("Once", &options).unwrap().text().unwrap();
    let several: Vec<Generation> = (0..6).map(|_| model.generate("Once", &options).unwrap()).collect();
    for generation in several {
        assert_eq!(generation.text().unwrap(), alone);
    }
    let other = Options { sampling: SamplingOptions { seed: 4, ..options.sampling.clone() }, ..options };
    assert_ne!(model.generate("Once", &other).unwrap().text().unwrap(), alone);
}

#[test]
fn a_text_ends_where_nothing_can_follow() {
    let model = Model::builtin().unwrap();
    for (regex, ends) in [("[0-9]{4}", true), ("(é|日本|😀){3}", true), ("yes|no", true), ("[a-z]*", false)]
    {
        for ignore_eos in [false, true] {
            let options = Options {
                ignore_eos,
                max_tokens: Some(60),
                ..options(&model, &Grammar::Regex(regex.into()))
            };
            let (text, finish, conforms) = end(model.generate("He said ", &options).unwrap()).unwrap();
            assert!(!text.contains('\u{FFFD}'), "{text}");
            assert_eq!(conforms, Some(true), "{regex}: {text}");
            assert!(finish == FinishReason::Stop || !ends, "{regex}: {text}");
            match regex {
                "[0-9]{4}" => assert!(text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit())),
                "yes|no" => assert!(text == "yes" || text == "no"),
                "[a-z]*" => assert!(text.bytes().all(|b| b.is_ascii_lowercase())),
                _ => assert_eq!(text.replace("日本", "é").chars().count(), 3),
            }
        }
    }
    let lark = Grammar::Lark("start: \"a\" b+\nb: /[xy]/ \";\"".into());
    let text = end(model.generate("x", &Options { max_tokens: Some(9), ..options(&model, &lark) }).unwrap())
        .unwrap()
        .0;
    assert!(text.starts_with('a') && text[1..].split_terminator(';').all(|b| b == "x" || b == "y"), "{text}");
}

#[test]
fn a_text_that_is_cut_does_not_conform() {
    let model = Model::builtin().unwrap();
    let grammar =
        Grammar::JsonSchema(json!({ "type": "array", "items": { "const": "abc" }, "minItems": 50 }));
    let whole = options(&model, &grammar);
    let cut = Options { max_tokens: Some(20), ..whole.clone() };
    let (text, finish, conforms) = end(model.generate("x", &cut).unwrap()).unwrap();
    assert_eq!((finish, conforms), (FinishReason::Length, Some(false)));
    assert!(serde_json::from_str::<Value>(&text).is_err());
    let stop = Options { stop: vec!["c\"".into()], ..whole.clone() };
    let (text, finish, conforms) = end(model.generate("x", &stop).unwrap()).unwrap();
    assert_eq!((finish, conforms), (FinishReason::Stop, Some(false)));
    assert!(text.ends_with("ab") && !text.contains('c'));
    let quote = model.tokenizer().unwrap().encode("c").unwrap().pop().unwrap();
    let stopped = Options { stop_tokens: vec![quote], max_tokens: Some(20), ..whole.clone() };
    assert_eq!(end(model.generate("x", &stopped).unwrap()).unwrap().2, Some(false));
    let generation = model.generate("x", &whole).unwrap();
    generation.cancel();
    assert_eq!(end(generation).unwrap().2, Some(false));
}

#[test]
fn min_tokens_puts_off_the_end() {
    let model = Model::builtin().unwrap();
    let eos = model.eos();
    // A bias makes the model end at once.
    let sampling =
        SamplingOptions { logit_bias: eos.iter().map(|&id| (id, 100.0)).collect(), ..Default::default() };
    let count = |min_tokens| {
        let options = Options { min_tokens, sampling: sampling.clone(), ..Default::default() };
        let mut generation = model.generate("Once", &options).unwrap();
        (&mut generation).for_each(|piece| assert!(piece.is_ok()));
        generation.tokens().len()
    };
    assert_eq!([count(0), count(1), count(7)], [1, 2, 8]);
    let refused = |options: Options| match model.generate("Once", &options) {
        Err(Error::Option { option, .. }) => assert_eq!(option, "min_tokens"),
        other => panic!("{other:?}"),
    };
    refused(Options { min_tokens: 5, max_tokens: Some(4), ..Default::default() });
    refused(Options { min_tokens: 1, ..options(&model, &Grammar::Regex("a".into())) });
}

#[test]
fn logprobs_come_where_they_are_asked_for() {
    let model = Model::builtin().unwrap();
    let asked = Options {
        max_tokens: Some(5),
        sampling: SamplingOptions { logprobs: Some(3), ..Default::default() },
        ..Default::default()
    };
    let mut generation = model.generate("Once upon", &asked).unwrap();
    let pieces: Vec<Piece> = (&mut generation).map(Result::unwrap).collect();
    let prompt = generation.prompt().to_vec();
    let all = [prompt.clone(), generation.tokens().to_vec()].concat();
    let logits = model.logits(&all).unwrap();
    for (i, piece) in pieces.iter().filter(|piece| piece.token.is_some()).enumerate() {
        let logprobs = piece.logprobs.as_ref().unwrap();
        let row = &logits[prompt.len() + i - 1];
        let total = row.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let exact = f64::from(row[piece.token.unwrap() as usize]) - total;
        assert!((f64::from(logprobs.token) - exact).abs() < 1e-4);
        assert_eq!(logprobs.top[0], (piece.token.unwrap(), logprobs.token), "greedy takes the most likely");
        assert!(logprobs.top.len() == 3 && logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
    let plain = Options { sampling: SamplingOptions::default(), ..asked };
    let unasked = model.generate("Once upon", &plain).unwrap();
    assert!(unasked.into_iter().all(|piece| piece.unwrap().logprobs.is_none()));
}

/// What is guessed is held to the constraint as what is not, and the text is the same: here nearly all repeats.
#[test]
fn guesses_change_no_text() {
    let record = json!({
        "type": "object",
        "properties": { "name": { "enum": ["Tom", "Lily"] }, "likes": { "const": "a big red ball" } },
        "required": ["name", "likes"],
        "additionalProperties": false,
    });
    let schema = json!({ "type": "array", "items": record, "minItems": 2, "maxItems": 4 });
    let grammar = Grammar::JsonSchema(schema.clone());
    let texts = |drafts| {
        let load = LoadOptions { drafts, backend: BackendRequest::Cpu, ..LoadOptions::default() };
        let model = Model::load_with(ModelFiles::builtin().unwrap(), load).unwrap();
        let running: Vec<Generation> = (0..6)
            .map(|seed| {
                let sampling = SamplingOptions { temperature: 0.8, seed, ..Default::default() };
                model.generate("Some children: ", &Options { sampling, ..options(&model, &grammar) }).unwrap()
            })
            .collect();
        running.into_iter().map(|generation| end(generation).unwrap()).collect::<Vec<_>>()
    };
    let plain = texts(Drafts::Off);
    assert_eq!(texts(Drafts::On), plain);
    for (text, finish, conforms) in plain {
        // White space may use up the context.
        assert_eq!(conforms, Some(finish == FinishReason::Stop), "{text}");
        if finish == FinishReason::Stop {
            check(&schema, &serde_json::from_str(&text).unwrap()).unwrap();
        }
    }
}
