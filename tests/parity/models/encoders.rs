//! Embedders and cross-encoders against sentence-transformers: token ids, hidden states, vectors and scores, alone and beside each
//! other.

use std::path::PathBuf;

use backstop::backend::LlmBackendKind;
use backstop::backend::batch::Batch;
use backstop::forward::step::SequenceState;
use backstop::{Model, Options};
use safetensors::SafeTensors;

use crate::harness::{backends, close, load, options, root};
use crate::tolerance;
use backstop::tensor::DType;

/// A directory, and what sentence-transformers computed with it.
struct Case {
    name: String,
    path: PathBuf,
    /// Of a cross-encoder two each, of an embedder one.
    texts: Vec<Vec<String>>,
    ids: Vec<Vec<u32>>,
    /// Where the second text begins.
    second: Vec<usize>,
    /// The last hidden states of each text.
    hidden: Vec<Vec<Vec<f32>>>,
    /// A vector of each text, or its score.
    made: Vec<Vec<f32>>,
}

impl Case {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(path.join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let ints = |name: &str| -> Option<Vec<u32>> {
            let data = tensors.tensor(name).ok()?.data().to_vec();
            Some(data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect())
        };
        let floats = |name: &str| -> Option<Vec<Vec<f32>>> {
            let view = tensors.tensor(name).ok()?;
            let width = view.shape().get(1).copied().unwrap_or(1);
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            Some(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
        };
        let lengths: Vec<usize> = ints("lengths").unwrap().into_iter().map(|len| len as usize).collect();
        let (ids, all_types, rows) = (ints("ids").unwrap(), ints("types"), floats("hidden").unwrap());
        let mut case = Self {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            texts: Vec::new(),
            ids: Vec::new(),
            second: Vec::new(),
            hidden: Vec::new(),
            made: floats("vectors").or_else(|| floats("scores")).unwrap(),
            path,
        };
        let mut start = 0;
        for len in lengths {
            let of = start..start + len;
            start += len;
            case.ids.push(ids[of.clone()].to_vec());
            case.hidden.push(rows[of.clone()].to_vec());
            let types = all_types.as_ref().map(|types| &types[of]);
            let second = types.and_then(|types| types.iter().position(|&of| of == 1));
            case.second.push(second.unwrap_or(usize::MAX));
        }
        assert_eq!(start, ids.len());
        let texts = std::fs::read(case.path.join("texts.json")).unwrap();
        case.texts = match case.ranks() {
            true => serde_json::from_slice(&texts).unwrap(),
            false => {
                let texts: Vec<String> = serde_json::from_slice(&texts).unwrap();
                texts.into_iter().map(|text| vec![text]).collect()
            }
        };
        assert_eq!((case.texts.len(), case.made.len()), (case.ids.len(), case.ids.len()), "{}", case.name);
        case
    }

    fn ranks(&self) -> bool {
        self.name.ends_with("-cross")
    }

    fn model(&self, kind: LlmBackendKind) -> Model {
        load(&self.path, options(kind))
    }
}

fn cases() -> Vec<Case> {
    let folder = root().join("tests/fixtures/encoders");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 24, "{} encoders", paths.len());
    paths.into_iter().map(Case::read).collect()
}

/// Hidden states of texts in one step.
fn hidden(model: &Model, texts: Vec<(Vec<u32>, usize)>) -> Vec<Vec<Vec<f32>>> {
    let work = move |runtime: &backstop::engine::Runtime| {
        let runs: Vec<(usize, &[u32])> = texts.iter().map(|(ids, _)| (0, &ids[..])).collect();
        let mut batch = Batch::of(&runs);
        batch.outputs.clear();
        let state = |(ids, second): &(Vec<u32>, usize)| SequenceState {
            second: *second,
            ..runtime.sequence(ids.len())
        };
        let mut states: Vec<SequenceState> = texts.iter().map(state).collect();
        let launched = runtime.launch(&batch, &mut states, true).unwrap();
        let hidden = runtime.outputs(&launched, true).unwrap().hidden.unwrap();
        let of =
            |run: &backstop::backend::batch::Run| run.rows().map(|row| hidden.row(row).to_vec()).collect();
        batch.runs.iter().map(of).collect::<Vec<Vec<Vec<f32>>>>()
    };
    model.engine().with(work).unwrap()
}

#[test]
fn token_ids_are_those_of_the_library() {
    for case in cases() {
        let model = case.model(LlmBackendKind::Cpu);
        let tokenizer = model.tokenizer().unwrap();
        for ((texts, ids), &second) in case.texts.iter().zip(&case.ids).zip(&case.second) {
            let got = match &texts[..] {
                [text] => (tokenizer.encode(text).unwrap(), usize::MAX),
                [query, document] => model.encode_pair(query, document, Some(true)).unwrap(),
                _ => panic!("{}: {texts:?}", case.name),
            };
            assert_eq!(got, (ids.clone(), second), "{}: {texts:?}", case.name);
        }
    }
}

#[test]
fn hidden_states_are_those_of_transformers_alone_and_beside_each_other() {
    for case in cases() {
        for kind in backends() {
            let model = case.model(kind);
            let texts: Vec<(Vec<u32>, usize)> =
                case.ids.iter().cloned().zip(case.second.iter().copied()).collect();
            let alone: Vec<_> =
                texts.iter().map(|text| hidden(&model, vec![text.clone()]).concat()).collect();
            let beside = hidden(&model, texts);
            for (what, got) in [("alone", &alone), ("beside", &beside)] {
                let what = format!("{} on {kind}, {what}", case.name);
                let (apart, rms) =
                    close(&what, &got.concat(), &case.hidden.concat(), tolerance::logits(DType::F32));
                println!("{what}: {apart:.2e} standard deviations, {rms:.2e} in the mean");
                assert!(rms <= tolerance::logits_rms(DType::F32), "{what}: {rms:.2e} in the mean");
            }
            if kind == LlmBackendKind::Cpu {
                assert!(alone == beside, "{}: neighbours change bits", case.name);
            }
        }
    }
}

#[test]
fn vectors_and_scores_are_those_of_sentence_transformers() {
    for case in cases() {
        for kind in backends() {
            let model = case.model(kind);
            let one = |(texts, ids): (&Vec<String>, &Vec<u32>)| match &texts[..] {
                [query, document] => vec![model.rank(query, document).unwrap()],
                _ => model.embed(ids).unwrap(),
            };
            let alone: Vec<Vec<f32>> = case.texts.iter().zip(&case.ids).map(one).collect();
            let what = format!("{} on {kind}", case.name);
            let (apart, _) = close(&what, &alone, &case.made, tolerance::logits(DType::F32));
            println!("{what}: {apart:.2e} standard deviations");
            // All at once, in whatever steps the engine makes of them.
            let beside: Vec<Vec<f32>> = std::thread::scope(|scope| {
                let asked: Vec<_> = case.texts.iter().zip(&case.ids).collect();
                let threads: Vec<_> = asked.into_iter().map(|of| scope.spawn(move || one(of))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            match kind {
                LlmBackendKind::Cpu => assert!(alone == beside, "{what}: neighbours change bits"),
                LlmBackendKind::Mlx => {
                    close(&what, &beside, &case.made, tolerance::logits(DType::F32));
                }
            }
        }
    }
}

#[test]
fn what_a_model_is_not_for_it_refuses_by_name() {
    for case in cases() {
        let model = case.model(LlmBackendKind::Cpu);
        let generates = ["qwen3-last", "qwen3-judge-cross", "qwen3-word-cross"].contains(&&*case.name);
        let text = model.generate("a b", &Options { max_tokens: Some(1), ..Options::default() });
        let logits = model.logits(&case.ids[0]);
        assert_eq!((text.is_ok(), logits.is_ok()), (generates, generates), "{}", case.name);
        let what = match &*case.name {
            "qwen3-headless" => {
                "it has no output head (lm_head.weight), and generates nothing: it is for embeddings"
            }
            _ => "it reads whole texts and generates none: it is for embeddings, or for scores of pairs",
        };
        if let (Err(text), Err(logits)) = (text, logits) {
            let said = format!("{}: {what}", case.name);
            assert_eq!([text.to_string(), logits.to_string()], [said.clone(), said]);
        }
        let score = model.rank("a", "b");
        assert_eq!(score.is_ok(), case.ranks(), "{}", case.name);
        if let Err(error) = score {
            let what = "it is no cross-encoder, and has no score for a pair of texts";
            assert_eq!(error.to_string(), format!("{}: {what}", case.name));
        }
        if !model.info().config.bidirectional {
            continue;
        }
        let ids = case.ids[4].clone();
        let part = model.engine().with(move |runtime| {
            let mut state = runtime.sequence(ids.len());
            let mut first = Batch::of(&[(0, &ids[..2])]);
            first.outputs.clear();
            runtime.launch(&first, std::slice::from_mut(&mut state), true).unwrap();
            let rest = Batch::of(&[(2, &ids[2..])]);
            runtime.launch(&rest, std::slice::from_mut(&mut state), true).unwrap_err().to_string()
        });
        assert!(part.unwrap().contains("is a part of a text, expected a whole one"), "{}", case.name);
    }
}

#[test]
fn shortened_vectors_are_beginnings_of_length_1() {
    let case = cases().into_iter().find(|case| case.name == "gemma3_text-dense").unwrap();
    let model = case.model(LlmBackendKind::Cpu);
    let whole = model.embed(&case.ids[0]).unwrap();
    assert_eq!((whole.len(), model.pooling().unwrap().dense_layers()), (32, 2));
    let short = model.shortened(whole.clone(), 8).unwrap();
    let length = whole[..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    for (short, whole) in short.iter().zip(&whole) {
        assert!((short - whole / length).abs() < 1e-6, "{short} of {whole}");
    }
    assert_eq!((short.len(), model.shortened(whole.clone(), 32).unwrap()), (8, whole.clone()));
    for (dimensions, got) in [(0, "0 of 32"), (33, "33 of 32")] {
        let error = model.shortened(whole.clone(), dimensions).unwrap_err().to_string();
        assert!(error.starts_with(&format!("dimensions is {got}, expected")), "{error}");
    }
    let error = Model::builtin().unwrap().shortened(vec![1.0; 8], 3).unwrap_err().to_string();
    assert!(error.contains("no file of this model says that it was trained to embed"), "{error}");
}

/// Files that say otherwise of one module than this version knows: `edit` is given the directory of a copy.
fn changed(name: &str, edit: impl FnOnce(&std::path::Path)) -> (tempfile::TempDir, PathBuf) {
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join(name);
    let mut left = vec![(root().join("tests/fixtures/encoders").join(name), path.clone())];
    while let Some((from, to)) = left.pop() {
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
            let at = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => left.push((entry.path(), at)),
                false => drop(std::fs::copy(entry.path(), at).unwrap()),
            }
        }
    }
    edit(&path);
    (copy, path)
}

#[test]
fn a_module_that_is_not_known_stops_nothing_but_what_needs_it() {
    let modules = r#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Other", "type": "a.Other"}]"#;
    let write = |path: &std::path::Path| std::fs::write(path.join("modules.json"), modules).unwrap();
    let (_copy, path) = changed("qwen3-last", write);
    let model = load(&path, options(LlmBackendKind::Cpu));
    let options_of = Options { max_tokens: Some(1), ..Options::default() };
    model.generate("a b", &options_of).unwrap().text().unwrap();
    for error in [model.embed(&[5]).unwrap_err(), model.rank("a", "b").unwrap_err()] {
        let error = error.to_string();
        assert!(
            error.starts_with("qwen3-last: ") && error.contains("[1].type is \"a.Other\", expected"),
            "{error}"
        );
    }
    // A model that is for nothing else is refused at once.
    let (_copy, path) = changed("bert-mean", write);
    let files = backstop::ModelFiles::open(&path).unwrap();
    let error = Model::load_with(files, options(LlmBackendKind::Cpu)).unwrap_err().to_string();
    assert!(error.contains("[1].type is \"a.Other\""), "{error}");
}

#[test]
fn a_template_without_the_roles_of_a_pair_scores_none() {
    let (_copy, path) = changed("qwen3-judge-cross", |path| {
        std::fs::write(
            path.join("chat_template.jinja"),
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}x",
        )
        .unwrap();
    });
    let model = load(&path, options(LlmBackendKind::Cpu));
    let error = model.rank("a", "b").unwrap_err().to_string();
    assert!(error.contains("it leaves out messages of the roles query and document"), "{error}");
}

#[test]
fn gguf_twins_have_the_tokens_and_vectors_of_their_directories() {
    let mut twins = 0;
    for case in cases() {
        let path = case.path.join("twin.gguf");
        if !path.is_file() {
            continue;
        }
        twins += 1;
        let bytes = std::fs::read(case.path.join("twin.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let view = tensors.tensor("vectors").unwrap();
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected: Vec<Vec<f32>> = values.chunks_exact(view.shape()[1]).map(<[f32]>::to_vec).collect();
        for kind in backends() {
            // Nothing is rounded but the weights.
            let exact = backstop::LoadOptions {
                dtype: Some(DType::F32),
                kv_type: Some(DType::F32.into()),
                ..options(kind)
            };
            let model = load(&path, exact);
            let tokenizer = model.tokenizer().unwrap();
            let pooling = model.pooling().unwrap();
            assert!(pooling.is_trained() && pooling.normalizes(), "{}", case.name);
            let mut vectors = Vec::new();
            for (text, ids) in case.texts.iter().zip(&case.ids) {
                assert_eq!(&tokenizer.encode(&text[0]).unwrap(), ids, "{}: {text:?}", case.name);
                vectors.push(model.embed(ids).unwrap());
            }
            let what = format!("{} on {kind}", case.name);
            let (apart, _) = close(&what, &vectors, &expected, tolerance::logits(DType::F32));
            println!("{what}: {apart:.2e} standard deviations");
        }
    }
    assert!(twins >= 6, "{twins} twins");
}

#[test]
fn gguf_files_pool_as_they_say() {
    let folder = root().join("tests/fixtures/encoders/bert-mean");
    let bytes = std::fs::read(folder.join("twin.gguf")).unwrap();
    let key = b"bert.pooling_type";
    // Behind the key, its value's type and its value.
    let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + 4;
    let dir = tempfile::tempdir().unwrap();
    let pooling = |kind: u8| {
        let (mut bytes, path) = (bytes.clone(), dir.path().join(format!("{kind}.gguf")));
        bytes[at] = kind;
        std::fs::write(&path, bytes).unwrap();
        let pooling = backstop::ModelFiles::open(&path).unwrap().pooling();
        pooling.map(|it| (it.pool().name(), it.is_trained())).map_err(|error| error.to_string())
    };
    let expected = [
        ("mean of all tokens", false),
        ("mean of all tokens", true),
        ("the first token", true),
        ("the last token", true),
    ];
    assert_eq!([0, 1, 2, 3].map(|kind| pooling(kind).unwrap()), expected);
    let error = pooling(4).unwrap_err();
    assert!(error.ends_with("bert.pooling_type is 4, expected 1 (mean), 2 (cls) or 3 (last)"), "{error}");
}

#[test]
fn texts_are_cut_as_the_library_cuts_them() {
    use backstop::text::Cut;
    let all = cases();
    let case = |name: &str| all.iter().find(|case| case.name == name).unwrap();
    // [CLS], the first tokens, [SEP].
    let bert = case("bert-mean");
    let model = bert.model(LlmBackendKind::Cpu);
    let ids = &bert.ids[4];
    let cut = model.tokenizer().unwrap().encode_cut(&bert.texts[4][0], true, 9).unwrap();
    assert_eq!(cut, [&ids[..8], &ids[ids.len() - 1..]].concat());
    let whole = model.tokenizer().unwrap().encode_cut(&bert.texts[0][0], true, 400).unwrap();
    assert_eq!(whole, bert.ids[0]);
    let error = model.tokenizer().unwrap().encode_cut("a", true, 1).unwrap_err().to_string();
    assert_eq!(error, "prompt: it is cut to 1 tokens, and 2 are put around it");
    // Of a pair the longer text is cut, and both keep their ends.
    let cross = case("bert-cross");
    let model = cross.model(LlmBackendKind::Cpu);
    let (ids, second) = (&cross.ids[4], cross.second[4]);
    let [query, document] = &cross.texts[4][..] else { panic!() };
    let cut = Cut { most: Some(second + 11), second: None };
    let (got, at) = model.encode_pair_cut(query, document, None, cut).unwrap();
    assert_eq!((got, at), ([&ids[..second + 10], &ids[ids.len() - 1..]].concat(), second));
    let cut = Cut { most: None, second: Some(3) };
    let (got, _) = model.encode_pair_cut(query, document, None, cut).unwrap();
    assert_eq!(got, [&ids[..second + 3], &ids[ids.len() - 1..]].concat());
    // A template keeps what is around the document.
    let judge = case("qwen3-judge-cross");
    let model = judge.model(LlmBackendKind::Cpu);
    let [query, document] = &judge.texts[4][..] else { panic!() };
    let (whole, _) = model.encode_pair(query, document, None).unwrap();
    let (bare, _) = model.encode_pair(query, "", None).unwrap();
    for room in [0, 1, 5, 40] {
        let cut = Cut { most: Some(bare.len() + room), second: None };
        let (got, _) = model.encode_pair_cut(query, document, None, cut).unwrap();
        assert!(got.len() <= bare.len() + room && got.len() + 8 > bare.len() + room, "{room}: {}", got.len());
        assert_eq!(got[got.len() - 3..], whole[whole.len() - 3..]);
    }
    let cut = Cut { most: Some(bare.len() - 1), second: None };
    let error = model.encode_pair_cut(query, document, None, cut).unwrap_err().to_string();
    assert!(error.contains("and without its document it has"), "{error}");
}
