//! The rotary embedding of a configuration: `rope_theta` and `rope_scaling` of transformers 4, or `rope_parameters` of
//! transformers 5, resolved as `RotaryEmbeddingConfigMixin` does.

use crate::error::Result;
use crate::json::Fields;
use crate::json::{Value, quote};

/// Rotary position embeddings of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies' geometric series.
    pub theta: f64,
    /// Rotated elements of each head, an even number; the elements after them are left as they are.
    pub dims: usize,
    /// How the frequencies are stretched to a longer context.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched to a longer context. Optional knobs are resolved: no field is left open.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    None,
    /// `linear`: all are divided by `factor` (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// `dynamic`: past `original` tokens the base grows with the prompt (dynamic NTK).
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// Tokens up to which nothing changes: `max_position_embeddings`.
        original: usize,
    },
    /// `llama3`: low frequencies are divided by `factor`, those between the two wavelengths are blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Tokens of the training before it was extended.
        original: usize,
    },
    /// `yarn` (arXiv:2309.00071).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Tokens of the training before it was extended.
        original: usize,
        /// Frequencies that turn more often than this within `original` tokens stay.
        beta_fast: f64,
        /// Frequencies that turn less often than this are divided in full.
        beta_slow: f64,
        /// Whether the blended range is rounded outwards to whole pairs.
        truncate: bool,
        /// What cos and sin are multiplied by; resolved from `attention_factor`, `mscale`, `mscale_all_dim`, `factor`.
        attention_factor: f32,
    },
    /// `proportional`: pairs from `turning` on stand still; the others turn as they do in a whole head.
    Proportional {
        /// Pairs that turn, the first of each head.
        turning: usize,
        /// The divisor of their frequencies.
        factor: f64,
    },
    /// A divisor per frequency, which a GGUF file holds in place of `llama3`'s parameters.
    Factors {
        /// The divisors, `[dims / 2]`.
        factors: Vec<f32>,
    },
    /// `longrope` (arXiv:2402.13753): a divisor per frequency, one list for short prompts and one for long ones.
    LongRope {
        /// Divisors for prompts up to `original` tokens, `[dims / 2]`.
        short_factor: Vec<f32>,
        /// Divisors for longer prompts, `[dims / 2]`.
        long_factor: Vec<f32>,
        /// Tokens of the training before it was extended.
        original: usize,
        /// What cos and sin are multiplied by; resolved from `attention_factor` and `factor`.
        attention_factor: f32,
    },
}

/// Bounds of factors: whatever lies between gives finite frequencies.
const FACTOR: (f64, f64) = (1e-6, 1e6);
/// Bounds of theta, for the same reason.
const THETA: (f64, f64) = (1e-6, 1e12);
const CONTEXT: usize = 1 << 27;

/// What a family's configuration class in transformers does with the fields of rotary embeddings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeRules {
    /// The part of a head that rotates where `partial_rotary_factor` is absent; none where the family does not read that field
    /// and rotates whole heads.
    pub partial: Option<f64>,
    /// Another name of `partial_rotary_factor`, outside of the parameters.
    pub partial_name: &'static str,
    /// The base where it is absent.
    pub theta: f64,
    /// Another name of `rope_theta`, outside of the parameters.
    pub theta_name: &'static str,
    /// Whether the part that rotates has a width of its own, of which the factor of a part says nothing more.
    pub own_width: bool,
    /// Whether parameters may be given by type of layer, which the family reads by [`of_layer_type`].
    pub by_layer_type: bool,
    /// Whether positions may have sections, for pictures: of text, they are all the same.
    pub sections: bool,
    /// Whether pairs of a head may stand still, which the type `proportional` says.
    pub proportional: bool,
    /// Phi 3's: longrope is the one way to stretch, under three names, and the original context is 4096 where none is named.
    pub longrope_only: bool,
}

impl RopeRules {
    /// Whole heads, by the common names.
    pub const WHOLE: Self = Self {
        partial: None,
        partial_name: "partial_rotary_factor",
        theta: 10_000.0,
        theta_name: "rope_theta",
        own_width: false,
        by_layer_type: false,
        sections: false,
        proportional: false,
        longrope_only: false,
    };

    /// A part of each head.
    pub const fn partial(part: f64) -> Self {
        Self { partial: Some(part), ..Self::WHOLE }
    }

    /// Whole heads with another base.
    pub const fn theta(theta: f64) -> Self {
        Self { theta, ..Self::WHOLE }
    }
}

/// Kinds of layers that transformers 5 may name parameters for.
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// The rotary embedding of all layers.
pub(crate) fn resolve(
    fields: &Fields<'_>,
    rules: RopeRules,
    head_dim: usize,
    context: usize,
) -> Result<Rope> {
    let params = parameters(fields)?;
    if let Some(params) = &params {
        for layer_type in LAYER_TYPES {
            if let Some(value) = params.get(layer_type).filter(|_| !rules.by_layer_type) {
                return Err(params.error(layer_type, value, "one set of parameters for all layers"));
            }
        }
    }
    resolve_with(fields, params.as_ref(), rules, head_dim, context)
}

/// The object that describes rotary embeddings, where there is one.
pub(crate) fn parameters<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>> {
    match fields.object("rope_scaling")? {
        Some(params) => Ok(Some(params)),
        None => fields.object("rope_parameters"),
    }
}

/// The rotary embedding that `rope_parameters.<layer_type>` describes; none where parameters are not given by type of layer.
pub(crate) fn of_layer_type(
    fields: &Fields<'_>,
    layer_type: &str,
    rules: RopeRules,
    head_dim: usize,
    context: usize,
) -> Result<Option<Rope>> {
    let Some(params) = parameters(fields)? else { return Ok(None) };
    match params.get(layer_type) {
        Some(Value::Object(members)) => {
            let own = params.within(members);
            resolve_with(fields, Some(&own), rules, head_dim, context).map(Some)
        }
        Some(other) => Err(params.error(layer_type, other, "an object")),
        None => Ok(None),
    }
}

fn resolve_with(
    fields: &Fields<'_>,
    params: Option<&Fields<'_>>,
    rules: RopeRules,
    head_dim: usize,
    context: usize,
) -> Result<Rope> {
    let theta = match params.map(|p| p.number("rope_theta", THETA.0, THETA.1)).transpose()?.flatten() {
        Some(theta) => theta,
        None => fields.number(rules.theta_name, THETA.0, THETA.1)?.unwrap_or(rules.theta),
    };
    let kind = kind(params, rules)?;
    let dims = dims(fields, params, rules, head_dim, kind)?;
    let scaling = match params {
        None => RopeScaling::None,
        Some(params) => {
            scaling(fields, params, rules, kind, Rope { theta, dims, scaling: RopeScaling::None }, context)?
        }
    };
    Ok(Rope { theta, dims, scaling })
}

/// `rope_type`, or `type` as it was first called, in its present name.
fn kind(params: Option<&Fields<'_>>, rules: RopeRules) -> Result<&'static str> {
    let Some(params) = params else { return Ok("default") };
    let (name, kind) = match params.string("rope_type")? {
        Some(kind) => ("rope_type", kind),
        None => ("type", params.string("type")?.unwrap_or("default")),
    };
    if rules.longrope_only {
        return match kind {
            "default" => Ok("default"),
            "longrope" | "su" | "yarn" => Ok("longrope"),
            _ => Err(params.error(name, quote(kind), "default or longrope (of phi3)")),
        };
    }
    // The text of a picture's model has one position in place of three.
    if kind == "mrope" && rules.sections {
        return Ok("default");
    }
    if kind == "proportional" && rules.proportional {
        return Ok("proportional");
    }
    const KINDS: [&str; 6] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];
    KINDS
        .into_iter()
        .find(|known| *known == kind)
        .ok_or_else(|| params.error(name, quote(kind), format!("one of {}", KINDS.join(", "))))
}

/// The rotated elements of a head.
fn dims(
    fields: &Fields<'_>,
    params: Option<&Fields<'_>>,
    rules: RopeRules,
    head_dim: usize,
    kind: &str,
) -> Result<usize> {
    const NAME: &str = "partial_rotary_factor";
    let partial = match params.map(|p| p.number(NAME, 1e-6, 1.0)).transpose()?.flatten() {
        Some(part) => Some(part),
        None => fields.number(rules.partial_name, 1e-6, 1.0)?,
    };
    let part = match rules.partial {
        // Of these the part that turns is another question.
        _ if rules.own_width || kind == "proportional" => 1.0,
        Some(default) => partial.unwrap_or(default),
        // transformers' default rotary embedding of these families does not read the field.
        _ if kind == "default" => 1.0,
        _ => match partial {
            Some(part) if part != 1.0 => {
                return Err(fields.error(NAME, part, "1.0: this family rotates whole heads"));
            }
            _ => 1.0,
        },
    };
    let dims = (head_dim as f64 * part) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        let got = format!("{head_dim}, of which {dims} elements are rotated");
        return Err(fields.error("head_dim", got, "an even number of rotated elements, at least 2"));
    }
    Ok(dims)
}

fn scaling(
    fields: &Fields<'_>,
    params: &Fields<'_>,
    rules: RopeRules,
    kind: &str,
    rope: Rope,
    context: usize,
) -> Result<RopeScaling> {
    let Rope { theta, dims, .. } = rope;
    let factor = || params.number("factor", FACTOR.0, FACTOR.1);
    let required = |name: &str| {
        let expected = || format!("a number from {:?} to {:?} (of rope_type {kind})", FACTOR.0, FACTOR.1);
        params.number(name, FACTOR.0, FACTOR.1)?.ok_or_else(|| params.missing(name, expected()))
    };
    Ok(match kind {
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "proportional" => {
            let part = params.number("partial_rotary_factor", 1e-6, 1.0)?.unwrap_or(1.0);
            let turning = (part * dims as f64 / 2.0) as usize;
            RopeScaling::Proportional { turning, factor: factor()?.unwrap_or(1.0) }
        }
        "dynamic" => {
            if dims < 4 {
                return Err(fields.error(
                    "head_dim",
                    dims,
                    "at least 4 rotated elements (of rope_type dynamic)",
                ));
            }
            // A factor below 1 would make the base negative, and then not a number, for some prompt.
            let factor = required("factor")?;
            if factor < 1.0 {
                return Err(params.error(
                    "factor",
                    factor,
                    "a number from 1.0 to 1000000.0 (of rope_type dynamic)",
                ));
            }
            RopeScaling::Dynamic { factor, original: context }
        }
        "llama3" => {
            let (low_freq_factor, high_freq_factor) =
                (required("low_freq_factor")?, required("high_freq_factor")?);
            if high_freq_factor <= low_freq_factor {
                let expected = format!("a number above low_freq_factor, {low_freq_factor:?}");
                return Err(params.error("high_freq_factor", high_freq_factor, expected));
            }
            let original = original(fields, params, rules, context)?;
            RopeScaling::Llama3 { factor: required("factor")?, low_freq_factor, high_freq_factor, original }
        }
        "yarn" => {
            if theta <= 1.0 {
                return Err(fields.error("rope_theta", theta, "a number above 1.0 (of rope_type yarn)"));
            }
            let original = original(fields, params, rules, context)?;
            let factor = factor()?.unwrap_or(context as f64 / original as f64);
            let beta = |name, default| -> Result<f64> {
                Ok(params.number(name, 0.0, FACTOR.1)?.filter(|beta| *beta != 0.0).unwrap_or(default))
            };
            RopeScaling::Yarn {
                factor,
                original,
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                truncate: params.flag("truncate")?.unwrap_or(true),
                attention_factor: yarn_attention(params, factor)?,
            }
        }
        "longrope" => {
            let original = original(fields, params, rules, context)?;
            let factor = factor()?.unwrap_or(context as f64 / original as f64);
            let attention_factor = match params.number("attention_factor", FACTOR.0, FACTOR.1)? {
                Some(given) => given,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            let list = |name: &str| {
                let expected = format!("a list of {} numbers, one for each rotated pair", dims / 2);
                match params.numbers(name, FACTOR.0, FACTOR.1)? {
                    Some(list) if list.len() == dims / 2 => Ok(list),
                    Some(list) => Err(params.error(name, format!("a list of {}", list.len()), expected)),
                    None => Err(params.missing(name, expected)),
                }
            };
            RopeScaling::LongRope {
                short_factor: list("short_factor")?,
                long_factor: list("long_factor")?,
                original,
                attention_factor: attention_factor as f32,
            }
        }
        _ => RopeScaling::None,
    })
}

/// The context before it was extended. The outer field has precedence, and phi3's is always there.
fn original(fields: &Fields<'_>, params: &Fields<'_>, rules: RopeRules, context: usize) -> Result<usize> {
    const NAME: &str = "original_max_position_embeddings";
    let inner = params.size(NAME, 2, CONTEXT)?;
    let outer = fields.size(NAME, 2, CONTEXT)?.or(rules.longrope_only.then_some(4096));
    Ok(outer.or(inner).unwrap_or(context).max(2))
}

fn yarn_attention(params: &Fields<'_>, factor: f64) -> Result<f32> {
    if let Some(given) = params.number("attention_factor", FACTOR.0, FACTOR.1)? {
        return Ok(given as f32);
    }
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let given =
        |name| Ok::<_, crate::error::Error>(params.number(name, 0.0, FACTOR.1)?.filter(|m| *m != 0.0));
    Ok(match (given("mscale")?, given("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => scale(mscale) / scale(all),
        _ => scale(1.0),
    } as f32)
}
