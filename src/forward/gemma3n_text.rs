//! `gemma3n_text`, the text of `gemma3n`: four streams beside each other, of which layers compute one and correct the others by it
//! (AltUp), a low-rank path beside attention (Laurel), MLPs whose gates are cut at a bound, and embeddings for each layer.
//! Google DeepMind 2025, Gemma 3n; Baykal et al. 2023, "Alternating Updates for Efficient Transformers".
//!
//! The streams `[S, D]` of a token lie side by side in its row, `[T, S * D]`.

use super::blocks::{Linear, RmsNorm, Vocabulary, norm_spec};
use super::gemma4_text::{
    ATTENTION_NORM, Attention, DOWN, EMBED, GATE, HEAD, INPUT_NORM, KEY, KEY_NORM, KeysAndValues, MLP_NORM,
    MLP_OUT_NORM, NORM, OUTPUT, PLAIN, QUERY, QUERY_NORM, UP, VALUE, bare, first_shared, matrix, path,
};
use super::layer_embeddings::{EmbeddingDims, LayerEmbeddings, OwnEmbedding};
use super::list::{Dim, Name, WeightList};
use super::loader::Loader;
use super::normal::quantile;
use super::step::Step;
use super::{Arguments, Family, Forward, Gguf, gemma3n_gguf};
use crate::backend::ops::{Backend, StateSpec};
use crate::backend::{Op, PreparedMatrix, Tensor};
use crate::config::rope::{self, RopeRules};
use crate::config::{Activation, Config, Names, Rope, RopeScaling, Shared};
use crate::error::Result;
use crate::json::Fields;
use crate::quant::Matrix;
use crate::tensor::Weight;

const ROPE: RopeRules = RopeRules { by_layer_type: true, ..RopeRules::theta(1_000_000.0) };
/// Of layers with a window.
const LOCAL_ROPE: RopeRules = RopeRules { theta_name: "rope_local_base_freq", ..RopeRules::WHOLE };

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3n_text",
    shared: Shared {
        names: Names { act: "hidden_activation", inner_by_layer: true, ..Names::LLAMA },
        vocab: Some(262_400),
        heads: Some(8),
        kv_heads: Some(2),
        head_dim: Some(256),
        context: 32_768,
        act: "gelu_pytorch_tanh",
        tied: true,
        rope: ROPE,
        bos: Some(2),
        eos: &[1],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        activations: &[Activation::GeluTanh],
        numbers: &[
            ("final_logit_softcapping", "final_logit_softcapping"),
            ("rope_local_base_freq", "rope.freq_base_swa"),
        ],
        members: gemma3n_gguf::members,
        entries: None,
        ..Gguf::plain("gemma3n")
    }),
    prefixes: super::TEXT_PART,
};

/// Of all streams but the first: what makes them of the embedding, and what is made of them in the end.
const MAKE: Name = ("model.altup_projections", "altup_proj");
const UNMAKE: Name = ("model.altup_unembed_projections", "altup_unembd_proj");
const ROUTER: Name = ("altup.modality_router", "altup_router");
const ROUTER_NORM: Name = ("altup.router_norm", "altup_router_norm");
const PREDICTION: Name = ("altup.prediction_coefs", "altup_predict_coef");
const CORRECTION: Name = ("altup.correction_coefs", "altup_correct_coef");
const CORRECTED_SCALE: Name = ("altup.correct_output_scale", "altup_correct_scale");
const LEFT: Name = ("laurel.linear_left", "laurel_l");
const RIGHT: Name = ("laurel.linear_right", "laurel_r");
const LAUREL_NORM: Name = ("laurel.post_laurel_norm", "laurel_post_norm");

const STREAMS: &str = "altup_num_inputs";
const SPARSITY: &str = "activation_sparsity_pattern";

/// A Gemma 3n.
#[derive(Debug)]
struct Gemma3n {
    config: Config,
    /// Widths inside the MLPs, `[num_hidden_layers]`.
    inner: Vec<usize>,
    /// Standard deviations above the mean up to which gates are cut, of layers where they are; `[num_hidden_layers]`.
    cuts: Vec<Option<f32>>,
    /// The first of the layers that use keys and values of another.
    first_shared: usize,
    streams: usize,
    /// The stream that layers compute.
    active: usize,
    /// Whether this has a scale of its own before the embeddings for each layer meet it.
    scales: bool,
    laurel_rank: usize,
    embeddings: EmbeddingDims,
}

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    const CAP: &str = "final_logit_softcapping";
    let layers = config.num_hidden_layers;
    config.final_logit_softcapping = match fields.is_null(CAP) {
        true => None,
        false => Some(fields.number(CAP, 1e-6, 1e6)?.unwrap_or(30.0) as f32),
    };
    config.attention_multiplier = Some(1.0);
    config.has_head_norms = true;
    let window = fields.size_or("sliding_window", Some(512), 1 << 30)?;
    config.set_windows(fields, Some(window), |layer| !(layer + 1).is_multiple_of(5))?;
    let (head_dim, context) = (config.head_dim, config.max_position_embeddings);
    if let Some(rope) = rope::of_layer_type(fields, "full_attention", ROPE, head_dim, context)? {
        config.rope = rope;
    }
    let local = rope::of_layer_type(fields, "sliding_attention", LOCAL_ROPE, head_dim, context)?;
    let theta = fields.number(LOCAL_ROPE.theta_name, 1e-6, 1e12)?.unwrap_or(LOCAL_ROPE.theta);
    let plain = Rope { theta, dims: config.rope.dims, scaling: RopeScaling::None };
    config.set_local_rope(local.unwrap_or(plain));

    let mut inner = fields.sizes("intermediate_size", 1, 1 << 24)?.unwrap_or_default();
    match inner.len() {
        1 => inner = vec![inner[0]; layers],
        count if count != layers => return Err(of_layers(fields, "intermediate_size", count, layers)),
        _ => {}
    }
    let streams = fields.size_or(STREAMS, Some(4), 16)?;
    Ok(Box::new(Gemma3n {
        inner,
        cuts: cuts(fields, layers)?,
        first_shared: first_shared(fields, &config, 15)?,
        streams,
        active: fields.size("altup_active_idx", 0, streams - 1)?.unwrap_or(0),
        scales: fields.flag("altup_correct_scale")?.unwrap_or(true),
        laurel_rank: fields.size_or("laurel_rank", Some(64), 1 << 16)?,
        embeddings: EmbeddingDims::required(fields, &config, 256)?,
        config,
    }))
}

/// A list that is not as long as there are layers.
fn of_layers(fields: &Fields<'_>, name: &str, count: usize, layers: usize) -> crate::error::Error {
    fields.error(name, format!("a list of {count}"), format!("a list of num_hidden_layers, {layers}"))
}

/// Where each layer cuts its gates, of the share of them that is to be cut: the quantile of a normal distribution.
fn cuts(fields: &Fields<'_>, layers: usize) -> Result<Vec<Option<f32>>> {
    // Of one, nothing is left.
    let shares = fields.numbers(SPARSITY, 0.0, 0.999_999)?;
    let shares = shares.unwrap_or_else(|| {
        let sparse = if layers > 10 { 10 } else { 0 };
        (0..layers).map(|layer| if layer < sparse { 0.95 } else { 0.0 }).collect()
    });
    if shares.len() != layers {
        return Err(of_layers(fields, SPARSITY, shares.len(), layers));
    }
    let cut = |share: f32| (share > 0.0).then(|| quantile(f64::from(share)) as f32);
    Ok(shares.into_iter().map(cut).collect())
}

impl Gemma3n {
    /// The layer whose keys and values a layer uses: mostly its own.
    fn source(&self, layer: usize) -> usize {
        let is_full = |layer: usize| self.config.windows[layer].is_none();
        match layer < self.first_shared {
            true => layer,
            false => {
                (0..self.first_shared).rev().find(|&other| is_full(other) == is_full(layer)).unwrap_or(layer)
            }
        }
    }

    fn list_layer(&self, list: &mut WeightList, layer: usize) {
        let (config, hidden) = (&self.config, || self.config.hidden_dim());
        let prefixes = [format!("model.layers.{layer}"), format!("blk.{layer}")];
        let prefixes = prefixes.each_ref().map(String::as_str);
        let name = |(own, gguf): Name| [format!("{}.{own}", prefixes[0]), format!("{}.{gguf}", prefixes[1])];
        for norm in [INPUT_NORM, ATTENTION_NORM, MLP_NORM, MLP_OUT_NORM, LAUREL_NORM, ROUTER_NORM] {
            list.push(norm_spec(name(norm), hidden(), PLAIN));
        }

        let (query, key) = (config.query_dim(layer), config.key_dim());
        list.push(matrix(name(QUERY), query.clone(), hidden(), true));
        list.push(norm_spec(name(QUERY_NORM), config.head_dim(), PLAIN));
        // Files may hold keys and values that nothing reads.
        if self.source(layer) == layer {
            list.push(matrix(name(KEY), key.clone(), hidden(), true));
            list.push(norm_spec(name(KEY_NORM), config.head_dim(), PLAIN));
            list.push(matrix(name(VALUE), key, hidden(), true));
        }
        list.push(matrix(name(OUTPUT), hidden(), query, true));

        let inner = Dim { field: "intermediate_size", size: self.inner[layer] };
        list.push(matrix(name(GATE), inner.clone(), hidden(), false));
        list.push(matrix(name(UP), inner.clone(), hidden(), false));
        list.push(matrix(name(DOWN), hidden(), inner, false));

        let rank = Dim { field: "laurel_rank", size: self.laurel_rank };
        list.push(matrix(name(LEFT), rank.clone(), hidden(), false));
        list.push(matrix(name(RIGHT), hidden(), rank, false));

        let streams = || Dim { field: STREAMS, size: self.streams };
        let each = Dim { field: "altup_num_inputs * altup_num_inputs", size: self.streams * self.streams };
        list.push(matrix(name(ROUTER), streams(), hidden(), false));
        list.push(matrix(name(PREDICTION), each, streams(), false));
        list.push(matrix(name(CORRECTION), streams(), streams(), false));
        if self.scales {
            list.push(bare(name(CORRECTED_SCALE), hidden()));
        }
        self.embeddings.list_layer(list, config, prefixes);
    }

    fn load_layer(&self, loader: &Loader<'_>, layer: usize) -> Result<Layer> {
        let config = &self.config;
        let norm = |name: Name| RmsNorm::load(loader, &path(layer, name), 0.0);
        let linear = |name: Name| Linear::load(loader, &path(layer, name));
        let own = match self.source(layer) == layer {
            false => None,
            true => Some(KeysAndValues {
                key: linear(KEY)?,
                value: Some(linear(VALUE)?),
                key_norm: norm(KEY_NORM)?,
                value_norm: RmsNorm::plain(loader, config.head_dim),
            }),
        };
        let scale = match self.scales {
            false => None,
            true => {
                let scale = loader.vector(&path(layer, CORRECTED_SCALE))?;
                Some(loader.ops.matrix(&Matrix::Dense(scale.in_rows_of(config.hidden_size))))
            }
        };
        Ok(Layer {
            altup: AltUp {
                width: config.hidden_size,
                router_norm: norm(ROUTER_NORM)?,
                router: linear(ROUTER)?,
                prediction: linear(PREDICTION)?,
                // Less by 1 than what is multiplied by.
                correction: linear(CORRECTION)?.plus(loader, self.streams, 1.0),
            },
            input_norm: norm(INPUT_NORM)?,
            laurel: [linear(LEFT)?, linear(RIGHT)?],
            laurel_norm: norm(LAUREL_NORM)?,
            attention: Attention {
                layer,
                query: linear(QUERY)?,
                query_norm: norm(QUERY_NORM)?,
                own,
                output: linear(OUTPUT)?,
                rotation: config.rotations[layer],
                head_dim: config.head_dim,
                window: config.windows[layer],
                scale: config.attention_scale(layer),
            },
            attention_norm: norm(ATTENTION_NORM)?,
            mlp_norm: norm(MLP_NORM)?,
            mlp: CutMlp {
                gate: linear(GATE)?,
                up: linear(UP)?,
                down: linear(DOWN)?,
                deviations: self.cuts[layer],
                activation: config.hidden_act,
            },
            mlp_out_norm: norm(MLP_OUT_NORM)?,
            scale,
            embedded: self.embeddings.load_layer(loader, &format!("model.layers.{layer}"))?,
        })
    }

    /// The projections `name` of all streams but the first.
    fn projections(&self, loader: &Loader<'_>, name: Name) -> Result<Vec<Linear>> {
        (1..self.streams).map(|stream| Linear::load(loader, &format!("{}.{}", name.0, stream - 1))).collect()
    }
}

impl Arguments for Gemma3n {
    fn config(&self) -> &Config {
        &self.config
    }

    fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    fn weights(&self) -> WeightList {
        let config = &self.config;
        let mut list = WeightList::default();
        let name = |(own, gguf): Name| [own.to_owned(), gguf.to_owned()];
        list.push(matrix(name(EMBED), config.vocab_dim(), config.hidden_dim(), false));
        self.embeddings.list(&mut list, config);
        for (own, gguf) in [MAKE, UNMAKE] {
            for i in 0..self.streams - 1 {
                let names = [format!("{own}.{i}"), format!("{gguf}.{i}")];
                let mut module = matrix(names, config.hidden_dim(), config.hidden_dim(), false);
                if let Some(of_file) = &mut module.gguf {
                    // One tensor has those of all streams.
                    let rows = i * config.hidden_size..(i + 1) * config.hidden_size;
                    of_file.fused = vec![(gguf.to_owned(), rows)];
                }
                list.push(module);
            }
        }
        (0..config.num_hidden_layers).for_each(|layer| self.list_layer(&mut list, layer));
        list.push(norm_spec(name(NORM), config.hidden_dim(), PLAIN));
        if !config.tie_word_embeddings {
            list.push(matrix(name(HEAD), config.vocab_dim(), config.hidden_dim(), false));
        }
        list
    }

    fn states(&self) -> Vec<StateSpec> {
        let (heads, dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let of = |layer: usize| match self.source(layer) {
            other if other != layer => StateSpec::SharedWith(other),
            _ => StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: self.config.windows[layer] },
        };
        (0..self.config.num_hidden_layers).map(of).collect()
    }

    fn more_activations(&self) -> usize {
        let Config { hidden_size, intermediate_size, num_hidden_layers, .. } = self.config;
        // The streams, as they were, predicted and corrected, and the numbers that mix them; a gate that is cut.
        let streams = 3 * self.streams * hidden_size + 3 * hidden_size + 3 * self.streams * self.streams;
        streams + intermediate_size + self.embeddings.activations(num_hidden_layers)
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let width = self.config.hidden_size;
        let layers = (0..self.config.num_hidden_layers).map(|layer| self.load_layer(loader, layer));
        let row = |values: Vec<f32>| {
            let values = Weight::of_values("numbers of streams", &[1, values.len()], values);
            loader.ops.matrix(&Matrix::Dense(values))
        };
        let streams = 0..self.streams;
        let one = |one: usize| streams.clone().map(|i| if i == one { 1.0 } else { 0.0 }).collect();
        let others = streams.clone().map(|i| if i == 0 { 0.0 } else { 1.0 }).collect();
        Ok(Box::new(Decoder {
            states: self.states(),
            width,
            active: self.active,
            vocabulary: Vocabulary::load(loader, EMBED.0, HEAD.0)?.root_scaled(),
            embeddings: self.embeddings.load(loader)?,
            make: self.projections(loader, MAKE)?,
            unmake: self.projections(loader, UNMAKE)?,
            ones: streams.clone().map(|i| row(one(i))).collect(),
            others: row(others),
            magnitude: Magnitude {
                width,
                norm: RmsNorm::plain(loader, width).with_eps(1e-30),
                mean: Linear::mean(loader, width),
            },
            layers: layers.collect::<Result<_>>()?,
            norm: RmsNorm::load(loader, NORM.0, 0.0)?,
        }))
    }
}

/// The root mean squares of rows.
#[derive(Debug)]
struct Magnitude {
    width: usize,
    /// Adds next to nothing: transformers holds mean squares at 1e-5 or above, which those of a model's streams are.
    norm: RmsNorm,
    mean: Linear,
}

impl Magnitude {
    /// `[T, D]` → `[T, 1]`: the mean of `x · x / rms(x)`.
    fn of(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(step, x)?;
        self.mean.forward(step, &step.run(&Op::Mul { a: x, b: &normed })?)
    }

    /// `x` `[T, D]` with the magnitudes `[T, 1]` for its own.
    fn given(&self, step: &Step<'_>, x: &Tensor, magnitudes: &Tensor) -> Result<Tensor> {
        let x = self.norm.forward(step, x)?;
        step.run(&Op::Mix { x: &x, by: magnitudes, into: None, width: self.width })
    }
}

/// Alternating updates: how the streams of a layer follow from those before it, and from what it computed.
#[derive(Debug)]
struct AltUp {
    width: usize,
    router_norm: RmsNorm,
    router: Linear,     // [S, D]
    prediction: Linear, // [S * S, S]
    correction: Linear, // [S, S], and 1
}

impl AltUp {
    /// How much of each modality there is in `x` `[T, D]`: `[T, S]`.
    fn modalities(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        let normed = self.router_norm.forward(step, x)?;
        let routed = step.scale(&self.router.forward(step, &normed)?, 1.0 / self.width as f32)?;
        step.run(&Op::SoftCap { x: &routed, cap: 1.0 }) // tanh
    }

    /// The streams `[T, S * D]`, each with a part of all of them added, by the one that layers compute, `[T, D]`.
    fn predicted(&self, step: &Step<'_>, streams: &Tensor, active: &Tensor) -> Result<Tensor> {
        let by = self.prediction.forward(step, &self.modalities(step, active)?)?; // [T, S * S]
        step.run(&Op::Mix { x: streams, by: &by, into: Some(streams), width: self.width })
    }

    /// The streams `predicted`, each with a part of what was wrong with the one that the layer computed: `predicted_one`, and
    /// what it is, `computed`, `[T, D]` each.
    fn corrected(
        &self,
        step: &Step<'_>,
        predicted: &Tensor,
        [predicted_one, computed]: [&Tensor; 2],
    ) -> Result<Tensor> {
        let by = self.correction.forward(step, &self.modalities(step, computed)?)?; // [T, S]
        let wrong = step.add(computed, &step.scale(predicted_one, -1.0)?)?;
        step.run(&Op::Mix { x: &wrong, by: &by, into: Some(predicted), width: self.width })
    }
}

/// `down(act(gate(x)) ∘ up(x))`, the gates of some layers cut.
#[derive(Debug)]
struct CutMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    deviations: Option<f32>,
    activation: Activation,
}

impl CutMlp {
    /// `[T, D]` → `[T, D]`.
    fn forward(&self, step: &Step<'_>, x: &Tensor) -> Result<Tensor> {
        let inner = match self.deviations {
            None => step.gate_up([&self.gate, &self.up], x, self.activation)?,
            Some(deviations) => {
                let gate = self.gate.forward(step, x)?; // [T, I]
                let gate = step.run(&Op::Cut { x: &gate, deviations })?;
                let gate = step.activate(&gate, self.activation)?;
                step.run(&Op::Mul { a: &gate, b: &self.up.forward(step, x)? })?
            }
        };
        self.down.forward(step, &inner)
    }
}

/// One block.
#[derive(Debug)]
struct Layer {
    altup: AltUp,
    input_norm: RmsNorm,
    laurel: [Linear; 2], // [R, D] and [D, R]
    laurel_norm: RmsNorm,
    attention: Attention,
    attention_norm: RmsNorm,
    mlp_norm: RmsNorm,
    mlp: CutMlp,
    mlp_out_norm: RmsNorm,
    /// `[1, D]`.
    scale: Option<PreparedMatrix>,
    embedded: OwnEmbedding,
}

/// Numbers `[T, S]` of a step that are the same for each of its tokens.
struct Numbers<'a> {
    /// One for the stream that layers compute.
    active: &'a Tensor,
    /// One for every stream but the first.
    others: Tensor,
}

impl Layer {
    /// Streams `[T, S * D]` → `[T, S * D]`, with the tokens' embeddings for this layer `[T, P]`.
    fn forward(
        &self,
        step: &mut Step<'_>,
        streams: &Tensor,
        numbers: &Numbers<'_>,
        embedding: &Tensor,
    ) -> Result<Tensor> {
        let width = self.altup.width;
        let active = |step: &Step<'_>, x: &Tensor| {
            step.run(&Op::Mix { x, by: numbers.active, into: None, width }) // [T, D]
        };
        let before = active(step, streams)?;
        let predicted = self.altup.predicted(step, streams, &before)?;
        let predicted_one = active(step, &predicted)?;

        let h = self.input_norm.forward(step, &predicted_one)?;
        let low = self.laurel[0].forward(step, &h)?; // [T, R]
        let laurel = self.laurel_norm.forward(step, &self.laurel[1].forward(step, &low)?)?;
        let laurel = step.add(&h, &laurel)?;
        let attended = self.attention.forward(step, &h)?;
        let attended = self.attention_norm.forward(step, &attended)?;
        let x = step.add(&step.add(&predicted_one, &attended)?, &laurel)?;
        let x = step.scale(&x, std::f32::consts::FRAC_1_SQRT_2)?;
        let h = self.mlp_norm.forward(step, &x)?;
        let fed = self.mlp_out_norm.forward(step, &self.mlp.forward(step, &h)?)?;
        let computed = step.add(&x, &fed)?;

        let corrected = self.altup.corrected(step, &predicted, [&predicted_one, &computed])?;
        let mut x = active(step, &corrected)?;
        if let Some(scale) = &self.scale {
            x = step.run(&Op::Mul { a: &x, b: &step.repeated(scale)? })?;
        }
        let x = self.embedded.forward(step, &x, embedding)?;
        step.run(&Op::Mix { x: &x, by: &numbers.others, into: Some(&corrected), width })
    }
}

/// The forward pass.
#[derive(Debug)]
struct Decoder {
    states: Vec<StateSpec>,
    width: usize,
    active: usize,
    vocabulary: Vocabulary,
    embeddings: LayerEmbeddings,
    /// `[D, D]`, of all streams but the first.
    make: Vec<Linear>,
    unmake: Vec<Linear>,
    /// `[1, S]`: one for a stream, of each of them.
    ones: Vec<PreparedMatrix>,
    /// `[1, S]`: one for every stream but the first.
    others: PreparedMatrix,
    magnitude: Magnitude,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl Forward for Decoder {
    fn states(&self) -> Vec<StateSpec> {
        self.states.clone()
    }

    fn hidden(&self, step: &mut Step<'_>) -> Result<Tensor> {
        let width = self.width;
        let x = self.vocabulary.embed(step)?; // [T, D]
        step.tap(|| "embed_tokens".to_owned(), &x)?;
        let embeddings = self.embeddings.forward(step, &x)?;
        let ones = self.ones.iter().map(|one| step.repeated(one)).collect::<Result<Vec<_>>>()?;
        let numbers = Numbers { active: &ones[self.active], others: step.repeated(&self.others)? };

        let magnitude = self.magnitude.of(step, &x)?;
        let mut streams = step.run(&Op::Mix { x: &x, by: &ones[0], into: None, width })?; // [T, S * D]
        for (one, make) in ones[1..].iter().zip(&self.make) {
            let x = self.magnitude.given(step, &make.forward(step, &x)?, &magnitude)?;
            streams = step.run(&Op::Mix { x: &x, by: one, into: Some(&streams), width })?;
        }
        for (i, (layer, embedding)) in self.layers.iter().zip(&embeddings).enumerate() {
            streams = layer.forward(step, &streams, &numbers, embedding)?;
            step.tap(|| format!("layers.{i}"), &streams)?;
        }
        let stream = |step: &Step<'_>, one: &Tensor| {
            step.run(&Op::Mix { x: &streams, by: one, into: None, width }) // [T, D]
        };
        let mut x = stream(step, &ones[0])?;
        let magnitude = self.magnitude.of(step, &x)?;
        for (one, unmake) in ones[1..].iter().zip(&self.unmake) {
            let other = unmake.forward(step, &stream(step, one)?)?;
            x = step.add(&x, &self.magnitude.given(step, &other, &magnitude)?)?;
        }
        let x = step.scale(&x, 1.0 / ones.len() as f32)?;
        self.norm.forward(step, &x)
    }

    fn logits(&self, step: &Step<'_>, hidden: &Tensor) -> Result<Tensor> {
        self.vocabulary.logits(step, hidden)
    }
}
