//! Two settings of the runtime on the same tokens, layer by layer: why a model answers differently on a GPU, or with rounded
//! activations, and by how much.
//!
//! One is the reference, whose hidden states and logits are kept ([`Trace`]); the other is compared with them piece by piece
//! ([`Trace::compare`]). Neither samples: both read the tokens that are given, so that the first token that they would
//! choose differently does not hide what follows it.

use crate::backend::batch::Batch;
use crate::error::{Error, Result};
use crate::forward::step::SequenceState;
use crate::model::Model;
use crate::sample::Distribution;

/// Tokens of a step: their logits are in memory at once.
const CHUNK: usize = 64;

/// What a model computes of some tokens. It takes `4 T (V + (L + 1) D)` bytes: of Llama-1B and 256 tokens, 170 MB.
#[derive(Debug)]
pub struct Trace {
    tokens: Vec<u32>,
    pieces: Vec<Piece>,
}

/// What a step computes.
#[derive(Debug)]
struct Piece {
    /// The embedding and what each layer hands on, `[T, D]`, by their names.
    states: Vec<(String, Vec<f32>)>,
    logits: Vec<f32>, // [T, V]
}

/// How far two settings are apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Parity {
    /// Tokens that both read.
    pub tokens: usize,
    /// Of the embedding and of each layer's output, in their order.
    pub states: Vec<StateError>,
    /// Of the logits.
    pub logits: StateError,
    /// Of the distributions of the next token.
    pub divergence: Divergence,
    /// The same after each token.
    pub positions: Vec<PositionError>,
    /// Positions at which both have the same likeliest token.
    pub agreeing: usize,
    /// The first position at which they have not.
    pub first_difference: Option<Difference>,
    /// The perplexity of the tokens after the first, of the reference and of the other; none of a single token.
    pub perplexity: Option<[f64; 2]>,
}

/// The error of one kind of values.
#[derive(Debug, Clone, PartialEq)]
pub struct StateError {
    /// `embed_tokens`, `layers.3`, `logits`.
    pub name: String,
    /// The largest difference of two values; infinite where one is not a number.
    pub largest: f64,
    /// The position of the token at which that is.
    pub position: usize,
    /// `‖x − reference‖ / ‖reference‖` over all positions.
    pub relative: f64,
}

/// `KL(reference ‖ other)` in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// Over all positions.
    pub mean: f64,
    /// At one position; infinite where a logit is not a number.
    pub largest: f64,
    /// That position.
    pub position: usize,
}

/// The distributions of the token that follows a position, of the reference and of the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PositionError {
    /// `KL(reference ‖ other)` in nats.
    pub divergence: f64,
    /// The likeliest token of each.
    pub likeliest: [u32; 2],
    /// Its probability.
    pub probability: [f64; 2],
}

/// Two likeliest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The position of the token that they would follow.
    pub position: usize,
    /// The reference's.
    pub reference: u32,
    /// The other's.
    pub other: u32,
}

impl Trace {
    /// Runs the reference.
    ///
    /// # Errors
    /// No token, more than the context holds, an id outside the vocabulary, and what the backend reports: where an
    /// evaluation fails, nothing is replayed.
    pub fn of(model: &Model, tokens: &[u32]) -> Result<Self> {
        model.check_tokens(tokens)?;
        let mut reader = Reader { model, sequence: None, at: 0 };
        let pieces =
            tokens.chunks(CHUNK).map(|chunk| reader.read(chunk, tokens.len())).collect::<Result<_>>()?;
        Ok(Self { tokens: tokens.to_vec(), pieces })
    }

    /// Runs `other` on the same tokens.
    ///
    /// # Errors
    /// As [`Self::of`], and a model of another shape.
    pub fn compare(&self, other: &Model) -> Result<Parity> {
        other.check_tokens(&self.tokens)?;
        let mut reader = Reader { model: other, sequence: None, at: 0 };
        let mut states: Vec<Sum> = Vec::new();
        let mut outputs = Outputs::default();
        for (chunk, reference) in self.tokens.chunks(CHUNK).zip(&self.pieces) {
            let at = reader.at;
            let piece = reader.read(chunk, self.tokens.len())?;
            let names = |piece: &Piece| -> Vec<(String, usize)> {
                piece.states.iter().map(|(name, values)| (name.clone(), values.len())).collect()
            };
            if names(reference) != names(&piece) || reference.logits.len() != piece.logits.len() {
                return Err(Error::shape("parity", "the models have not the same layers and vocabulary"));
            }
            states.resize_with(piece.states.len(), Sum::default);
            for ((sum, (_, ours)), (_, theirs)) in states.iter_mut().zip(&reference.states).zip(&piece.states)
            {
                sum.add(ours, theirs, chunk.len(), at);
            }
            outputs.add(&reference.logits, &piece.logits, &self.tokens[at..], chunk.len(), at);
        }
        let names = self.pieces.iter().take(1).flat_map(|piece| &piece.states).map(|(name, _)| name.clone());
        Ok(outputs.finish(self.tokens.len(), names.zip(states).map(|(name, sum)| sum.finish(name)).collect()))
    }
}

/// A model that reads a text piece by piece.
struct Reader<'a> {
    model: &'a Model,
    sequence: Option<SequenceState>,
    at: usize,
}

impl Reader<'_> {
    fn read(&mut self, tokens: &[u32], all: usize) -> Result<Piece> {
        let (sequence, at, tokens) = (self.sequence.take(), self.at, tokens.to_vec());
        self.at += tokens.len();
        let adapter = self.model.adapter().cloned();
        let (piece, sequence) = self.model.engine().with(move |runtime| {
            let mut sequence = sequence.unwrap_or_else(|| runtime.sequence(all));
            sequence.adapter = adapter;
            let mut batch = Batch::of(&[(at, &tokens)]);
            batch.outputs = (0..tokens.len()).collect();
            let mut states = Vec::new();
            let mut tap = |name: &str, value: &_| {
                let value = runtime.dispatch().to_host(value)?;
                states.push((name.to_owned(), value.data().to_vec()));
                Ok(())
            };
            let launched = runtime.build(&batch, std::slice::from_mut(&mut sequence), Some(&mut tap))?;
            let logits = runtime.read(&launched)?.data().to_vec();
            runtime.commit(&batch, std::slice::from_mut(&mut sequence));
            Ok::<_, Error>((Piece { states, logits }, sequence))
        })??;
        self.sequence = Some(sequence);
        Ok(piece)
    }
}

/// Sums over the positions so far.
#[derive(Debug, Default)]
struct Sum {
    largest: f64,
    position: usize,
    error: f64,
    reference: f64,
}

impl Sum {
    /// `rows` rows of each, the first at position `at`.
    fn add(&mut self, reference: &[f32], other: &[f32], rows: usize, at: usize) {
        let width = (reference.len() / rows.max(1)).max(1);
        let both = reference.chunks_exact(width).zip(other.chunks_exact(width));
        for (position, (reference, other)) in (at..).zip(both) {
            for (&x, &y) in reference.iter().zip(other) {
                let (x, y) = (f64::from(x), f64::from(y));
                let error = (x - y).abs();
                let error = if error.is_nan() { f64::INFINITY } else { error };
                if error > self.largest {
                    (self.largest, self.position) = (error, position);
                }
                self.error += error * error;
                self.reference += x * x;
            }
        }
    }

    fn finish(self, name: String) -> StateError {
        let relative = if self.error == 0.0 { 0.0 } else { (self.error / self.reference).sqrt() };
        StateError { name, largest: self.largest, position: self.position, relative }
    }
}

/// What is said of the logits so far.
#[derive(Debug, Default)]
struct Outputs {
    error: Sum,
    positions: Vec<PositionError>,
    agreeing: usize,
    first: Option<Difference>,
    /// Sums of `-ln p` of the next token.
    surprise: [f64; 2],
}

impl Outputs {
    /// The logits of `rows` positions from `at` on; `tokens` are the text's from there.
    fn add(&mut self, reference: &[f32], other: &[f32], tokens: &[u32], rows: usize, at: usize) {
        self.error.add(reference, other, rows, at);
        let width = (reference.len() / rows.max(1)).max(1);
        let both = reference.chunks_exact(width).zip(other.chunks_exact(width));
        for (row, (reference, other)) in both.enumerate() {
            let (of_reference, of_other) = (Distribution::of(reference), Distribution::of(other));
            let both = [&of_reference, &of_other];
            self.positions.push(PositionError {
                divergence: of_reference.divergence(&of_other),
                likeliest: both.map(|of| of.likeliest()),
                probability: both.map(|of| of.log_p(of.likeliest()).exp()),
            });
            if of_reference.likeliest() == of_other.likeliest() {
                self.agreeing += 1;
            } else if self.first.is_none() {
                let (reference, other) = (of_reference.likeliest(), of_other.likeliest());
                self.first = Some(Difference { position: at + row, reference, other });
            }
            if let Some(&next) = tokens.get(row + 1) {
                self.surprise[0] -= of_reference.log_p(next);
                self.surprise[1] -= of_other.log_p(next);
            }
        }
    }

    fn finish(self, tokens: usize, states: Vec<StateError>) -> Parity {
        let (mut largest, mut position) = (0.0, 0);
        for (i, &PositionError { divergence, .. }) in self.positions.iter().enumerate() {
            if divergence > largest {
                (largest, position) = (divergence, i);
            }
        }
        let sum: f64 = self.positions.iter().map(|of| of.divergence).sum();
        let mean = sum / self.positions.len().max(1) as f64;
        let predicted = tokens.saturating_sub(1);
        Parity {
            tokens,
            states,
            logits: self.error.finish("logits".to_owned()),
            divergence: Divergence { mean, largest, position },
            positions: self.positions,
            agreeing: self.agreeing,
            first_difference: self.first,
            perplexity: (predicted > 0).then(|| self.surprise.map(|sum| (sum / predicted as f64).exp())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(reference: &[f32], other: &[f32], tokens: &[u32]) -> Parity {
        let mut outputs = Outputs::default();
        outputs.add(reference, other, tokens, tokens.len(), 0);
        outputs.finish(tokens.len(), Vec::new())
    }

    #[test]
    fn distributions_are_compared_in_nats() {
        // 1/4 and 3/4 against halves, then equal ones, moved by a constant.
        let ln3 = 3.0_f32.ln();
        let parity = outputs(&[0.0, ln3, 1.0, 2.0], &[0.0, 0.0, 0.0, 1.0], &[0, 1]);
        let kl = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        assert!((parity.divergence.largest - kl).abs() < 1e-7, "{parity:?}");
        assert!((parity.divergence.mean - kl / 2.0).abs() < 1e-7);
        assert_eq!((parity.divergence.position, parity.agreeing), (0, 1));
        let [first, second] = parity.positions[..] else { panic!("{parity:?}") };
        assert_eq!((first.likeliest, second.likeliest), ([1, 0], [1, 1]));
        assert!((first.probability[0] - 0.75).abs() < 1e-7 && first.probability[1] == 0.5, "{first:?}");
        assert!(
            second.divergence.abs() < 1e-12 && (second.probability[0] - second.probability[1]).abs() < 1e-12,
            "{second:?}"
        );
        // Of equal logits the first token is taken.
        assert_eq!(parity.first_difference, Some(Difference { position: 0, reference: 1, other: 0 }));
        let [reference, other] = parity.perplexity.unwrap();
        assert!((reference - 4.0 / 3.0).abs() < 1e-6 && (other - 2.0).abs() < 1e-6, "{parity:?}");
        assert_eq!((parity.logits.largest, parity.logits.position), (f64::from(ln3), 0));
    }

    #[test]
    fn what_is_not_a_number_is_infinitely_far() {
        let parity = outputs(&[0.0, 1.0], &[f32::NAN, 1.0], &[0]);
        assert_eq!((parity.divergence.mean, parity.logits.largest), (f64::INFINITY, f64::INFINITY));
        assert_eq!(parity.perplexity, None);
        // A token that neither can choose counts for nothing.
        let never = f32::NEG_INFINITY;
        assert_eq!(outputs(&[0.0, never], &[0.0, -50.0], &[0]).divergence.mean, 0.0);
        assert_eq!(outputs(&[0.0, 0.0], &[0.0, never], &[0]).divergence.mean, f64::INFINITY);
    }

    #[test]
    fn errors_are_of_one_position_and_of_all() {
        let mut sum = Sum::default();
        sum.add(&[3.0, 0.0, 0.0, 4.0], &[3.0, 0.0, 0.0, 4.5], 2, 10);
        let error = sum.finish("layers.0".to_owned());
        assert_eq!((error.largest, error.position, error.relative), (0.5, 11, 0.1));
    }

    #[test]
    fn a_model_is_at_parity_with_itself() {
        let model = Model::builtin().unwrap();
        let tokens =
            model.tokenizer().unwrap().encode(&"Once upon a time there was a cat. ".repeat(16)).unwrap();
        assert!(tokens.len() > CHUNK);
        let parity = Trace::of(&model, &tokens).unwrap().compare(&model).unwrap();
        assert_eq!(parity.states.len(), 1 + model.info().config.num_hidden_layers);
        assert!(
            parity.states.iter().all(|state| state.largest == 0.0 && state.relative == 0.0),
            "{parity:?}"
        );
        assert_eq!((parity.logits.largest, parity.divergence.largest), (0.0, 0.0));
        assert_eq!((parity.tokens, parity.agreeing), (tokens.len(), tokens.len()));
        // What the logits of one pass say.
        let rows = model.logits(&tokens).unwrap();
        let surprise: f64 =
            rows.iter().zip(&tokens[1..]).map(|(row, &next)| -Distribution::of(row).log_p(next)).sum();
        let perplexity = (surprise / (tokens.len() - 1) as f64).exp();
        assert_eq!(parity.perplexity, Some([perplexity; 2]));
    }
}
