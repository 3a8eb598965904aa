use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;

use super::*;
use crate::forward::Architecture;

/// Zeros of these types and shapes.
type Tensors = Vec<(&'static str, Dtype, Vec<usize>)>;

fn checkpoint(tensors: Tensors) -> Checkpoint {
    filled(tensors.into_iter().map(|(name, dtype, shape)| (name, dtype, shape, 0)).collect())
}

/// Tensors of one byte over and over.
fn filled(tensors: Vec<(&'static str, Dtype, Vec<usize>, u8)>) -> Checkpoint {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape, byte)| vec![*byte; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, dtype, shape, _), bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        })
        .collect();
    let file = ::safetensors::serialize(views, None).unwrap();
    Checkpoint::from_static("model.safetensors", file.leak()).unwrap()
}

fn quantization(fields: &str) -> Quantization {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 1, {fields}}}"#
    );
    let config = Architecture::parse(Path::new("config.json"), config.as_bytes()).unwrap();
    config.config().quantization.clone().unwrap()
}

fn mlx() -> Quantization {
    quantization(
        r#""quantization": {"group_size": 32, "bits": 4, "named": {"bits": 8, "group_size": 64}, "mx": {"mode": "mxfp4"}}"#,
    )
}

fn gptq() -> Quantization {
    quantization(r#""quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}"#)
}

fn awq() -> Quantization {
    quantization(r#""quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}"#)
}

/// What loading the module `w` or `module` as a matrix `[16, 64]` is refused with.
#[track_caller]
fn refused(of: &Quantization, module: &str, tensors: Tensors, expected: &str) {
    let checkpoint = checkpoint(tensors);
    let error = matrix(&checkpoint, of, module, [16, 64]).unwrap_err().to_string();
    assert!(error.starts_with("model.safetensors: tensor ") && error.contains(expected), "{error}");
    assert!(error.len() < 500, "{error}");
    // What only looks at shapes gets by.
    let _ = describe(&checkpoint, of, module, Some(64));
    let _ = stored(&checkpoint, Some(of));
}

#[test]
fn tensors_of_mlx_that_do_not_fit_are_refused() {
    use Dtype::{BF16, F16, F32, I32, U8, U32};
    let w = |words: usize| ("w.weight", U32, vec![16, words]);
    let scales = |dtype, groups: usize| ("w.scales", dtype, vec![16, groups]);
    let biases = |dtype, groups: usize| ("w.biases", dtype, vec![16, groups]);
    let of = mlx();
    refused(&of, "w", vec![w(8), scales(F16, 2)], "w.biases: missing, expected shape [16, 2]");
    refused(&of, "w", vec![w(8), scales(F16, 2), biases(BF16, 2)], "w.biases: type is BF16, expected F16");
    refused(
        &of,
        "w",
        vec![w(8), scales(F16, 2), biases(F16, 1)],
        "w.biases: shape is [16, 1], expected [16, 2]",
    );
    refused(
        &of,
        "w",
        vec![w(8), scales(I32, 2), biases(I32, 2)],
        "w.scales: type I32 and shape [16, 2] beside 8 words",
    );
    refused(&of, "w", vec![w(7), scales(F16, 2), biases(F16, 2)], "fit no format of MLX for 64 columns");
    refused(&of, "w", vec![w(8), scales(F16, 3), biases(F16, 3)], "fit no format of MLX for 64 columns");
    refused(&of, "w", vec![w(8), scales(F16, 0), biases(F16, 0)], "fit no format of MLX for 64 columns");
    refused(&of, "w", vec![scales(F16, 2), biases(F16, 2)], "expected it and w.weight to be matrices");
    let cube = ("w.weight", U32, vec![2, 8, 8]);
    refused(&of, "w", vec![cube, scales(F16, 2)], "expected it and w.weight to be matrices");
    let short = ("w.weight", U32, vec![8, 8]);
    let halves = vec![short, ("w.scales", F16, vec![16, 2]), biases(F16, 2)];
    refused(&of, "w", halves, "w.weight: shape is [8, 8], expected [16, 8]");
    let signed = ("w.weight", I32, vec![16, 8]);
    refused(&of, "w", vec![signed, scales(F16, 2), biases(F16, 2)], "w.weight: type is I32, expected U32");
    refused(&of, "w", vec![w(8), scales(U8, 2), biases(F16, 2)], "w.biases: is there, and mxfp4 has none");
    let global = |count: usize| ("w.global_scale", F32, vec![count]);
    refused(&of, "w", vec![w(8), scales(U8, 2), global(1)], "w.global_scale: is there, and mxfp4 has none");
    refused(&of, "w", vec![w(8), scales(U8, 4), global(2)], "w.global_scale: is F32 [2], expected one F32");
    refused(
        &of,
        "named",
        vec![("named.weight", U32, vec![16, 16])],
        "named.scales: missing, config.json says that",
    );
    let named = vec![("named.weight", U32, vec![16, 8]), ("named.scales", F16, vec![16, 1])];
    refused(&of, "named", named, "named.weight: shape is [16, 8], expected [16, 16]");
    let mx = vec![("mx.weight", U32, vec![16, 8]), ("mx.scales", F16, vec![16, 2])];
    refused(&of, "mx", mx, "mx.scales: type is F16, expected U8, as mode mxfp4 has it");
}

#[test]
fn shapes_of_zero_rows_and_endless_columns_are_refused() {
    let endless = |name| (name, Dtype::U32, vec![0, usize::MAX / 64]);
    refused(&mlx(), "w", vec![endless("w.weight"), endless("w.scales")], "fit no format of MLX");
    let packed = vec![endless("w.qweight"), endless("w.qzeros"), endless("w.scales")];
    refused(&gptq(), "w", packed.clone(), "w.qweight: shape is");
    refused(&awq(), "w", packed, "w.qweight: shape is");
    let rows = |name| (name, Dtype::U32, vec![usize::MAX / 64, 0]);
    let packed = vec![rows("w.qweight"), rows("w.qzeros"), rows("w.scales")];
    refused(&gptq(), "w", packed.clone(), "w.qweight: shape is");
    refused(&awq(), "w", packed, "w.qweight: shape is");
}

#[test]
fn tensors_of_gptq_that_do_not_fit_are_refused() {
    use Dtype::{BF16, F16, F64, I32, U8};
    let weight = ("w.qweight", I32, vec![8, 16]);
    let zeros = ("w.qzeros", I32, vec![2, 2]);
    let scales = ("w.scales", F16, vec![2, 16]);
    let of = gptq();
    refused(
        &of,
        "w",
        vec![("w.qweight", I32, vec![7, 16])],
        "w.qweight: shape is [7, 16], expected [8, 16] of 4 bits or",
    );
    refused(&of, "w", vec![("w.qweight", I32, vec![8, 17])], "w.qweight: shape is [8, 17], expected [8, 16]");
    refused(&of, "w", vec![("w.qweight", F16, vec![8, 16])], "w.qweight: type is F16, expected I32 or U32");
    refused(&of, "w", vec![weight.clone()], "w.scales: missing, the module has a qweight");
    let three = ("w.scales", F16, vec![3, 16]);
    refused(
        &of,
        "w",
        vec![weight.clone(), three],
        "w.scales: shape is [3, 16], expected [G, 16] with 64 columns in G",
    );
    let wide = ("w.scales", F64, vec![2, 16]);
    refused(&of, "w", vec![weight.clone(), wide], "w.scales: type is F64, expected F32, F16 or BF16");
    let narrow = ("w.qzeros", I32, vec![2, 1]);
    refused(
        &of,
        "w",
        vec![weight.clone(), scales.clone(), narrow],
        "w.qzeros: shape is [2, 1], expected [2, 2]",
    );
    let short = ("w.g_idx", I32, vec![63]);
    refused(
        &of,
        "w",
        vec![weight.clone(), scales.clone(), zeros.clone(), short],
        "w.g_idx: shape is [63], expected [64]",
    );
    let one = ("w.g_idx", I32, vec![64]);
    let tensors = vec![weight.clone(), scales.clone(), zeros.clone(), one];
    refused(&of, "w", tensors, "w.g_idx: group 0 has 64 columns, expected 32");
    let huge = filled(vec![
        ("w.qweight", I32, vec![8, 16], 0),
        ("w.scales", BF16, vec![2, 16], 0),
        ("w.qzeros", I32, vec![2, 2], 0),
        ("w.g_idx", I32, vec![64], 255),
    ]);
    let error = matrix(&huge, &of, "w", [16, 64]).unwrap_err().to_string();
    assert!(error.ends_with("tensor w.g_idx: group -1 is not one of 2"), "{error}");
    assert!(matrix(&checkpoint(vec![("w.weight", U8, vec![1])]), &of, "w", [16, 64]).unwrap().is_none());
}

#[test]
fn tensors_of_awq_that_do_not_fit_are_refused() {
    use Dtype::{F16, I32};
    let weight = ("w.qweight", I32, vec![64, 2]);
    let scales = ("w.scales", F16, vec![2, 16]);
    let of = awq();
    refused(&of, "w", vec![("w.qweight", I32, vec![64, 3])], "w.qweight: shape is [64, 3], expected [64, 2]");
    refused(&of, "w", vec![weight.clone()], "w.scales: missing");
    let zeros = ("w.qzeros", I32, vec![2, 3]);
    refused(&of, "w", vec![weight.clone(), scales, zeros], "w.qzeros: shape is [2, 3], expected [2, 2]");
    let error = matrix(&checkpoint(vec![weight]), &of, "w", [15, 64]).unwrap_err().to_string();
    assert!(error.contains("a matrix of [15, 64] has not whole words of 8 rows"), "{error}");
}

/// GPTQ's first layout stores zero points less one, the second as they are; files without any mean the middle code.
#[test]
fn zero_points_follow_the_layout() {
    let values = |of: &Quantization, zeros: Option<u8>| {
        let mut tensors =
            vec![("w.qweight", Dtype::I32, vec![8, 16], 0x99), ("w.scales", Dtype::F16, vec![2, 16], 0x3c)];
        tensors.extend(zeros.map(|byte| ("w.qzeros", Dtype::I32, vec![2, 2], byte)));
        let weight = matrix(&filled(tensors), of, "w", [16, 64]).unwrap().unwrap();
        let values = weight.to_f32();
        assert!(values.iter().all(|&w| w == values[0]));
        // The scale is 0x3c3c in every place.
        values[0] / half::f16::from_bits(0x3c3c).to_f32()
    };
    let v2 =
        quantization(r#""quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}"#);
    assert_eq!(values(&gptq(), Some(0x77)), 1.0);
    assert_eq!(values(&v2, Some(0x77)), 2.0);
    assert_eq!(values(&gptq(), None), 1.0);
    assert_eq!(values(&gptq(), Some(0xee)), -6.0);
}
