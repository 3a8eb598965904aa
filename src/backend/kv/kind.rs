//! The types that K and V may be kept in.

use std::fmt;
use std::str::FromStr;

use super::GROUP;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// What a KV cache is kept in.
///
/// The quantized types round K and V, for each token and head, in groups of [`GROUP`] elements (the last one shorter where
/// the head is no multiple of it) as `x ≈ code · scale + bias`: the codes are those of `mx.quantize` on values in `f32`, scale and
/// bias its own rounded to `f16`. An element is off by at most half a scale, and what rounding the scale and the bias adds,
/// `2⁻¹¹ (code · |scale| + |bias|)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Codes of 8 bits: 9 bits an element with their scales.
    Q8,
    /// Codes of 4 bits: 5 bits an element with their scales.
    Q4,
}

impl KvType {
    /// Every type, the widest first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8, Self::Q4];

    /// Their names, as typed.
    pub const NAMES: [&str; 5] = ["f32", "f16", "bf16", "q8", "q4"];

    /// The name that users see and type.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The element type, where elements are kept one by one.
    pub const fn float(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::Q8 | Self::Q4 => None,
        }
    }

    /// Bits of a code, where groups share a scale.
    pub const fn bits(self) -> Option<u8> {
        match self {
            Self::Q8 => Some(8),
            Self::Q4 => Some(4),
            Self::F32 | Self::F16 | Self::BF16 => None,
        }
    }

    /// Bytes of one token's head of `head_dim` elements.
    pub(super) const fn head_bytes(self, head_dim: usize) -> usize {
        let (scale, bias) = (DType::F16.size(), DType::F16.size());
        match (self.float(), self.bits()) {
            (Some(float), _) => head_dim * float.size(),
            // Codes of four bits are kept eight to a word.
            (_, Some(4)) => head_dim.next_multiple_of(8) / 2 + head_dim.div_ceil(GROUP) * (scale + bias),
            _ => head_dim + head_dim.div_ceil(GROUP) * (scale + bias),
        }
    }
}

impl From<DType> for KvType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Option {
            option: "kv_type",
            got: name.to_owned(),
            expected: "f32, f16, bf16, q8 or q4",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused_with_the_list() {
        for kind in KvType::ALL {
            assert_eq!(kind.to_string().parse::<KvType>().unwrap(), kind);
        }
        let error = "q5".parse::<KvType>().unwrap_err().to_string();
        assert!(error.contains("q5") && error.contains("f32, f16, bf16, q8 or q4"), "{error}");
    }

    #[test]
    fn a_head_takes_what_its_codes_and_scales_do() {
        let bytes = |head_dim| KvType::ALL.map(|kind| kind.head_bytes(head_dim));
        assert_eq!(bytes(64), [256, 128, 128, 72, 40]);
        // Three groups, the last of 16; two groups, the last of 1, in 5 words.
        assert_eq!(bytes(80), [320, 160, 160, 92, 52]);
        assert_eq!(bytes(33), [132, 66, 66, 41, 28]);
    }
}
