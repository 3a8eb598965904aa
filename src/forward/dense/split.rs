//! Dense decoders over several ranks: each has some heads with their part of the output, and some rows of what the feed-forward part,
//! or every expert, widens to. What they add to the residual stream is summed.

use super::{Dense, HeadNormOf};
use crate::backend::ranks::Rank;
use crate::error::{Error, Result};

impl Dense {
    /// The part of `rank`.
    pub(super) fn of_rank(&self, rank: Rank) -> Result<Self> {
        let config = &self.config;
        let whole = match self.head_norms.map(|norms| norms.of) {
            Some(HeadNormOf::Row) => Some("norms over all heads"),
            Some(HeadNormOf::EachHead) => Some("norms of each head"),
            Some(HeadNormOf::Head) | None => None,
        };
        let parts = [
            (config.latent.is_some(), "latent attention"),
            (self.delta.is_some(), "delta nets"),
            (self.conv.is_some(), "short convolutions"),
            (self.sparse.as_ref().is_some_and(|sparse| sparse.latent.is_some()), "latent experts"),
            (self.gated_queries, "gates between its queries"),
            // What is normed is to be a sum.
            (
                self.parallel && (self.attention_norm.is_some() || self.mlp_out_norm.is_some()),
                "norms of parallel parts",
            ),
            (self.parallel && self.sparse.is_some(), "parallel experts"),
        ];
        let whole = whole.or_else(|| parts.into_iter().find_map(|(there, what)| there.then_some(what)));
        if let Some(what) = whole {
            let got = format!("{} for a model with {what}", rank.of());
            return Err(Error::Option { option: "ranks", got, expected: "one: it is not split yet" });
        }
        let heads = (0..config.num_hidden_layers).map(|layer| (config.heads(layer), "heads"));
        let experts = self.sparse.iter().flat_map(|sparse| {
            let inner = config.experts.unwrap_or(sparse.size).inner;
            let shared = sparse.shared.map(|shared| shared.inner);
            [Some(inner), shared].into_iter().flatten().map(|width| (width, "elements within experts"))
        });
        let sizes = [
            (config.num_key_value_heads, "key/value heads"),
            (config.intermediate_size, "elements within the feed-forward part"),
        ];
        let mut sizes = heads.chain(sizes).chain(experts);
        if let Some((size, what)) = sizes.find(|(size, _)| !size.is_multiple_of(rank.of())) {
            let got = format!("{} for a model with {size} {what}", rank.of());
            let expected = "one, or a number that divides its heads and widths";
            return Err(Error::Option { option: "ranks", got, expected });
        }
        // Guesses of a layer ahead would be computed by the first rank alone.
        Ok(Self { rank, ahead: None, ..self.clone() })
    }
}
