//! Dense decoders over several ranks: each has some heads with their part of the output, and some rows of what the feed-forward part
//! widens to. What they add to the residual stream is summed.

use super::{Dense, HeadNormOf};
use crate::backend::ranks::Rank;
use crate::error::{Error, Result};

impl Dense {
    /// The part of `rank`.
    pub(super) fn of_rank(&self, rank: Rank) -> Result<Self> {
        let config = &self.config;
        let refuse = |what: String| {
            let got = format!("{} for a model with {what}", rank.of());
            Err(Error::Option {
                option: "ranks",
                got,
                expected: "one, or a number that divides its heads and widths",
            })
        };
        let uneven = |size: usize| !size.is_multiple_of(rank.of());
        let whole = match self.head_norms.map(|norms| norms.of) {
            Some(HeadNormOf::Row) => Some("norms over all heads"),
            Some(HeadNormOf::EachHead) => Some("norms of each head"),
            Some(HeadNormOf::Head) | None => None,
        };
        let parts = [
            (config.latent.is_some(), "latent attention"),
            (self.delta.is_some(), "delta nets"),
            (self.conv.is_some(), "short convolutions"),
            (self.sparse.is_some(), "experts"),
            (self.gated_queries, "gates between its queries"),
            (self.sinks.is_some(), "sinks"),
        ];
        let whole = whole.or_else(|| parts.into_iter().find_map(|(there, what)| there.then_some(what)));
        if let Some(what) = whole {
            let got = format!("{} for a model with {what}", rank.of());
            return Err(Error::Option { option: "ranks", got, expected: "one: it is not split yet" });
        }
        let heads =
            (0..config.num_hidden_layers).map(|layer| config.heads(layer)).find(|&heads| uneven(heads));
        match heads {
            Some(heads) => return refuse(format!("{heads} heads")),
            None if uneven(config.num_key_value_heads) => {
                return refuse(format!("{} key/value heads", config.num_key_value_heads));
            }
            None if uneven(config.intermediate_size) => {
                return refuse(format!("an intermediate size of {}", config.intermediate_size));
            }
            None => {}
        }
        // Guesses of a layer ahead would be computed by the first rank alone.
        Ok(Self { rank, ahead: None, ..self.clone() })
    }
}
