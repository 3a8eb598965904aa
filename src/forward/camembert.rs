//! `camembert`: RoBERTa of French.
//! Martin et al. 2019, "CamemBERT: a Tasty French Language Model".

use super::Family;
use super::xlm_roberta;

pub(super) static FAMILY: Family = Family { model_type: "camembert", ..xlm_roberta::ROBERTA };
