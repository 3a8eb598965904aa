//! Dense decoders: what most families are, each a description of the same few parts. A block is attention and a feed-forward
//! part, one after the other or side by side, each with norms before it, after it, or both.

mod ahead;
mod decoder;
mod load;
mod split;

pub(super) use self::ahead::AheadNames;
pub(crate) use self::ahead::FIRST;
pub(super) use super::blocks::NormKind;
use super::blocks::{Norm, Vocabulary, norm_spec};
use super::delta::DeltaNet;
pub(super) use super::list::Name;
use super::list::{Dim, GgufSpec, ModuleSpec, Split, WeightList};
use super::loader::Loader;
use super::short_conv::ShortConv;
use super::sparse::Sparse;
use super::{Ahead, Arguments, Forward};
use crate::backend::ops::{Backend, GateKind, StateSpec};
use crate::backend::ranks::Rank;
use crate::config::{Config, Rotation};
use crate::error::Result;
use crate::weights::Form;
use decoder::Decoder;

/// What a norm of queries or keys is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadNormOf {
    /// Each head, all with the same weights.
    Head,
    /// All heads, as one row.
    Row,
    /// Each head, with weights of its own: modules `<name>.<head>`; in GGUF one, of a row for each head.
    EachHead,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadNorms {
    /// Of queries and of keys.
    pub names: [Name; 2],
    /// Which norm.
    pub kind: NormKind,
    /// What they are of.
    pub of: HeadNormOf,
    /// Whether they come after the rotary embedding.
    pub after_rope: bool,
}

/// Norms of heads of queries and keys that have no weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlainHeadNorms {
    /// Whether they come after the rotary embedding, and only where there is one.
    pub after_rope: bool,
    /// What queries are multiplied by then.
    pub queries: f32,
}

/// The projections of attention.
#[derive(Debug, Clone, Copy)]
pub(super) enum Qkv {
    /// Three modules; in GGUF three, or one as for [`Self::Fused`].
    Apart([Name; 3]),
    /// One module, whose rows are queries, then keys, then values; by head in a Hugging Face checkpoint where `by_head`.
    Fused { name: Name, by_head: bool },
    /// Those of latent attention, as [`Config::latent`] describes them.
    Latent,
}

/// The gate of what attention gives.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionGate {
    /// Its projection.
    pub name: Name,
    /// Its function.
    pub kind: GateKind,
    /// Whether there is one number for each head, and not for each of a head's.
    pub by_head: bool,
}

/// The modules of the feed-forward part.
#[derive(Debug, Clone, Copy)]
pub(super) enum MlpNames {
    /// Gate, up, down.
    Gated([Name; 3]),
    /// Gate over up in one module, and down.
    GatedFused([Name; 2]),
    /// In and out.
    Plain([Name; 2]),
}

/// Where rows of queries and keys that rotate together lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Nowhere.
    Nowhere,
    /// In GGUF.
    Gguf,
    /// In the Hugging Face checkpoint and in GGUF: the family rotates neighbours.
    Everywhere,
}

/// A dense decoder.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    /// What all families share.
    pub config: Config,
    /// The embedding.
    pub embed_tokens: Name,
    /// Whether a norm without weights follows it.
    pub embed_norm: bool,
    /// The embedding of positions, in families that do not rotate.
    pub embed_positions: Option<Name>,
    /// What the names of layers begin with, up to their numbers.
    pub layers: &'static str,
    /// The number of the first one there, and in GGUF.
    pub first: [usize; 2],
    /// The last norm.
    pub norm: Name,
    /// The output head, where it is not the embedding.
    pub lm_head: Name,
    /// Whether the head may have a bias of its own where it is the embedding.
    pub tied_bias: bool,
    /// All norms but those of heads.
    pub norms: NormKind,
    /// The last one, where it is of another kind.
    pub last_norm: Option<NormKind>,
    /// What those that follow attention and the feed-forward part add, where it is not what all do.
    pub out_eps: Option<f32>,
    /// Before attention.
    pub input_norm: Option<Name>,
    /// After attention, before it joins the residual stream.
    pub attention_norm: Option<Name>,
    /// Before the feed-forward part; of parallel parts, none where they share the one before attention.
    pub mlp_norm: Option<Name>,
    /// After the feed-forward part, before it joins the residual stream.
    pub mlp_out_norm: Option<Name>,
    /// Whether the feed-forward part reads what attention reads, in place of what it adds.
    pub parallel: bool,
    /// Queries, keys and values.
    pub qkv: Qkv,
    /// Whether each head of queries is followed by a gate of what attention gives for it, in the projection of queries.
    pub gated_queries: bool,
    /// Layers that are delta nets, and have no attention.
    pub delta: Option<DeltaNet>,
    /// Layers that are short convolutions, and have no attention.
    pub conv: Option<ShortConv>,
    /// The output of attention.
    pub output: Name,
    /// The gate of what attention gives.
    pub attention_gate: Option<AttentionGate>,
    /// A score of each head that stands beside those of its keys: a tensor of this name.
    pub sinks: Option<Name>,
    /// Norms of queries and keys, where there are any.
    pub head_norms: Option<HeadNorms>,
    /// Norms of these that have no weights.
    pub plain_head_norms: Option<PlainHeadNorms>,
    /// The feed-forward part.
    pub mlp: MlpNames,
    /// Experts in its place, in some layers.
    pub sparse: Option<Sparse>,
    /// How the rows of queries and keys lie.
    pub pairs: Pairs,
    /// Whether matrices of layers are stored with their rows as columns, in a Hugging Face checkpoint.
    pub transposed: bool,
    /// Whether the embedding is multiplied by the root of its width, rounded to the type of the weights.
    pub root_scale: bool,
    /// A layer behind the last that guesses the token after the next, where the files may have one.
    pub ahead: Option<AheadNames>,
    /// Whose part of its heads, and of what is between the feed-forward matrices, it is.
    pub rank: Rank,
}

impl Dense {
    /// Llama's description, of which others say what differs.
    pub fn llama(config: Config) -> Self {
        Self {
            config,
            embed_tokens: ("model.embed_tokens", "token_embd"),
            embed_norm: false,
            embed_positions: None,
            layers: "model.layers",
            first: [0, 0],
            norm: ("model.norm", "output_norm"),
            lm_head: ("lm_head", "output"),
            tied_bias: false,
            norms: NormKind::Rms { offset: 0.0 },
            last_norm: None,
            out_eps: None,
            input_norm: Some(("input_layernorm", "attn_norm")),
            attention_norm: None,
            mlp_norm: Some(("post_attention_layernorm", "ffn_norm")),
            mlp_out_norm: None,
            parallel: false,
            qkv: Qkv::Apart([
                ("self_attn.q_proj", "attn_q"),
                ("self_attn.k_proj", "attn_k"),
                ("self_attn.v_proj", "attn_v"),
            ]),
            output: ("self_attn.o_proj", "attn_output"),
            gated_queries: false,
            delta: None,
            conv: None,
            attention_gate: None,
            sinks: None,
            head_norms: None,
            plain_head_norms: None,
            mlp: MlpNames::Gated([
                ("mlp.gate_proj", "ffn_gate"),
                ("mlp.up_proj", "ffn_up"),
                ("mlp.down_proj", "ffn_down"),
            ]),
            sparse: None,
            pairs: Pairs::Nowhere,
            transposed: false,
            root_scale: false,
            ahead: None,
            rank: Rank::ALONE,
        }
    }

    /// Boxed, as a family hands it on.
    pub fn boxed(mut self) -> Result<Box<dyn Arguments>> {
        self.config.has_head_norms = self.head_norms.is_some() || self.plain_head_norms.is_some();
        self.config.experts = self.sparse.as_ref().map(Sparse::described);
        Ok(Box::new(self))
    }

    /// What the names of a layer begin with, and in GGUF.
    fn prefixes(&self, layer: usize) -> [String; 2] {
        let [own, gguf] = self.first.map(|first| first + layer);
        [format!("{}.{own}", self.layers), format!("blk.{gguf}")]
    }

    /// Adds one layer to the list.
    fn list_layer(&self, list: &mut WeightList, layer: usize) {
        let config = &self.config;
        let prefixes = self.prefixes(layer);
        let prefixes = prefixes.each_ref().map(String::as_str);
        let name =
            |name: Name| [format!("{}.{}", prefixes[0], name.0), format!("{}.{}", prefixes[1], name.1)];
        for norm in self.norms_of(layer).into_iter().flatten() {
            list.push(norm_spec(name(norm), config.hidden_dim(), self.norms));
        }
        let attends = self.attends(layer);
        if let Some(of) = self.head_norms.filter(|_| attends) {
            let dims = match of.of {
                HeadNormOf::Row => [config.query_dim(layer), config.key_dim()],
                HeadNormOf::Head | HeadNormOf::EachHead => [config.head_dim(), config.head_dim()],
            };
            let heads = [config.heads(layer), config.num_key_value_heads];
            for ((norm, dim), heads) in of.names.into_iter().zip(dims).zip(heads) {
                if of.of != HeadNormOf::EachHead {
                    list.push(norm_spec(name(norm), dim, of.kind));
                    continue;
                }
                for head in 0..heads {
                    let [own, gguf] = name(norm);
                    let spec = norm_spec([format!("{own}.{head}"), gguf.clone()], dim.clone(), of.kind);
                    // Rows of one tensor there, each of which is a vector here.
                    let fused = vec![(gguf.clone(), head..head + 1)];
                    let stored = GgufSpec { name: gguf, form: Form::Plain, fused };
                    list.push(ModuleSpec { gguf: Some(stored), bias: false, ..spec });
                }
            }
        }
        if let Some(sinks) = self.sinks {
            let [own, gguf] = name(sinks);
            let rows = Dim { field: "num_attention_heads", size: config.heads(layer) };
            let spec = norm_spec([own.clone(), gguf], rows, NormKind::Rms { offset: 0.0 });
            list.push(ModuleSpec { stacked: vec![(own, 0..config.heads(layer))], ..spec });
        }
        match (self.delta_of(layer), self.conv_of(layer), &config.latent) {
            (Some(delta), ..) => delta.list(list, config, prefixes),
            (_, Some(conv), _) => conv.list(list, config, prefixes),
            (.., Some(latent)) => latent.list(list, config, prefixes),
            _ => {}
        }
        let mut matrix = |names: [String; 2], split, rows: Dim, columns: Dim, forms: [Form; 2], fused| {
            let [name, gguf] = names;
            let [form, gguf_form] = forms;
            let form = if self.transposed { Form::Transposed } else { form };
            let gguf = Some(GgufSpec { name: gguf, form: gguf_form, fused });
            let stacked = Vec::new();
            let spec = ModuleSpec { name, rows, columns: Some(columns), bias: true, form, gguf, stacked };
            list.push_split(spec, split);
        };
        let plain = [Form::Plain; 2];
        match self.qkv {
            _ if !attends => {}
            Qkv::Apart(names) => {
                let dims = [config.query_dim(layer), config.key_dim(), config.key_dim()];
                let heads = [config.heads(layer), config.num_key_value_heads, 0];
                let mut row = 0;
                for ((part, dim), heads) in names.into_iter().zip(dims).zip(heads) {
                    let pairs = Form::Pairs { heads, dims: config.rope.dims };
                    let gated = self.gated_queries && row == 0;
                    let dim = if gated { doubled(dim) } else { dim };
                    let forms = match self.pairs {
                        _ if gated => [Form::HeadParts { heads, first: config.head_dim, pairs: false }; 2],
                        _ if heads == 0 => plain,
                        Pairs::Nowhere => plain,
                        Pairs::Gguf => [Form::Plain, pairs],
                        Pairs::Everywhere => [pairs, pairs],
                    };
                    let fused = (format!("{}.attn_qkv", prefixes[1]), row..row + dim.size);
                    row += dim.size;
                    matrix(name(part), Split::Rows, dim, config.hidden_dim(), forms, vec![fused]);
                }
            }
            Qkv::Fused { name: of, by_head } => {
                let by_head = match by_head {
                    true => Form::ByHead { heads: config.num_attention_heads },
                    false => Form::Plain,
                };
                let forms = [by_head, Form::Plain];
                matrix(name(of), Split::Rows, config.qkv_dim(), config.hidden_dim(), forms, Vec::new());
            }
            Qkv::Latent => {}
        }
        if config.latent.is_none() && attends {
            let (rows, columns) = (config.hidden_dim(), config.query_dim(layer));
            matrix(name(self.output), Split::Columns, rows, columns, plain, Vec::new());
        }
        if let Some(gate) = self.attention_gate {
            let rows = match gate.by_head {
                true => Dim { field: "num_attention_heads", size: config.heads(layer) },
                false => config.query_dim(layer),
            };
            matrix(name(gate.name), Split::Rows, rows, config.hidden_dim(), plain, Vec::new());
        }
        if let Some(sparse) = self.sparse_of(layer) {
            return sparse.list(list, config, prefixes);
        }
        let inner = config.inner_dim();
        let (wide, down) = match self.mlp {
            MlpNames::Gated([gate, up, down]) => (vec![(gate, inner.clone()), (up, inner.clone())], down),
            MlpNames::GatedFused([gate_up, down]) => {
                let both = Dim { field: "2 * intermediate_size", size: 2 * config.intermediate_size };
                (vec![(gate_up, both)], down)
            }
            MlpNames::Plain([up, down]) => (vec![(up, inner.clone())], down),
        };
        for (part, rows) in wide {
            matrix(name(part), Split::Rows, rows, config.hidden_dim(), plain, Vec::new());
        }
        matrix(name(down), Split::Columns, config.hidden_dim(), inner, plain, Vec::new());
    }

    /// Norms before and after attention, before and after the feed-forward part of a layer.
    fn norms_of(&self, layer: usize) -> [Option<Name>; 4] {
        let own = [self.input_norm, self.attention_norm, self.mlp_norm, self.mlp_out_norm];
        self.delta_of(layer).and_then(|delta| delta.norms).unwrap_or(own)
    }

    /// The delta net that a layer is, if it is one.
    fn delta_of(&self, layer: usize) -> Option<&DeltaNet> {
        self.delta.as_ref().filter(|delta| delta.is_of(layer))
    }

    /// The short convolution that a layer is, if it is one.
    fn conv_of(&self, layer: usize) -> Option<&ShortConv> {
        self.conv.as_ref().filter(|conv| conv.is_of(layer))
    }

    /// Whether a layer has attention.
    fn attends(&self, layer: usize) -> bool {
        self.delta_of(layer).is_none() && self.conv_of(layer).is_none()
    }

    /// A kind of norms as the checkpoint has it.
    fn stored(&self, loader: &Loader<'_>, kind: NormKind) -> NormKind {
        match &self.delta {
            Some(delta) if delta.has_whole_norms(loader, self.layers) => NormKind::Rms { offset: 0.0 },
            _ => kind,
        }
    }

    /// The experts of a layer that has them.
    fn sparse_of(&self, layer: usize) -> Option<&Sparse> {
        self.sparse.as_ref().filter(|sparse| sparse.is_of(layer))
    }

    fn norm(&self, loader: &Loader<'_>, name: &str) -> Result<Norm> {
        Norm::load(loader, name, self.stored(loader, self.norms))
    }
}

/// A dimension twice.
fn doubled(dim: Dim) -> Dim {
    Dim { field: "2 * num_attention_heads * head_dim", size: 2 * dim.size }
}

impl Arguments for Dense {
    fn config(&self) -> &Config {
        &self.config
    }

    fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    fn weights(&self) -> WeightList {
        let config = &self.config;
        let mut list = WeightList::default();
        let table = |name: Name, rows: Dim, bias| ModuleSpec {
            name: name.0.to_owned(),
            rows,
            columns: Some(config.hidden_dim()),
            bias,
            form: Form::Plain,
            gguf: Some(GgufSpec { name: name.1.to_owned(), form: Form::Plain, fused: Vec::new() }),
            stacked: Vec::new(),
        };
        list.push(table(self.embed_tokens, config.vocab_dim(), false));
        if let Some(name) = self.embed_positions {
            list.push(table(name, config.positions_dim(), false));
        }
        (0..config.num_hidden_layers).for_each(|layer| self.list_layer(&mut list, layer));
        let (name, gguf) = self.norm;
        let kind = self.last_norm.unwrap_or(self.norms);
        list.push(norm_spec([name.to_owned(), gguf.to_owned()], config.hidden_dim(), kind));
        if !config.tie_word_embeddings {
            list.push(table(self.lm_head, config.vocab_dim(), true));
        } else if self.tied_bias {
            list.push(ModuleSpec { columns: None, ..table(self.lm_head, config.vocab_dim(), true) });
        }
        self.list_ahead(&mut list);
        list
    }

    fn states(&self) -> Vec<StateSpec> {
        let config = &self.config;
        let (heads, dim) = (config.num_key_value_heads / self.rank.of(), config.head_dim);
        // A window on both sides has nothing behind it before a text ends.
        let behind = |window: Option<usize>| window.filter(|_| !config.bidirectional);
        let of = |(layer, &window): (usize, &Option<usize>)| match &config.latent {
            _ if let Some(delta) = self.delta_of(layer) => delta.state(),
            _ if let Some(conv) = self.conv_of(layer) => conv.state(config),
            Some(latent) => latent.state(),
            None => StateSpec::Kv { heads, k_dim: dim, v_dim: dim, window: behind(window) },
        };
        config.windows.iter().enumerate().map(of).collect()
    }

    fn load(&self, loader: &Loader<'_>) -> Result<Box<dyn Forward>> {
        let layers = (0..self.config.num_hidden_layers)
            .map(|layer| self.load_layer(loader, layer))
            .collect::<Result<_>>()?;
        let kind = self.stored(loader, self.last_norm.unwrap_or(self.norms));
        let norm = Norm::load(loader, self.norm.0, kind)?;
        let embed_norm = self.embed_norm.then(|| Norm::plain(loader, self.config.hidden_size, 1.0));
        let mut vocabulary = Vocabulary::load(loader, self.embed_tokens.0, self.lm_head.0)?;
        if self.root_scale {
            vocabulary = vocabulary.root_scaled();
        }
        let positions = self.embed_positions.map(|name| loader.matrix(name.0)).transpose()?;
        let positions = positions.map(|table| loader.ops.matrix(&table));
        let (parallel, residual) = (self.parallel, self.config.residual_multiplier);
        let states = self.states();
        let summed = parallel && !self.rank.is_alone();
        Ok(Box::new(Decoder {
            states,
            vocabulary,
            embed_norm,
            positions,
            layers,
            norm,
            parallel,
            residual,
            summed,
        }))
    }

    fn of_rank(&self, rank: Rank) -> Result<Box<dyn Arguments>> {
        Ok(Box::new(self.of_rank(rank)?))
    }

    fn rank(&self) -> Rank {
        self.rank
    }

    fn ahead(&self) -> Option<Ahead> {
        self.describe_ahead()
    }

    fn leave_ahead(&mut self) {
        self.ahead = None;
    }

    fn load_ahead(&self, loader: &Loader<'_>, model: &dyn Forward) -> Result<Option<Box<dyn Forward>>> {
        match model.vocabulary() {
            Some(vocabulary) => self.load_layer_ahead(loader, vocabulary.clone()),
            None => Ok(None),
        }
    }
}

/// Which layers rotate, where every `every`-th does not.
pub(super) fn without_every(layers: usize, every: usize) -> Vec<Rotation> {
    let rotates = |layer: usize| every == 0 || !(layer + 1).is_multiple_of(every);
    (0..layers).map(|layer| if rotates(layer) { Rotation::Global } else { Rotation::None }).collect()
}
