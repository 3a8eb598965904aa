//! `glm4_moe`: GLM 4.5 to 4.7: Llama that rotates half of a head, with experts behind the first layers, one of which every token
//! goes to. GLM Team 2025, "GLM-4.5: Agentic, Reasoning, and Coding (ARC) Foundation Models".

use super::dense::{AheadNames, Dense};
use super::gguf_members::Members;
use super::list::InMlx;
use super::sparse::{SharedExpert, Sparse, experts};
use super::{Arguments, Family, Gguf, GgufExperts, GgufNorm, glm4, qwen3};
use crate::backend::ops::{ExpertGroups, Router, Scores};
use crate::config::rope::RopeRules;
use crate::config::{Config, Shared};
use crate::error::Result;
use crate::json::{Fields, Value};
use crate::weights::Checkpoint;

pub(super) static FAMILY: Family = Family {
    model_type: "glm4_moe",
    shared: Shared {
        kv_heads: Some(8),
        context: 131_072,
        eps: 1e-5,
        rope: RopeRules::partial(0.5),
        bos: None,
        eos: &[],
        ..Shared::LLAMA
    },
    arguments,
    gguf: Some(Gguf {
        experts: Some(GgufExperts { reads: &["nextn_predict_layers"], ..EXPERTS }),
        members,
        entries: None,
        ..Gguf::plain("glm4moe")
    }),
    prefixes: &[],
};

/// What files say of experts of this kind.
pub(super) const EXPERTS: GgufExperts = GgufExperts {
    count: "n_routed_experts",
    shared: Some("n_shared_experts"),
    dense: Some("first_k_dense_replace"),
    scale: Some("routed_scaling_factor"),
    groups: Some(["n_group", "topk_group"]),
    norm: GgufNorm::Said("norm_topk_prob"),
    ..GgufExperts::SIGMOID
};

fn arguments(fields: &Fields<'_>, config: Config) -> Result<Box<dyn Arguments>> {
    let normed = fields.flag("use_qk_norm")?.unwrap_or(false);
    let sparse = described(fields, &config, [Some(128), Some(8), Some(1), Some(1)], true)?;
    let sparse = grouped(fields, sparse, [1, 1], 2)?;
    Dense {
        mlp_norm: Some(("post_attention_layernorm", "post_attention_norm")),
        head_norms: normed.then_some(qwen3::HEAD_NORMS),
        sparse: Some(sparse),
        ahead: Some(AheadNames::BEHIND),
        ..Dense::llama(config)
    }
    .boxed()
}

fn members(members: &mut Members<'_>, checkpoint: &Checkpoint) -> Result<()> {
    glm4::refuse_sections(members)?;
    own_layers(members)?;
    // Of a file with the layer alone that guesses further tokens there is no first one.
    const NORM: &str = ".attn_q_norm.weight";
    let normed = checkpoint.tensors().any(|tensor| tensor.name().ends_with(NORM));
    members.put("use_qk_norm", NORM, Value::Bool(normed));
    Ok(())
}

/// The last layers of a file may predict further tokens: they take no part in this one's. How many those are.
pub(super) fn own_layers(members: &mut Members<'_>) -> Result<u64> {
    let (more, all) = (members.key("nextn_predict_layers"), members.uint("num_hidden_layers"));
    let own = match members.metadata.uint(&more)?.unwrap_or(0) {
        count if count < all => all - count,
        _ => {
            return Err(members.metadata.refuse(&more, format!("less than {all}, the number of all layers")));
        }
    };
    members.put("num_hidden_layers", members.key("block_count"), Value::UInt(own));
    Ok(all - own)
}

/// Experts that a sigmoid and a bias choose, behind dense layers, with one or more that every token goes to. `absent` is
/// what the absence of their number, of those that a token goes to, of shared ones and of dense layers means, and `normalise` of
/// `norm_topk_prob`.
pub(super) fn described(
    fields: &Fields<'_>,
    config: &Config,
    [count, used, shared, dense]: [Option<usize>; 4],
    normalise: bool,
) -> Result<Sparse> {
    const SHARED: &str = "n_shared_experts";
    let required = |name: &str, absent: Option<usize>| fields.size_or(name, absent, 1 << 16);
    let absent = [required("n_routed_experts", count)?, required("num_experts_per_tok", used)?, 1408];
    let size = experts(fields, ["n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"], absent)?;
    let layers = config.num_hidden_layers;
    let softmax = Sparse::softmax(layers, size, config.hidden_act);
    let first = fields.size("first_k_dense_replace", 0, 1 << 16)?.or(dense).unwrap_or(0);
    let shared = match shared {
        Some(absent) => fields.size(SHARED, 0, 1 << 10)?.unwrap_or(absent),
        None => fields.required(SHARED, 0, 1 << 10)?,
    };
    let normalise = fields.flag("norm_topk_prob")?.unwrap_or(normalise).then_some(1e-20);
    let scale = fields.number("routed_scaling_factor", -1e6, 1e6)?.unwrap_or(1.0) as f32;
    let routing = Router { scores: Scores::Sigmoid, normalise, scale, ..softmax.routing };
    Ok(Sparse {
        layers: (0..layers).map(|layer| layer >= first).collect(),
        bias: Some(("mlp.gate.e_score_correction_bias", "exp_probs_b")),
        routing,
        shared: (shared > 0).then_some(SharedExpert {
            names: SharedExpert::PLURAL,
            inner: shared * size.inner,
            field: "n_shared_experts * moe_intermediate_size",
            gate: None,
        }),
        in_mlx: InMlx { exact: &["mlp.gate"], ..InMlx::default() },
        ..softmax
    })
}

/// The same chosen from groups, as [`groups`] has them.
pub(super) fn grouped(
    fields: &Fields<'_>,
    sparse: Sparse,
    absent: [usize; 2],
    best: usize,
) -> Result<Sparse> {
    let names = ["n_group", "topk_group", "num_experts_per_tok"];
    let groups = groups(fields, names, [sparse.size.count, sparse.size.used], absent, best)?;
    Ok(Sparse { routing: Router { groups, ..sparse.routing }, ..sparse })
}

/// Groups of experts, of which a token goes to `each`, that are rated by the sum of their `best`; `names` are the fields of their
/// number, of those that may be chosen from, and of `each`, and `absent` is what the absence of the first two means.
pub(super) fn groups(
    fields: &Fields<'_>,
    [of_count, of_used, of_each]: [&str; 3],
    [experts, each]: [usize; 2],
    absent: [usize; 2],
    best: usize,
) -> Result<Option<ExpertGroups>> {
    let count = fields.size_or(of_count, Some(absent[0]), 256)?;
    let used = fields.size_or(of_used, Some(absent[1]), 256)?;
    if count == 1 {
        return Ok(None);
    }
    if !experts.is_multiple_of(count) || experts / count < best {
        let expected = format!("groups of {best} or more that make up {experts} experts");
        return Err(fields.error(of_count, count, expected));
    }
    if used > count {
        return Err(fields.error(of_used, used, format!("at most {count}, the number of groups")));
    }
    if each > used * (experts / count) {
        let expected = format!("at most those of {used} groups");
        return Err(fields.error(of_each, each, expected));
    }
    Ok(Some(ExpertGroups { count, used, best }))
}
