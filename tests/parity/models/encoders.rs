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
    assert!(paths.len() >= 11, "{} encoders", paths.len());
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
                [query, document] => tokenizer.encode_pair(query, document, true).unwrap(),
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
        let generates = case.name == "qwen3-last";
        let text = model.generate("a b", &Options { max_tokens: Some(1), ..Options::default() });
        let logits = model.logits(&case.ids[0]);
        assert_eq!((text.is_ok(), logits.is_ok()), (generates, generates), "{}", case.name);
        let what = "it reads whole texts and generates none: it is for embeddings, or for scores of pairs";
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
        if generates {
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
    assert_eq!((whole.len(), model.pooling().dense_layers()), (32, 2));
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
