//! Quantizers of block formats against MLX and the `gguf` package, bit by bit.

use std::path::Path;

use backstop::quant::{Format, GgmlType};
use backstop::tensor::DType;
use safetensors::SafeTensors;

const TYPES: [(DType, &str); 3] = [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];

fn planes(format: Format, rows: usize, columns: usize) -> [Vec<u8>; 3] {
    let widths = format.row_bytes(columns);
    std::array::from_fn(|plane| vec![0; rows * widths.get(plane).copied().unwrap_or(0)])
}

#[test]
fn every_encoder_has_the_bits_of_its_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant/encoders.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    let mut check = |format: Format, dtype: DType, name: &str, parts: &[&str]| {
        let values = file.tensor(&format!("{name}.values")).unwrap();
        let (rows, columns) = (values.shape()[0], values.shape()[1]);
        let mut got = planes(format, rows, columns);
        assert_eq!(format.encode(dtype, columns, values.data(), got.each_mut().map(|p| &mut p[..])), None);
        for (plane, part) in parts.iter().enumerate() {
            let expected = file.tensor(&format!("{format}.{name}.{part}")).unwrap();
            let width = expected.data().len() / rows;
            for (row, expected) in expected.data().chunks_exact(width).enumerate() {
                let got = &got[plane][row * width..][..width];
                assert_eq!(got, expected, "{format} of {name}, {part} of row {row}");
            }
            compared += expected.data().len();
        }
    };
    for (dtype, name) in TYPES {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group in [32, 64, 128] {
                let format = Format::Affine { bits, group, scales: dtype };
                check(format, dtype, name, &["codes", "scales", "biases"]);
            }
        }
        check(Format::Mxfp4, dtype, name, &["codes", "scales"]);
    }
    for of in [GgmlType::Q8_0, GgmlType::Q4_0] {
        check(Format::Ggml(of), DType::F32, "f32", &["blocks"]);
    }
    assert!(compared > 60_000, "{compared} bytes compared");
}

#[test]
fn values_that_no_code_stands_for_are_named_by_their_row() {
    let format = Format::Affine { bits: 4, group: 32, scales: DType::F32 };
    // Enough rows for several threads.
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut values = vec![0.5_f32; 300 * 32];
        values[290 * 32 + 7] = wrong;
        values[3 * 32] = wrong;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut out = planes(format, 300, 32);
        let got = format.encode(DType::F32, 32, &bytes, out.each_mut().map(|plane| &mut plane[..]));
        assert_eq!(got, Some(3));
    }
}

/// MLX's exponent wraps there, to scales of 2^100.
#[test]
fn tiny_groups_of_mxfp4_are_zeros_and_not_noise() {
    let mut out = planes(Format::Mxfp4, 1, 32);
    let bytes: Vec<u8> = (0..32).flat_map(|i| (i as f32 * 1e-40).to_le_bytes()).collect();
    let planes = out.each_mut().map(|plane| &mut plane[..]);
    assert_eq!(Format::Mxfp4.encode(DType::F32, 32, &bytes, planes), None);
    assert!(out[1][0] <= 1, "scale {}", out[1][0]);
}
