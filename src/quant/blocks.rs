//! The block formats of GGUF files: one table, a row a format. A new format is its row, the function that takes its codes
//! apart (`ggml.rs`) and, where it has one, its quantizer (`encode`); readers, writers, reference kernels and the panels of
//! the CPU's kernels all go by the row.

use super::block::{BlockFormat, MAX_ELEMENTS, MAX_GROUPS, OnMlx, Scales, Values};
use super::encode;
use super::ggml::{self, E2M1_DOUBLED, IQ4_VALUES};

macro_rules! block_formats {
    ($($name:ident { $($row:tt)* })*) => {
        /// Block formats of GGUF files, as `ggml` defines them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, non_camel_case_types)]
        pub enum GgmlType { $($name),* }

        impl GgmlType {
            /// Every format, in the order of their declaration.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];
        }

        const ROWS: [BlockFormat; GgmlType::ALL.len()] =
            [$(BlockFormat { name: stringify!($name), $($row)* }),*];
    };
}

use Scales::{E8m0, Half, Super};
use Values::{Min, Offset, Table};

#[rustfmt::skip]
block_formats! {
    Q4_0 { id: 2, block: (32, 18), bits: 4, codes: ggml::nibbles::<2>, values: Offset(8), scales: Half,
           encode: Some(encode::q4_0), mlx: OnMlx::Codes }
    Q4_1 { id: 3, block: (32, 20), bits: 4, codes: ggml::nibbles::<4>, values: Min, scales: Half,
           encode: Some(encode::q4_1), mlx: OnMlx::Codes }
    Q5_0 { id: 6, block: (32, 22), bits: 5, codes: ggml::nibbles_and_mask::<2>, values: Offset(16), scales: Half,
           encode: Some(encode::q5_0), mlx: OnMlx::Codes }
    Q5_1 { id: 7, block: (32, 24), bits: 5, codes: ggml::nibbles_and_mask::<4>, values: Min, scales: Half,
           encode: Some(encode::q5_1), mlx: OnMlx::Codes }
    Q8_0 { id: 8, block: (32, 34), bits: 8, codes: ggml::signed_bytes, values: Offset(128), scales: Half,
           encode: Some(encode::q8_0), mlx: OnMlx::Codes }
    Q2_K { id: 10, block: (256, 84), bits: 2, codes: ggml::q2_k, values: Min,
           scales: Super { group: 16, d: 80, read: ggml::q2_k_integers },
           encode: Some(encode::k::q2_k), mlx: OnMlx::Nearest }
    Q3_K { id: 11, block: (256, 110), bits: 3, codes: ggml::q3_k, values: Offset(4),
           scales: Super { group: 16, d: 108, read: ggml::q3_k_integers },
           encode: Some(encode::signed::q3_k), mlx: OnMlx::Products }
    Q4_K { id: 12, block: (256, 144), bits: 4, codes: ggml::q4_k, values: Min,
           scales: Super { group: 32, d: 0, read: ggml::q4_k_integers },
           encode: Some(encode::k::with_min::<4>), mlx: OnMlx::Codes }
    Q5_K { id: 13, block: (256, 176), bits: 5, codes: ggml::q5_k, values: Min,
           scales: Super { group: 32, d: 0, read: ggml::q4_k_integers },
           encode: Some(encode::k::with_min::<5>), mlx: OnMlx::Codes }
    Q6_K { id: 14, block: (256, 210), bits: 6, codes: ggml::q6_k, values: Offset(32),
           scales: Super { group: 16, d: 208, read: ggml::q6_k_integers },
           encode: Some(encode::signed::q6_k), mlx: OnMlx::Nearest }
    IQ4_NL { id: 20, block: (32, 18), bits: 4, codes: ggml::nibbles::<2>, values: Table(&IQ4_VALUES), scales: Half,
             encode: Some(encode::signed::iq4_nl), mlx: OnMlx::Integers }
    IQ4_XS { id: 23, block: (256, 136), bits: 4, codes: ggml::nibbles::<8>, values: Table(&IQ4_VALUES),
             scales: Super { group: 32, d: 0, read: ggml::iq4_xs_integers },
             encode: Some(encode::signed::iq4_xs), mlx: OnMlx::Integers }
    MXFP4 { id: 39, block: (32, 17), bits: 4, codes: ggml::nibbles::<1>, values: Table(&E2M1_DOUBLED), scales: E8m0,
            encode: None, mlx: OnMlx::Mxfp4 }
}

static TABLE: [BlockFormat; GgmlType::ALL.len()] = ROWS;

/// What decoders and kernels take for granted of a row.
const _: () = {
    let mut i = 0;
    while i < ROWS.len() {
        let row = &ROWS[i];
        let (group, groups) = (row.group(), row.groups());
        assert!(row.block.0 <= MAX_ELEMENTS && row.block.0.is_multiple_of(32), "elements of a block");
        assert!(row.block.0.is_multiple_of(group) && groups <= MAX_GROUPS, "groups of a block");
        assert!(row.bits >= 1 && row.bits <= 8, "bits of a code");
        match row.values {
            Offset(offset) => assert!(offset as u32 == 1 << (row.bits - 1), "an offset is half of the codes"),
            Min => assert!(!matches!(row.scales, E8m0), "e8m0 has no min"),
            Table(_) => assert!(row.bits == 4, "a table has 16 values"),
        }
        let expected = match row.mlx {
            OnMlx::Codes => group == 32 && !matches!(row.values, Table(_)),
            OnMlx::Integers => group == 32 && matches!(row.values, Table(_)),
            OnMlx::Products => matches!((row.values, row.scales), (Offset(_), Super { .. })),
            OnMlx::Mxfp4 => matches!(row.scales, E8m0),
            OnMlx::Nearest => true,
        };
        assert!(expected, "what MLX is given");
        let mut j = 0;
        while j < i {
            assert!(ROWS[j].id != row.id, "two formats have one number");
            j += 1;
        }
        i += 1;
    }
};

impl GgmlType {
    /// Its row of the table.
    pub(crate) const fn row(self) -> &'static BlockFormat {
        &TABLE[self as usize]
    }

    /// Whether the scales of its blocks are in `f16`, which ends at 65,504, and not powers of two.
    pub(super) const fn ends_as_f16(self) -> bool {
        !matches!(self, Self::MXFP4)
    }

    /// The name that `llama.cpp` prints.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Its number in ggml's `enum ggml_type`: that of a tensor in a GGUF file.
    pub const fn id(self) -> u32 {
        self.row().id
    }

    /// The format of a number in a GGUF file.
    pub fn by_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|of| of.id() == id)
    }

    /// Elements and bytes of a block.
    pub const fn block(self) -> (usize, usize) {
        self.row().block
    }

    /// Bits of a code and elements of a group, where `w = q · scale + bias` in groups. The scales and biases of the
    /// K-quants are products, which `f32` holds exactly.
    pub const fn affine(self) -> Option<(u8, usize)> {
        let row = self.row();
        match row.values {
            Offset(_) | Min => Some((row.bits, row.group())),
            Table(_) => None,
        }
    }

    /// Whether there is a quantizer for it.
    pub const fn has_encoder(self) -> bool {
        self.row().encode.is_some()
    }

    /// What MLX is given in its place.
    pub(super) fn mlx(self) -> OnMlx {
        self.row().mlx
    }

    /// Whether the scales and biases of its affine form are numbers of the file in `f16`, times powers of two: those of other
    /// formats are products, which have more bits.
    pub(super) const fn has_f16_scales(self) -> bool {
        matches!(self.row().scales, Half) || matches!(self.row().mlx, OnMlx::Products)
    }
}
