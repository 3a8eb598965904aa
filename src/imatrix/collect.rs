//! Collecting an importance matrix: a text through the model, in windows that lie one behind the other.

use std::collections::{BTreeMap, HashMap};

use super::{Entry, Imatrix};
use crate::backend::batch::Batch;
use crate::backend::{InputSum, InputSums, LlmBackendDispatch};
use crate::error::{Error, Result};
use crate::forward::WeightList;
use crate::forward::step::SequenceState;
use crate::model::{Model, ModelFiles};

/// Tokens of a step: fewer where their logits are computed, too.
const CHUNK: usize = 512;
const WITH_LOGITS: usize = 64;

/// How a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collect {
    /// Tokens of a window; what is left at the end of the text is not read.
    pub window: usize,
    /// The token that takes the place of each window's first: what texts begin with.
    pub begin: Option<u32>,
    /// Whether the output head counts, too. As llama.cpp has it: it is better quantized without, most of the time.
    pub head: bool,
}

/// Adds up what the matrices of `model`, which was loaded from `files`, are multiplied with on `tokens`. `progress` is told how
/// many windows of how many are read; where it says `false`, the answer is `None`.
///
/// Matrices of latent attention that are folded into queries and outputs are not among them, nor are convolutions and what
/// recurrent layers compute beside linear layers.
///
/// # Errors
/// A text shorter than a window, a window longer than the context, and what the model reports; [`Error::Format`] for a model whose
/// matrices have no names in GGUF.
pub fn collect(
    files: &ModelFiles,
    model: &Model,
    tokens: &[u32],
    how: Collect,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Imatrix>> {
    let Collect { window, begin, head } = how;
    if window == 0 || tokens.len() < window {
        let got = tokens.len();
        return Err(Error::Prompt(format!(
            "the text has {got} tokens, expected at least {window} of a window"
        )));
    }
    let names = Names::of(&files.architecture.weights());
    let mut sums = InputSums::default();
    let count = tokens.len() / window;
    for (at, window) in tokens.chunks_exact(window).enumerate() {
        if !progress(at, count) {
            return Ok(None);
        }
        let mut read = window.to_vec();
        if let (Some(begin), Some(first)) = (begin, read.first_mut()) {
            *first = begin;
        }
        model.check_tokens(&read)?;
        sums.merge(of_window(model, read, head)?);
    }
    progress(count, count);
    let entries = names.entries(&sums)?;
    if entries.is_empty() {
        return Err(Error::format(&files.path, "has no matrix that has a name in GGUF files"));
    }
    let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let (chunk_count, chunk_size) = (number(count), number(window));
    Ok(Some(Imatrix { chunk_count, chunk_size, entries, ..Imatrix::default() }))
}

/// Has a dispatch add up no more, whatever became of the step.
struct Ends<'a>(&'a LlmBackendDispatch);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.take_inputs();
    }
}

/// The sums of one window.
fn of_window(model: &Model, tokens: Vec<u32>, head: bool) -> Result<InputSums> {
    let all = tokens.len();
    let (mut sequence, mut sums) = (None::<SequenceState>, InputSums::default());
    let mut at = 0;
    for chunk in tokens.chunks(if head { WITH_LOGITS } else { CHUNK }) {
        let (begun, start, chunk) = (sequence.take(), at, chunk.to_vec());
        at += chunk.len();
        let (more, state) = model.engine().with(move |runtime| {
            let mut sequence = begun.unwrap_or_else(|| runtime.sequence(all));
            let mut batch = Batch::of(&[(start, &chunk)]);
            batch.outputs = if head { (0..chunk.len()).collect() } else { Default::default() };
            let dispatch = runtime.dispatch();
            dispatch.start_inputs();
            let _ends = Ends(dispatch);
            let launched = runtime.launch(&batch, std::slice::from_mut(&mut sequence), true);
            let sums = dispatch.take_inputs();
            launched?;
            runtime.commit(&batch, std::slice::from_mut(&mut sequence));
            Ok::<_, Error>((sums, sequence))
        })??;
        sums.merge(more);
        sequence = Some(state);
    }
    Ok(sums)
}

/// The tensor of a GGUF file that a matrix is, and which of its experts.
struct Place {
    tensor: String,
    expert: Option<(usize, usize)>,
}

/// Names of GGUF files by those of matrices.
struct Names(HashMap<String, Vec<Place>>);

impl Names {
    fn of(list: &WeightList) -> Self {
        let mut places: HashMap<String, Vec<Place>> = HashMap::new();
        for stack in list.stacks() {
            let fused = stack.fused.iter().flat_map(|(each, _)| each.iter().enumerate());
            for (expert, module) in stack.each.iter().enumerate().chain(fused) {
                let expert = Some((expert, stack.each.len()));
                let place = Place { tensor: format!("{}.weight", stack.gguf), expert };
                places.entry(module.clone()).or_default().push(place);
            }
        }
        for name in list.names() {
            let gguf = list.get(name).filter(|module| module.columns.is_some());
            if let Some(gguf) = gguf.and_then(|module| module.gguf.as_ref())
                && !places.contains_key(name)
            {
                let place = Place { tensor: format!("{}.weight", gguf.name), expert: None };
                places.insert(name.to_owned(), vec![place]);
            }
        }
        Self(places)
    }

    fn entries(&self, sums: &InputSums) -> Result<BTreeMap<String, Entry>> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (name, InputSum { squares, rows }) in &sums.0 {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            for Place { tensor, expert } in self.0.get(module).into_iter().flatten() {
                if squares.iter().any(|square| !square.is_finite()) {
                    return Err(Error::Engine(format!("the inputs of {name} are not finite")));
                }
                let (expert, experts) = expert.unwrap_or((0, 1));
                let entry = entries.entry(tensor.clone()).or_insert_with(|| Entry {
                    squares: vec![0.0; experts * squares.len()],
                    counts: vec![0.0; experts],
                });
                let Some(to) = entry.squares.get_mut(expert * squares.len()..(expert + 1) * squares.len())
                else {
                    continue;
                };
                to.iter_mut().zip(squares).for_each(|(to, &square)| *to += square as f32);
                entry.counts[expert] += *rows as f32;
            }
        }
        Ok(entries)
    }
}
