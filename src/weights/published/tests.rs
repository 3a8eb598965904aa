use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;

use super::*;
use crate::quant::{MlxFormat, MlxMode, MlxQuantization, Quantization};
use crate::tensor::Bytes;
use crate::weights::quantized;

fn of(by: Publisher, block: Option<[usize; 2]>) -> Quantization {
    Quantization::Published(Published { by, block, powers: false })
}

/// Every matrix of the fixture, how it is declared, and what it becomes.
fn cases() -> Vec<(&'static str, Quantization, Format)> {
    let (ours, theirs) = (Publisher::Transformers, Publisher::CompressedTensors);
    let affine = |bits, group, scales| Format::Affine { bits, group, scales };
    let (fp8, fp4) = (|group| Format::Fp8 { group }, Format::Fp4 { group: 16 });
    let blocks = |by| of(by, Some([8, 64]));
    let mlx = MlxFormat { mode: MlxMode::Nvfp4, bits: 4, group: 16 };
    vec![
        ("fp8-blocks", blocks(ours), fp8(64)),
        ("fp8-bf16", blocks(ours), fp8(64)),
        ("fp8-powers", blocks(ours), Format::Mxfp8),
        ("fp8-whole", of(ours, None), fp8(128)),
        ("fp8-bytes", of(ours, Some([8, 32])), Format::Mxfp8),
        ("fp8-ends", blocks(ours), fp8(16)),
        ("pack4", of(theirs, None), affine(4, 32, DType::BF16)),
        ("pack4-zeros", of(theirs, None), affine(4, 32, DType::F32)),
        ("pack3-zeros", of(theirs, None), affine(3, 64, DType::F32)),
        ("pack8-zeros", of(theirs, None), affine(8, 64, DType::F32)),
        ("pack5", of(theirs, None), affine(5, 32, DType::F32)),
        ("pack2-zeros", of(theirs, None), affine(2, 32, DType::F32)),
        ("int8-zeros", of(theirs, None), affine(8, 64, DType::F32)),
        ("int8-whole", of(theirs, None), affine(8, 64, DType::BF16)),
        ("float-channel", of(theirs, None), fp8(64)),
        ("float-tensor", of(theirs, None), fp8(64)),
        ("float-blocks", of(theirs, Some([8, 48])), fp8(16)),
        ("nvfp4-global", of(theirs, None), fp4),
        ("nvfp4-normal", of(theirs, None), fp4),
        ("mxfp4", of(theirs, None), Format::Mxfp4),
        ("modelopt-nvfp4", of(Publisher::ModelOpt, None), fp4),
        ("modelopt-fp8", of(Publisher::ModelOpt, None), fp8(64)),
        ("modelopt-blocks", of(Publisher::ModelOpt, Some([32, 32])), fp8(32)),
        ("mlx-nvfp4", Quantization::Mlx(MlxQuantization { default: mlx, modules: BTreeMap::new() }), fp4),
    ]
}

fn fixture() -> Checkpoint {
    let path = "tests/fixtures/quant/published.safetensors";
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The values that the packages decode, the sign of zeros and the payload of NaNs apart.
fn expected(checkpoint: &Checkpoint, name: &str) -> ([usize; 2], Vec<f32>) {
    let values = format!("{name}.values");
    let shape = checkpoint.matrix_shape(&values).unwrap();
    (shape, checkpoint.get(&values, &shape).unwrap().to_f32())
}

#[test]
fn every_form_decodes_to_the_values_of_its_package() {
    let checkpoint = fixture();
    let mut values = 0;
    for (name, of, format) in cases() {
        let (shape, expected) = expected(&checkpoint, name);
        let weight = quantized::matrix(&checkpoint, &of, name, shape).unwrap().unwrap();
        assert_eq!(weight.format(), format, "{name}");
        let got = weight.to_f32();
        for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
            let rounding = if name == "pack5" { 32.0 * f32::EPSILON * expected.abs() + 1e-6 } else { 0.0 };
            let same = got == expected || got.is_nan() && expected.is_nan();
            assert!(same || (got - expected).abs() <= rounding, "{name} {i}: {got:e}, expected {expected:e}");
        }
        values += got.len();
        // What is told of it beforehand, by shapes and types alone.
        let told = if name == "fp8-powers" { Format::Fp8 { group: 64 } } else { format };
        assert_eq!(quantized::describe(&checkpoint, &of, name, None), Some((told, shape)), "{name}");
    }
    assert!(values > 20_000, "{values} values");
}

/// Parts of rows are made of the blocks that they lie in.
#[test]
fn rows_of_a_matrix_have_the_scales_of_their_blocks() {
    let checkpoint = fixture();
    for (name, of, _) in cases() {
        let (shape, expected) = expected(&checkpoint, name);
        let weight = quantized::matrix(&checkpoint, &of, name, shape).unwrap().unwrap();
        let whole = weight.to_f32();
        let part = weight.rows("part", 3..shape[0]).to_f32();
        assert_eq!(part.len(), expected.len() - 3 * shape[1], "{name}");
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(part.iter().zip(&whole[3 * shape[1]..]).all(same), "{name}");
    }
}

/// Bytes, and how often somebody has asked for them.
#[derive(Debug)]
struct Counted(Vec<u8>, AtomicUsize);

impl Bytes for Counted {
    fn bytes(&self) -> &[u8] {
        self.1.fetch_add(1, Ordering::Relaxed);
        &self.0
    }
}

/// A matrix keeps no scales but those of its file, which are read with its rows.
#[test]
fn scales_are_read_when_rows_are_made() {
    let scales = [0.5, -2.0].map(f16::from_f32).map(f16::to_le_bytes).concat();
    let counted = Arc::new(Counted(scales, AtomicUsize::new(0)));
    let scales = Plane::new(Arc::clone(&counted) as Arc<dyn Bytes>, 0..4);
    let reads = || counted.1.swap(0, Ordering::Relaxed);
    reads();
    let weight = Integers {
        shape: [2, 32],
        bits: 4,
        group: 32,
        // All codes are 9, and 8 is zero.
        codes: Plane::owned(vec![0x99; 32]),
        stride: 16,
        is_signed: false,
        grid: Grid { scales, dtype: Some(DType::F16), dims: [2, 1], block: [1, 32] },
        zeros: Zeros::Middle,
        order: None,
    };
    let weight = weight.weight("w".to_owned(), DType::F16, (PathBuf::from("f"), "s".to_owned()));
    assert_eq!(reads(), 0);
    assert_eq!(weight.rows("last", 1..2).to_f32(), [-2.0; 32]);
    assert!(reads() > 0);
    assert_eq!(weight.to_f32(), [[0.5; 32], [-2.0; 32]].concat());
    assert!(reads() > 0);
}

type Tensors = Vec<(&'static str, Dtype, Vec<usize>)>;

/// A tensor's name, type, shape and bytes.
type Filled = (String, Dtype, Vec<usize>, Vec<u8>);

fn file_of(tensors: &[Filled]) -> Checkpoint {
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    let file = ::safetensors::serialize(views, None).unwrap();
    Checkpoint::from_static("model.safetensors", file.leak()).unwrap()
}

fn zeros(tensors: Tensors) -> Checkpoint {
    let filled = tensors.into_iter().map(|(name, dtype, shape)| {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        (name.to_owned(), dtype, shape, bytes)
    });
    file_of(&filled.collect::<Vec<Filled>>())
}

/// Whether a scale is a power of two is chance; the experts of a stack have one format.
#[test]
fn one_scale_decides_no_format() {
    let scales = [0.3_f32, 0.5, 0.7];
    let mut tensors: Vec<Filled> = Vec::new();
    for (expert, scale) in scales.iter().enumerate() {
        // 1 and 2 in turn.
        let codes = [0x38_u8, 0x40].repeat(64);
        tensors.push((format!("{expert}.weight"), Dtype::F8_E4M3, vec![2, 64], codes));
        let scale = scale.to_le_bytes().to_vec();
        tensors.push((format!("{expert}.weight_scale"), Dtype::F32, vec![1], scale));
    }
    let checkpoint = file_of(&tensors);
    let by = Publisher::CompressedTensors;
    let weight = |of: &Quantization, expert: usize, format: Format| {
        let name = expert.to_string();
        let weight = quantized::matrix(&checkpoint, of, &name, [2, 64]).unwrap().unwrap();
        assert_eq!(weight.format(), format, "{expert}");
        assert_eq!(quantized::describe(&checkpoint, of, &name, None), Some((format, [2, 64])), "{expert}");
        assert_eq!(weight.to_f32(), [scales[expert], 2.0 * scales[expert]].repeat(64), "{expert}");
    };
    for expert in 0..3 {
        weight(&of(by, None), expert, Format::Fp8 { group: 64 });
    }
    // Where the configuration says so, they are.
    weight(&Quantization::Published(Published { by, block: None, powers: true }), 1, Format::Mxfp8);
}

/// Whether scales times zero points are numbers of a narrow type is chance, too.
#[test]
fn scales_of_integers_have_the_type_that_their_form_says() {
    let theirs = of(Publisher::CompressedTensors, None);
    for (zeros, dtype) in [([Some(7_u8), Some(8)], DType::F32), ([None; 2], DType::F16)] {
        let mut tensors: Vec<Filled> = Vec::new();
        let scales = [0.3, 0.5].map(f16::from_f32);
        for (expert, (scale, zero)) in scales.into_iter().zip(zeros).enumerate() {
            // All codes are 9.
            tensors.push((format!("{expert}.weight_packed"), Dtype::I32, vec![2, 8], vec![0x99; 64]));
            let scale = scale.to_le_bytes().repeat(4);
            tensors.push((format!("{expert}.weight_scale"), Dtype::F16, vec![2, 2], scale));
            if let Some(zero) = zero {
                let words = [zero << 4 | zero, 0, 0, 0].repeat(2);
                tensors.push((format!("{expert}.weight_zero_point"), Dtype::I32, vec![1, 2], words));
            }
        }
        let checkpoint = file_of(&tensors);
        for (expert, (scale, zero)) in scales.into_iter().zip(zeros).enumerate() {
            let (name, format) = (expert.to_string(), Format::Affine { bits: 4, group: 32, scales: dtype });
            let weight = quantized::matrix(&checkpoint, &theirs, &name, [2, 64]).unwrap().unwrap();
            assert_eq!(weight.format(), format);
            let told = quantized::describe(&checkpoint, &theirs, &name, Some(64));
            assert_eq!(told, Some((format, [2, 64])));
            let value = f32::from(9 - zero.unwrap_or(8)) * scale.to_f32();
            assert_eq!(weight.to_f32(), [value; 128]);
        }
    }
    // 1000 times 128 is none of F16.
    let scale = f16::from_f32(1000.0).to_le_bytes().to_vec();
    let checkpoint = file_of(&[
        ("w.weight".to_owned(), Dtype::I8, vec![2, 64], vec![1; 128]),
        ("w.weight_scale".to_owned(), Dtype::F16, vec![1], scale),
    ]);
    let weight = quantized::matrix(&checkpoint, &theirs, "w", [2, 64]).unwrap().unwrap();
    let error = weight.held().unwrap_err().to_string();
    assert!(error.contains("tensor w.weight_scale: a scale times the code of zero is over 65504"), "{error}");
}

#[track_caller]
fn refused(of: &Quantization, tensors: Tensors, expected: &str) {
    let checkpoint = zeros(tensors);
    let error = quantized::matrix(&checkpoint, of, "w", [16, 64]).unwrap_err().to_string();
    assert!(error.starts_with("model.safetensors: tensor ") && error.contains(expected), "{error}");
    assert!(error.len() < 500, "{error}");
    let _ = quantized::describe(&checkpoint, of, "w", Some(64));
    let _ = quantized::stored(&checkpoint, Some(of));
}

/// What only looks at shapes gets by tensors without rows.
#[test]
fn endless_columns_are_refused() {
    let endless = |name, dtype| (name, dtype, vec![0, usize::MAX / 64]);
    for (by, kind) in [(Publisher::Transformers, Dtype::F8_E4M3), (Publisher::ModelOpt, Dtype::I8)] {
        let scales = if by == Publisher::Transformers { "w.weight_scale_inv" } else { "w.weight_scale" };
        let tensors = vec![endless("w.weight", kind), endless(scales, Dtype::F32)];
        refused(&of(by, Some([128, 128])), tensors, "w.weight: shape is [0, ");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F32, I8, I32, U8};
    let ours = of(Publisher::Transformers, Some([8, 32]));
    let codes = ("w.weight", F8_E4M3, vec![16, 64]);
    let scales = |shape: &[usize]| ("w.weight_scale_inv", F32, shape.to_vec());
    refused(&ours, vec![codes.clone()], "w.weight_scale_inv: missing, w.weight is F8_E4M3");
    refused(
        &ours,
        vec![codes.clone(), scales(&[2, 3])],
        "shape is [2, 3], expected [2, 2] of blocks [8, 32], [16, G] of 64 columns in G equal groups",
    );
    refused(&ours, vec![codes.clone(), scales(&[3, 1, 1])], "shape is [3, 1, 1], expected [2, 2] of blocks");
    let wrong = ("w.weight_scale_inv", I32, vec![2, 2]);
    refused(
        &ours,
        vec![codes, wrong],
        "w.weight_scale_inv: type is I32, expected F32, F16, BF16, F8_E8M0 or U8",
    );
    let short = ("w.weight", F8_E4M3, vec![8, 64]);
    refused(&ours, vec![short, scales(&[2, 2])], "w.weight: shape is [8, 64], expected [16, 64]");
    let other = ("w.weight", F8_E5M2, vec![16, 64]);
    refused(&ours, vec![other, scales(&[2, 2])], "type is F8_E5M2, expected F8_E4M3, U8, I8 or I32");
    let dense = ("w.weight", BF16, vec![16, 64]);
    refused(&ours, vec![dense, scales(&[2, 2])], "w.weight_scale_inv: is there, and w.weight is BF16");

    let theirs = of(Publisher::CompressedTensors, None);
    let words = |width: usize| ("w.weight_packed", I32, vec![16, width]);
    let groups = ("w.weight_scale", BF16, vec![16, 2]);
    refused(
        &theirs,
        vec![words(7), groups.clone()],
        "shape is [16, 7], expected [16, W], words of 2, 3, 4, 5, 6 or 8",
    );
    let points = ("w.weight_zero_point", I32, vec![3, 2]);
    refused(
        &theirs,
        vec![words(8), groups.clone(), points],
        "w.weight_zero_point: shape is [3, 2], expected [2, 2]",
    );
    let nibbles = ("w.weight_packed", U8, vec![16, 32]);
    let rough = ("w.weight_scale", BF16, vec![16, 4]);
    refused(&theirs, vec![nibbles.clone(), rough], "w.weight_scale: type is BF16, expected F8_E4M3");
    let fine = ("w.weight_scale", F8_E4M3, vec![16, 4]);
    let whole = ("w.weight_global_scale", F32, vec![2]);
    refused(
        &theirs,
        vec![nibbles.clone(), fine.clone(), whole],
        "w.weight_global_scale: is F32 [2], expected one F32",
    );

    refused(
        &theirs,
        vec![nibbles, fine.clone()],
        "w.weight_global_scale: missing, w.weight_scale is F8_E4M3",
    );

    let nvidia = of(Publisher::ModelOpt, None);
    let bytes = ("w.weight", U8, vec![16, 32]);
    refused(
        &nvidia,
        vec![bytes.clone(), fine.clone()],
        "w.weight_scale_2: missing, w.weight_scale is F8_E4M3",
    );
    let smooth = ("w.pre_quant_scale", BF16, vec![64]);
    refused(
        &nvidia,
        vec![bytes, fine, smooth],
        "w.pre_quant_scale: is there, and this version has no form for it",
    );
    let signed = ("w.weight", I8, vec![16, 63]);
    let rows = ("w.weight_scale", F32, vec![16]);
    refused(&nvidia, vec![signed, rows], "w.weight: shape is [16, 63], expected [16, 64]");
}
