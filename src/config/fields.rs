//! The fields of a configuration are those of any JSON object of a model's files.

pub(crate) use crate::json::Fields;
