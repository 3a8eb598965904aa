//! The text of `llama4`: attention within chunks in the layers that rotate, queries that grow with their positions in the others, and
//! experts that a token goes to weighed by a sigmoid. Meta AI 2025, "The Llama 4 herd".

use super::dense::{Dense, Pairs, PlainHeadNorms, without_every};
use super::sparse::{ExpertNames, SharedExpert, Sparse, experts};
use super::{Arguments, Family};
use crate::backend::ops::{Router, Scores};
use crate::config::rope::RopeRules;
use crate::config::{Config, Names, QueryScaling, Rotation, Shared};
use crate::error::Result;
use crate::json::{Fields, Value, quote};
use crate::weights::Form;

pub(super) static FAMILY: Family = Family {
    model_type: "llama4_text",
    shared: Shared {
        names: Names { intermediate_size: "intermediate_size_mlp", ..Names::LLAMA },
        kv_heads: Some(8),
        head_dim: Some(128),
        context: 131_072,
        eps: 1e-5,
        rope: RopeRules::theta(500_000.0),
        ..Shared::LLAMA
    },
    arguments,
    gguf: None,
    prefixes: super::TEXT_PART,
};

const PLAIN_HEAD_NORMS: PlainHeadNorms = PlainHeadNorms { after_rope: true, queries: 1.0 };

fn arguments(fields: &Fields<'_>, mut config: Config) -> Result<Box<dyn Arguments>> {
    let layers = config.num_hidden_layers;
    config.rotations = rotations(fields, layers)?;
    config.windows = chunks(fields, &config)?;
    config.sliding_window = config.windows.iter().flatten().max().copied();
    config.chunked = true;
    if fields.flag("attn_temperature_tuning")?.unwrap_or(true) {
        config.query_scaling = Some(QueryScaling {
            beta: fields.number("attn_scale", 0.0, 1e6)?.unwrap_or(0.1),
            floor: fields.size_or("floor_scale", Some(8192), 1 << 30)?,
            offset: 1,
            unrotated: true,
        });
    }
    let names = ["num_local_experts", "num_experts_per_tok", "intermediate_size"];
    let size = experts(fields, names, [16, 1, 8192])?;
    let inner = size.inner;
    if [2 * inner, inner].contains(&config.hidden_size) {
        let expected = "neither hidden_size nor its half: shapes would not tell rows from columns";
        return Err(fields.error("intermediate_size", inner, expected));
    }
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let sparse = Sparse {
        layers: sparse_layers(fields, layers)?,
        router: ("feed_forward.router", "ffn_gate_inp"),
        routing: Router { scores: Scores::SigmoidOfChosen, ..softmax.routing },
        names: ExpertNames {
            each: "feed_forward.experts",
            fused: "feed_forward.experts.gate_up_proj",
            fused_down: "feed_forward.experts.down_proj",
            stacks: "feed_forward.experts",
            ..ExpertNames::PLAIN
        },
        turned: Some((
            Form::Transposed,
            ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
        )),
        on_input: true,
        shared: Some(SharedExpert {
            names: [
                ("feed_forward.shared_expert.gate_proj", "ffn_gate_shexp"),
                ("feed_forward.shared_expert.up_proj", "ffn_up_shexp"),
                ("feed_forward.shared_expert.down_proj", "ffn_down_shexp"),
            ],
            inner,
            field: "intermediate_size",
            gate: None,
        }),
        ..softmax
    };
    Dense {
        pairs: Pairs::Everywhere,
        plain_head_norms: fields.flag("use_qk_norm")?.unwrap_or(true).then_some(PLAIN_HEAD_NORMS),
        mlp: super::dense::MlpNames::Gated([
            ("feed_forward.gate_proj", "ffn_gate"),
            ("feed_forward.up_proj", "ffn_up"),
            ("feed_forward.down_proj", "ffn_down"),
        ]),
        sparse: Some(sparse),
        ..Dense::llama(config)
    }
    .boxed()
}

/// A list of ones and zeros, one for each layer; none where it is absent, null or empty.
fn ones(fields: &Fields<'_>, name: &str, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(list) = fields.list(name)?.filter(|list| !list.is_empty()) else { return Ok(None) };
    if list.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(name, format!("a list of {}", list.len()), expected));
    }
    let one = |(i, value): (usize, &Value)| match value {
        Value::UInt(one @ 0..=1) => Ok(*one == 1),
        other => Err(fields.error(format!("{name}[{i}]"), other, "0 or 1")),
    };
    list.iter().enumerate().map(one).collect::<Result<_>>().map(Some)
}

/// Which layers rotate.
fn rotations(fields: &Fields<'_>, layers: usize) -> Result<Vec<Rotation>> {
    let every = fields.size_or("no_rope_layer_interval", Some(4), 1 << 20)?;
    let rotation = |rotates: bool| if rotates { Rotation::Global } else { Rotation::None };
    Ok(match ones(fields, "no_rope_layers", layers)? {
        // A 1 is a layer that rotates, whatever the name says.
        Some(rotate) => rotate.into_iter().map(rotation).collect(),
        None => without_every(layers, every),
    })
}

/// The chunk of each layer: of those that rotate, where `layer_types` does not say.
fn chunks(fields: &Fields<'_>, config: &Config) -> Result<Vec<Option<usize>>> {
    const TYPES: &str = "layer_types";
    let chunk = match fields.is_null("attention_chunk_size") {
        true => None,
        false => Some(fields.size_or("attention_chunk_size", Some(8192), 1 << 30)?),
    };
    let layers = config.num_hidden_layers;
    let Some(types) = fields.list(TYPES)? else {
        let of = |rotation: &Rotation| chunk.filter(|_| *rotation != Rotation::None);
        return Ok(config.rotations.iter().map(of).collect());
    };
    if types.len() != layers {
        let expected = format!("a list of num_hidden_layers, {layers}");
        return Err(fields.error(TYPES, format!("a list of {}", types.len()), expected));
    }
    let of = |(i, kind): (usize, &Value)| match (kind, chunk) {
        (Value::String(kind), _) if kind == "full_attention" => Ok(None),
        (Value::String(kind), Some(chunk)) if kind == "chunked_attention" => Ok(Some(chunk)),
        (Value::String(kind), _) => {
            let expected = "full_attention, or chunked_attention with attention_chunk_size";
            Err(fields.error(format!("{TYPES}[{i}]"), quote(kind), expected))
        }
        (other, _) => {
            Err(fields.error(format!("{TYPES}[{i}]"), other, "full_attention or chunked_attention"))
        }
    };
    types.iter().enumerate().map(of).collect()
}

/// The layers that have experts: those that `moe_layers` names, else each `interleave_moe_layer_step`-th.
fn sparse_layers(fields: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let step = fields.size_or("interleave_moe_layer_step", Some(1), 1 << 20)?;
    Ok(match fields.tokens("moe_layers")? {
        Some(own) => (0..layers).map(|layer| own.contains(&(layer as u32))).collect(),
        None => (0..layers).map(|layer| (layer + 1).is_multiple_of(step)).collect(),
    })
}
