//! `roberta`: BERT whose positions are counted from behind that of padding, with two kinds of segments of which texts have the first.
//! Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach".

use super::Family;
use super::xlm_roberta;
use crate::config::Shared;

pub(super) static FAMILY: Family = Family {
    model_type: "roberta",
    shared: Shared { vocab: Some(50_265), ..xlm_roberta::SHARED },
    ..xlm_roberta::ROBERTA
};
