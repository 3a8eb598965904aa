//! Decoders of block formats against MLX and the `gguf` package, value by value.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use backstop::quant::repack::{MlxForm, repack};
use backstop::quant::{Format, GgmlType, Plane, QuantWeight, affine};
use backstop::tensor::{Bytes, DType};
use safetensors::SafeTensors;

fn fixture<R>(read: impl FnOnce(&SafeTensors<'_>) -> R) -> R {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant/decoders.safetensors");
    read(&SafeTensors::deserialize(&std::fs::read(path).unwrap()).unwrap())
}

fn planes(parts: &[&[u8]]) -> Vec<Plane> {
    let plane = |bytes: &&[u8]| Plane::new(Arc::new(bytes.to_vec()) as Arc<dyn Bytes>, 0..bytes.len());
    parts.iter().map(plane).collect()
}

/// The matrix `name` of the fixture, with its expected values.
fn matrix(file: &SafeTensors<'_>, name: &str, format: Format) -> (QuantWeight, Vec<f32>) {
    let values = file.tensor(&format!("{name}.values")).unwrap();
    let shape: [usize; 2] = values.shape().try_into().unwrap();
    let parts: &[&str] = match format {
        Format::Ggml(_) => &["blocks"],
        Format::Affine { .. } => &["codes", "scales", "biases"],
        _ => &["codes", "scales"],
    };
    let parts: Vec<&[u8]> =
        parts.iter().map(|part| file.tensor(&format!("{name}.{part}")).unwrap().data()).collect();
    let values = values.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (QuantWeight::new(name, format, shape, planes(&parts)), values)
}

/// Every format of the fixture with the name that it has there.
fn all() -> Vec<(String, Format)> {
    let types = [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];
    let mut all: Vec<(String, Format)> =
        GgmlType::ALL.iter().map(|&of| (of.name().to_owned(), Format::Ggml(of))).collect();
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let (scales, dtype) = types[usize::from(u16::from(bits) + group / 32) % 3];
            all.push((format!("affine{bits}_g{group}_{dtype}"), Format::Affine { bits, group, scales }));
        }
    }
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Nvfp4].map(|format| (format.to_string(), format)));
    all
}

/// Equal to the bit, but for the payload of a NaN.
fn assert_equal(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(same, "{name}: element {i} is {got:e}, expected {expected:e}");
    }
}

#[test]
fn every_format_decodes_to_the_bits_of_its_reference() {
    fixture(|file| {
        let mut values = 0;
        for (name, format) in all() {
            let (weight, expected) = matrix(file, &name, format);
            assert_equal(&name, &weight.to_f32(), &expected);
            values += expected.len();
        }
        assert!(values > 40_000, "{values} values");
    });
}

#[test]
fn codes_scales_and_biases_make_the_values() {
    fixture(|file| {
        for (name, format) in all() {
            let Some((bits, group)) = format.affine() else { continue };
            let (weight, expected) = matrix(file, &name, format);
            let columns = weight.shape()[1];
            let groups = columns / group;
            let (mut codes, mut scales, mut biases) =
                (vec![0; columns], vec![0.0; groups], vec![0.0; groups]);
            for (row, expected) in expected.chunks_exact(columns).enumerate() {
                weight.affine_row(row, &mut codes, &mut scales, &mut biases);
                for (i, (&code, &expected)) in codes.iter().zip(expected).enumerate() {
                    assert!(u32::from(code) < 1 << bits, "{name}: code {code}");
                    let (scale, bias) = (f64::from(scales[i / group]), f64::from(biases[i / group]));
                    let exact = f64::from(code) * scale + bias;
                    // The reference rounds the product and the sum, each by at most half a unit in the last place.
                    let product = (f64::from(code) * scale).abs();
                    let bound = (product + exact.abs()) * 2.0_f64.powi(-24) * 1.01 + 1e-45;
                    assert!(
                        (exact - f64::from(expected)).abs() <= bound,
                        "{name}: {exact:e} for {expected:e}"
                    );
                }
            }
        }
    });
}

#[test]
fn packing_inverts_unpacking() {
    fixture(|file| {
        for (name, format) in all() {
            let Format::Affine { bits, .. } = format else { continue };
            let (weight, _) = matrix(file, &name, format);
            let mut codes = vec![0; weight.shape()[1]];
            weight.codes(1, &mut codes);
            let mut stream = vec![0; weight.row_bytes(0, 1).len()];
            affine::pack(bits, &codes, &mut stream);
            assert_eq!(stream, weight.row_bytes(0, 1), "{name}");
        }
    });
}

#[test]
fn parts_of_a_matrix_are_its_rows() {
    fixture(|file| {
        for (name, format) in all() {
            let (weight, expected) = matrix(file, &name, format);
            let part: Range<usize> = 1..weight.shape()[0];
            let columns = weight.shape()[1];
            assert_equal(&name, &weight.rows("part", part).to_f32(), &expected[columns..]);
        }
    });
}

#[test]
fn values_come_in_the_order_of_the_input() {
    fixture(|file| {
        let (name, format) = ("Q8_0", Format::Ggml(GgmlType::Q8_0));
        let (weight, expected) = matrix(file, name, format);
        let columns = weight.shape()[1];
        // A permutation that is not its own inverse.
        let order: Vec<u32> = (0..columns).map(|j| ((j * 3 + 1) % columns) as u32).collect();
        let weight = weight.with_order(order.clone().into());
        let values = weight.to_f32();
        for (got, stored) in values.chunks_exact(columns).zip(expected.chunks_exact(columns)) {
            for (j, &column) in order.iter().enumerate() {
                assert_eq!(got[column as usize].to_bits(), stored[j].to_bits());
            }
        }
    });
}

/// What MLX has no kernel for is turned into what it has.
#[test]
fn repacked_values_are_equal_or_within_half_a_step() {
    fixture(|file| {
        let mut equal = 0;
        for (name, format) in all() {
            let (weight, expected) = matrix(file, &name, format);
            let columns = weight.shape()[1];
            let (to, exact) = match format.on_mlx(columns).unwrap() {
                MlxForm::Native => continue,
                MlxForm::Equal(to) => (to, true),
                MlxForm::Nearest(to) => (to, false),
            };
            let repacked = repack(&weight, to, false);
            assert_eq!((repacked.format(), repacked.shape()), (to, weight.shape()), "{name}");
            let got = repacked.to_f32();
            for (i, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                // The largest scale of the small floats is infinite in MLX alone.
                if exact
                    && (got == expected
                        || name == "MXFP4" && weight.row_bytes(0, i / columns)[i % columns / 32 * 17] == 255)
                {
                    equal += 1;
                    continue;
                }
                let (row, group) = (i / columns, to.group());
                let of_group = &expected_group(&repacked, row, i % columns / group);
                let (scale, bias) = *of_group;
                // A code of eight bits times a scale of 17 is rounded on its way to the exact sum.
                let slack = (255.0 * scale).abs() * 2.0_f32.powi(-23) + bias.abs() * 2.0_f32.powi(-23);
                let bound = if exact { slack } else { 0.5 * scale.abs() + 4.0 * slack };
                assert!(
                    (got - expected).abs() <= bound,
                    "{name} {i}: {got:e}, expected {expected:e}, at most {bound:e}"
                );
            }
        }
        assert!(equal > 10_000, "{equal} values are equal");
    });
}

/// The scale and the bias of a group.
fn expected_group(weight: &QuantWeight, row: usize, group: usize) -> (f32, f32) {
    let columns = weight.shape()[1];
    let Some((_, width)) = weight.format().affine() else { return (0.0, 0.0) };
    let (mut codes, mut scales, mut biases) =
        (vec![0; columns], vec![0.0; columns / width], vec![0.0; columns / width]);
    weight.affine_row(row, &mut codes, &mut scales, &mut biases);
    (scales[group], biases[group])
}

#[test]
fn scales_are_kept_narrow_only_where_that_is_exact() {
    fixture(|file| {
        let narrow = |name: &str, of: GgmlType| {
            let (weight, _) = matrix(file, name, Format::Ggml(of));
            let Some(MlxForm::Equal(to)) = weight.format().on_mlx(weight.shape()[1]) else {
                panic!("{name}")
            };
            let (narrow, wide) = (repack(&weight, to, true), repack(&weight, to, false));
            let bits = |weight: &QuantWeight| weight.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&narrow), bits(&wide), "{name}");
            matches!(narrow.format(), Format::Affine { scales: DType::F16, .. })
        };
        assert!(narrow("Q4_1", GgmlType::Q4_1));
        // A scale of Q4_K is a product of eleven and six bits.
        assert!(!narrow("Q4_K", GgmlType::Q4_K));
    });
}

/// Groups that MLX does not have: AWQ and GPTQ models may have any.
#[test]
fn groups_are_split_where_they_can_be() {
    let group = |group| Format::Affine { bits: 4, group, scales: DType::F16 };
    assert_eq!(group(256).on_mlx(512), Some(MlxForm::Equal(group(128))));
    assert_eq!(group(192).on_mlx(384), Some(MlxForm::Equal(group(64))));
    assert_eq!(group(96).on_mlx(192), Some(MlxForm::Equal(group(32))));
    let wide = Format::Affine { bits: 8, group: 32, scales: DType::F32 };
    assert_eq!(group(16).on_mlx(64), Some(MlxForm::Nearest(wide)));
    assert_eq!(group(16).on_mlx(48), None);
    assert_eq!(group(64).on_mlx(64), Some(MlxForm::Native));

    // Four groups of 64 columns, each of other scales.
    let format = group(64);
    let codes: Vec<u8> = (0..2 * 128).map(|i| (i * 37 % 251) as u8).collect();
    let halves = |from: f32| -> Vec<u8> {
        (0..8).flat_map(|i| half::f16::from_f32(from + i as f32).to_le_bytes()).collect()
    };
    let weight = QuantWeight::new("w", format, [2, 256], planes(&[&codes, &halves(1.0), &halves(-9.0)]));
    let split = Format::Affine { bits: 4, group: 32, scales: DType::F16 };
    assert_eq!(repack(&weight, split, true).to_f32(), weight.to_f32());
}
