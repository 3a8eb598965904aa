//! What a model has to fit: the memory that there is, in the form that its weights have there.

use crate::quant::{Format, GgmlType};

/// What a model has to fit, and what would run it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fit {
    /// Bytes that a model may take, where that is known.
    pub memory: Option<u64>,
    /// Whether MLX would run it.
    pub mlx: bool,
    /// Bytes that it may take on the CPU, where that runs what MLX has no room for.
    pub cpu: Option<u64>,
}

/// Keys, values and activations of a short context.
const CONTEXT: u64 = 256 << 20;

impl Fit {
    /// What a model has to fit that MLX has no room for, where the CPU then runs it.
    pub fn on_cpu(&self) -> Option<Self> {
        let memory = self.cpu.filter(|_| self.mlx)?;
        Some(Self { memory: Some(memory), mlx: false, cpu: None })
    }

    /// Whether a model of so many bytes runs in this memory, with room for a few thousand tokens. `gguf` is the type of a GGUF
    /// file, which may take more memory than it has bytes.
    pub fn holds(&self, bytes: u64, gguf: Option<&str>) -> bool {
        self.memory.is_none_or(|memory| self.needs(bytes, gguf) <= memory)
    }

    /// Bytes that such a model takes at least when it runs: weights, and an eighth of them and 256 MiB for a short context.
    pub fn needs(&self, bytes: u64, gguf: Option<&str>) -> u64 {
        let weights = match gguf {
            Some(variant) if self.mlx => on_mlx(bytes, variant),
            _ => bytes,
        };
        weights.saturating_add(weights / 8).saturating_add(CONTEXT)
    }

    /// Bytes of about the largest model that [`Self::holds`] in the form of its file, where the memory is known.
    pub fn most(&self) -> Option<u64> {
        self.memory.map(|memory| memory.saturating_sub(CONTEXT) / 9 * 8)
    }
}

/// What the types of a GGUF file's name are: `Q4_K_M` is `Q4_K` with parts in `Q6_K`.
fn types(variant: &str) -> Option<(GgmlType, bool)> {
    let of = |name: &str| GgmlType::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name));
    // Some of the matrices of a file of `Q2_K` are in other types, too.
    if let Some(kind) = of(variant) {
        return Some((kind, kind == GgmlType::Q2_K));
    }
    let (name, size) = variant.rsplit_once('_')?;
    ["S", "M", "L", "XL"].iter().any(|of| size.eq_ignore_ascii_case(of)).then_some(())?;
    Some((of(name)?, true))
}

/// Bytes that a file of so many, of this type, takes on MLX.
fn on_mlx(bytes: u64, variant: &str) -> u64 {
    // A multiple of every block and of every group.
    const COLUMNS: usize = 256;
    let Some((kind, mixed)) = types(variant) else { return bytes };
    let grown = |bytes: u64, kind: GgmlType| {
        let row = |format: Format| format.row_bytes(COLUMNS).iter().sum::<usize>() as u128;
        let format = Format::Ggml(kind);
        // Activations are `f16` beside blocks of GGUF.
        let kept = format.kept_on_mlx(COLUMNS, true).unwrap_or(format);
        u64::try_from(u128::from(bytes) * row(kept) / row(format)).unwrap_or(u64::MAX)
    };
    // Of llama.cpp's Q4_K_M and Q5_K_M of 8 billion weights a quarter of the bytes is in Q6_K.
    let other = if mixed { bytes / 4 } else { 0 };
    grown(bytes - other, kind).saturating_add(grown(other, GgmlType::Q6_K))
}

/// Whether MLX computes such a file with codes of more bits than it has.
pub(super) fn is_widened(variant: &str) -> bool {
    types(variant).is_some_and(|(kind, _)| match Format::Ggml(kind).kept_on_mlx(256, true) {
        Some(Format::Affine { bits, .. }) => kind.affine().is_none_or(|(own, _)| own < bits),
        _ => false,
    })
}

/// Whether matrices of this type are read; of what no table of types has, nobody knows.
pub(super) fn is_type(variant: &str) -> bool {
    types(variant).is_some() || ["BF16", "F16", "FP16", "F32"].contains(&variant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_model_fits_and_a_larger_one_does_not() {
        for memory in [1_u64 << 30, 8_000_000_001, u64::MAX] {
            let fit = Fit { memory: Some(memory), ..Fit::default() };
            let most = fit.most().unwrap();
            let holds = |bytes| fit.holds(bytes, Some("Q2_K"));
            assert!(holds(most) && (memory == u64::MAX || !holds(most + 18)), "{memory}: {most}");
        }
        assert_eq!(Fit { memory: Some(1 << 20), ..Fit::default() }.most(), Some(0));
        assert_eq!(Fit::default().most(), None);
    }

    /// Bits of a weight in the file and on MLX: those of the table in docs/architecture.md.
    #[test]
    fn what_grows_on_mlx_is_counted_as_it_is_there() {
        // Codes, and scale and bias of a group in `f16` or, where they are products, in `f32`.
        for (variant, file, mlx) in [
            ("Q8_0", 8.5, 9.0),
            ("Q4_0", 4.5, 5.0),
            ("Q4_1", 5.0, 5.0),
            ("Q5_0", 5.5, 6.0),
            ("Q4_K", 4.5, 6.0),
            ("Q5_K", 5.5, 7.0),
            ("Q6_K", 6.5625, 10.0),
            ("Q3_K", 3.4375, 8.25),
            ("iq4_nl", 4.5, 9.0),
            ("MXFP4", 4.25, 4.25),
            ("BF16", 16.0, 16.0),
            ("whatever", 1.0, 1.0),
        ] {
            let bytes = 1_000_000_000_u64;
            let expected = (bytes as f64 * mlx / file) as u64;
            assert!(on_mlx(bytes, variant).abs_diff(expected) <= 1, "{variant}: {}", on_mlx(bytes, variant));
        }
        // Three quarters grow by a third, one by a half.
        assert_eq!(on_mlx(4_000, "Q4_K_M"), 4_000 + 1_523);
        assert_eq!(on_mlx(4_000, "Q4_K_XL"), on_mlx(4_000, "Q4_K_S"));
        assert_eq!(on_mlx(u64::MAX, "Q2_K"), u64::MAX);

        let (cpu, mlx) = (
            Fit { memory: Some(7_000_000_000), ..Fit::default() },
            Fit { memory: Some(7_000_000_000), mlx: true, ..Fit::default() },
        );
        let holds = |bytes, variant| [cpu, mlx].map(|fit| fit.holds(bytes, variant));
        assert_eq!(holds(5_000_000_000, Some("Q4_K_M")), [true, false]);
        assert_eq!(holds(5_000_000_000, Some("Q4_0")), [true, true]);
        assert_eq!(holds(5_000_000_000, None), [true, true]);
        assert_eq!(cpu.needs(8_000, Some("Q2_K")), 9_000 + CONTEXT);
    }

    #[test]
    fn types_say_what_becomes_of_them() {
        for (variant, widened) in [
            ("Q4_K_M", false),
            ("Q5_K_S", false),
            ("Q8_0", false),
            ("MXFP4", false),
            ("Q6_K", true),
            ("Q3_K_M", true),
            ("Q2_K", true),
            ("IQ4_XS", true),
            ("F16", false),
        ] {
            assert!(is_type(variant), "{variant}");
            assert_eq!(is_widened(variant), widened, "{variant}");
        }
        for variant in ["IQ2_XXS", "TQ1_0", "NVFP4", "Q8_K_XXL", "stories", "Q4", ""] {
            assert!(!is_type(variant) && !is_widened(variant), "{variant}");
        }
    }
}
