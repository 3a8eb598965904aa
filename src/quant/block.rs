//! What is said of a block format: a row of the table in `blocks.rs`.

/// Elements of the largest block.
pub(crate) const MAX_ELEMENTS: usize = 256;
/// Groups of a block, at most.
pub(crate) const MAX_GROUPS: usize = 16;

/// Makes a block's bytes of its values, which are finite, and of what the squares of their errors are multiplied with.
pub(crate) type Encode = fn(values: &[f32], weights: Option<&[f32]>, block: &mut [u8]);

/// How blocks of one format are read, written and computed with.
pub(crate) struct BlockFormat {
    /// What `llama.cpp` calls it.
    pub(super) name: &'static str,
    /// Its number in ggml's `enum ggml_type`.
    pub(super) id: u32,
    /// Elements and bytes of a block.
    pub(super) block: (usize, usize),
    /// Bits of a code.
    pub(crate) bits: u8,
    /// Takes the codes of a block apart, one a byte, in the order of its elements.
    pub(crate) codes: fn(block: &[u8], codes: &mut [u8]),
    /// What the codes stand for.
    pub(crate) values: Values,
    /// What they are multiplied with.
    pub(crate) scales: Scales,
    /// The quantizer, where there is one.
    pub(crate) encode: Option<Encode>,
    /// What MLX computes it with.
    pub(super) mlx: OnMlx,
}

/// What a code stands for, before it is multiplied with its group's scale.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values {
    /// Itself less this.
    Offset(u8),
    /// Itself; the group's min is added after the multiplication.
    Min,
    /// The integer at this place.
    Table(&'static [i8; 16]),
}

/// The scales of a block's groups, and their mins where its [`Values`] have them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scales {
    /// One group. An `f16` at byte 0, its min at byte 2.
    Half,
    /// One group. An e8m0 at byte 0; of e2m1, whose table is doubled.
    E8m0,
    /// Groups of `group` elements with integers `scale` and `min`: their scales are `d · scale`, and what is added is
    /// `-dmin · min`. `d` is an `f16` at the byte that is named so, `dmin` at the next two.
    Super {
        group: usize,
        d: usize,
        /// The integers, signed where there are no mins.
        read: fn(block: &[u8]) -> Integers,
    },
}

/// Integers of the groups of a super-block, those that are there first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Integers {
    pub scales: [u8; MAX_GROUPS],
    pub mins: [u8; MAX_GROUPS],
}

/// What MLX, which has no kernels for blocks but for mxfp4's values, is given in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnMlx {
    /// Its own format of the same values.
    Mxfp4,
    /// Affine groups with the same codes.
    Codes,
    /// Affine groups whose codes of eight bits are the table's integers.
    Integers,
    /// Affine groups of 128 whose codes of eight bits are the products of code and scale.
    Products,
    /// Affine groups of the nearest values in eight bits.
    Nearest,
}

impl BlockFormat {
    /// Elements that share a scale.
    pub(crate) const fn group(&self) -> usize {
        match self.scales {
            Scales::Half | Scales::E8m0 => self.block.0,
            Scales::Super { group, .. } => group,
        }
    }

    /// Groups of a block.
    pub(crate) const fn groups(&self) -> usize {
        self.block.0 / self.group()
    }

    /// The integers that its codes stand for, where they are in a table.
    pub(crate) const fn table(&self) -> Option<&'static [i8; 16]> {
        match self.values {
            Values::Table(table) => Some(table),
            Values::Offset(_) | Values::Min => None,
        }
    }

    /// Whether a group has a min.
    pub(crate) const fn has_min(&self) -> bool {
        matches!(self.values, Values::Min)
    }
}
