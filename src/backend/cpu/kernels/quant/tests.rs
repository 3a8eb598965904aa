use std::sync::Arc;

use super::*;
use crate::quant::{Format, GgmlType, Matrix, Plane, QuantWeight};
use crate::tensor::{DType, Weight};

/// A weight of random bytes, with scales that are numbers of about `1 / (codes · √K)`.
fn random(format: Format, rows: usize, cols: usize, seed: u64) -> QuantWeight {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    let size = 0.5 / (cols as f32).sqrt();
    let planes = format.row_bytes(cols).into_iter().enumerate().map(|(plane, row)| {
        let mut bytes: Vec<u8> = (0..row * rows).map(|_| next() as u8).collect();
        let mut number = |largest: f32| size / largest * (0.5 + (next() % 1000) as f32 / 1000.0);
        match (format, plane) {
            (Format::Affine { bits, scales, .. }, 1 | 2) => {
                for part in bytes.chunks_exact_mut(scales.size()) {
                    let value =
                        number((1 << (bits - plane as u8)) as f32) * if plane == 2 { -1.0 } else { 1.0 };
                    match scales {
                        DType::F32 => part.copy_from_slice(&value.to_le_bytes()),
                        DType::F16 => part.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                        DType::BF16 => part.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                    }
                }
            }
            (Format::Mxfp4 | Format::Mxfp8, 1) => bytes.iter_mut().for_each(|e| *e = 118 + *e % 6),
            (Format::Mxfp8 | Format::Fp8 { .. }, 0) => bytes.iter_mut().for_each(|b| *b &= 0xbf),
            (Format::Fp8 { .. } | Format::Fp4 { .. }, 1) => {
                for part in bytes.chunks_exact_mut(4) {
                    part.copy_from_slice(&number(4.0).to_le_bytes());
                }
            }
            (Format::Nvfp4, 1) => bytes.iter_mut().for_each(|b| *b = 8 + *b % 32),
            (Format::Ggml(of), _) => {
                let (halves, largest): (&[usize], f32) = match of {
                    GgmlType::Q4_0 => (&[0], 8.0),
                    GgmlType::Q4_1 => (&[0, 2], 8.0),
                    GgmlType::Q5_0 => (&[0], 16.0),
                    GgmlType::Q5_1 => (&[0, 2], 16.0),
                    GgmlType::Q8_0 | GgmlType::IQ4_NL => (&[0], 128.0),
                    GgmlType::Q2_K => (&[80, 82], 20.0),
                    GgmlType::Q3_K => (&[108], 60.0),
                    GgmlType::Q4_K => (&[0, 2], 400.0),
                    GgmlType::Q5_K => (&[0, 2], 800.0),
                    GgmlType::Q6_K => (&[208], 2000.0),
                    GgmlType::IQ4_XS => (&[0], 1500.0),
                    GgmlType::MXFP4 => (&[], 1.0),
                };
                for block in bytes.chunks_exact_mut(of.block().1) {
                    for &at in halves {
                        let value = half::f16::from_f32(number(largest));
                        block[at..at + 2].copy_from_slice(&value.to_le_bytes());
                    }
                    if of == GgmlType::MXFP4 {
                        block[0] = 118 + block[0] % 6;
                    }
                }
            }
            _ => {}
        }
        let len = bytes.len();
        Plane::new(Arc::new(bytes), 0..len)
    });
    QuantWeight::new("w", format, [rows, cols], planes.collect::<Vec<_>>())
}

fn formats() -> Vec<Format> {
    let mut all: Vec<Format> = GgmlType::ALL.into_iter().map(Format::Ggml).collect();
    for (i, bits) in [2, 3, 4, 5, 6, 8].into_iter().enumerate() {
        let scales = [DType::F16, DType::BF16, DType::F32][i % 3];
        all.extend([32, 64, 128].map(|group| Format::Affine { bits, group, scales }));
    }
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Nvfp4]);
    all.extend([Format::Fp8 { group: 128 }, Format::Fp8 { group: 16 }, Format::Fp4 { group: 16 }]);
    all
}

fn activations(t: usize, k: usize, seed: u32) -> Vec<f32> {
    let value = |i: usize| {
        ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..t * k).map(|i| value(i) * (1.0 + (i / k % 5) as f32)).collect()
}

fn run(
    pool: &Pool,
    isa: Isa,
    how: Activations,
    x: &[f32],
    w: &PackedMatrix,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let rows = 0..x.len() / w.cols();
    let mut projections = [QuantProjection { weight: w, bias, rows, out: &mut out }];
    let x = Rows { data: x, cols: w.cols(), pick: None };
    linear_group(pool, isa, how, x, &mut projections, &mut ActivationScratch::default()).unwrap();
    out
}

/// `x` rounded as the kernel rounds it, in plain arithmetic.
fn rounded(x: &[f32]) -> Vec<f64> {
    let block = |x: &[f32]| {
        let scale = x.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
        let inverse = 1.0 / scale;
        x.iter().map(|v| f64::from(scale) * f64::from((v * inverse).round_ties_even())).collect::<Vec<_>>()
    };
    x.chunks(BLOCK).flat_map(block).collect()
}

/// Largest error in units of the bound that the module's documentation states.
fn worst(weight: &QuantWeight, x: &[f32], used: &[f64], bias: &[f32], got: &[f32], sums: f64) -> f64 {
    let [rows, cols] = *weight.shape();
    let mut w = vec![0.0; cols];
    let mut worst = 0.0f64;
    for n in 0..rows {
        weight.dequantize_row(n, &mut w);
        for t in 0..x.len() / cols {
            let used = &used[t * cols..(t + 1) * cols];
            let exact: f64 =
                used.iter().zip(&w).map(|(x, w)| x * f64::from(*w)).sum::<f64>() + f64::from(bias[n]);
            // A code and its bias may be much larger than the weight that is left of them.
            let most = w.iter().fold(0.0f64, |most, w| most.max(f64::from(w.abs())));
            let terms: f64 = used.iter().map(|x| x.abs() * most * 3.0).sum();
            let bound = sums * 2f64.powi(-24) * (terms + exact.abs() + f64::from(bias[n].abs()));
            worst = worst.max((f64::from(got[t * rows + n]) - exact).abs() / bound);
        }
    }
    worst
}

/// What one of several ranks has of a matrix.
#[test]
fn columns_of_every_format_are_those_of_the_whole() {
    for format in formats() {
        let (group, rows) = (format.group(), 5);
        let cols = 4 * group;
        let whole = Matrix::Quantized(random(format, rows, cols, 11));
        let decoded = |matrix: &Matrix| match matrix {
            Matrix::Quantized(weight) => weight.to_f32(),
            Matrix::Dense(weight) => weight.to_f32(),
        };
        let all = decoded(&whole);
        let own = group..3 * group;
        let part = whole.columns("part", own.clone()).unwrap().expect("whole groups");
        assert_eq!(part.as_ref().shape(), [rows, own.len()]);
        let expected: Vec<f32> = all.chunks_exact(cols).flat_map(|row| &row[own.clone()]).copied().collect();
        assert_eq!(decoded(&part), expected, "{format}");
        // And of some of its rows, which are made when they are asked for.
        let few = part.rows("few", 1..3);
        assert_eq!(decoded(&few), expected[own.len()..3 * own.len()], "{format}");
        assert!(whole.columns("part", 0..group / 2).unwrap().is_none(), "half of a group of {format}");
        let values: Vec<f32> = all.clone();
        let dense = Matrix::Dense(Weight::of_values("w", &[rows, cols], values));
        assert_eq!(decoded(&dense.columns("part", own).unwrap().unwrap()), expected);
    }
}

#[test]
fn every_format_agrees_with_the_product_of_its_dequantized_weights() {
    let pool = Pool::new(2);
    for isa in Isa::variants() {
        // Each has code of its own or shares it with its neighbours.
        for format in formats().into_iter().step_by(if cfg!(miri) { 3 } else { 1 }) {
            let cols = 2 * format.group().max(32);
            for &(t, rows) in if cfg!(miri) { &[(1, 16), (5, 3)][..] } else { &[(1, 16), (3, 33), (21, 5)] } {
                let weight = random(format, rows, cols, (t * rows) as u64);
                let packed = PackedMatrix::pack(&pool, &weight).unwrap();
                let x = activations(t, cols, 7);
                let bias = activations(1, rows, 9);
                for how in [Activations::Int8, Activations::F32] {
                    let got = run(&pool, isa, how, &x, &packed, Some(&bias));
                    let exact = how == Activations::F32 || !packed.integral();
                    let used = if exact { x.iter().map(|x| f64::from(*x)).collect() } else { rounded(&x) };
                    let sums = if exact { cols as f64 / 4.0 + 5.0 } else { (2 * cols / BLOCK + 4) as f64 };
                    let worst = worst(&weight, &x, &used, &bias, &got, sums);
                    assert!(worst <= 1.0, "{isa} {format} T {t} N {rows} {how:?}: {worst} of the bound");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours; the test above takes the same ways")]
fn rows_have_the_same_bits_alone_and_among_others_on_any_threads() {
    for format in formats() {
        let cols = 2 * format.group().max(32);
        let weight = random(format, 40, cols, 3);
        // A tile of each size, of 16 rows on.
        let x = activations(31, cols, 1);
        for how in [Activations::Int8, Activations::F32] {
            let mut all: Vec<(Isa, Vec<u32>)> = Vec::new();
            for isa in Isa::variants() {
                let pool = Pool::new(1);
                let packed = PackedMatrix::pack(&pool, &weight).unwrap();
                let together = run(&pool, isa, how, &x, &packed, None);
                for threads in [2, 3] {
                    let pool = Pool::new(threads);
                    let again = run(&pool, isa, how, &x, &packed, None);
                    assert!(
                        again.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{isa} {format}"
                    );
                }
                for t in [0, 15, 16, 23, 24, 28, 30] {
                    let alone = run(&pool, isa, how, &x[t * cols..(t + 1) * cols], &packed, None);
                    let among = &together[t * 40..(t + 1) * 40];
                    assert!(
                        alone.iter().zip(among).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{isa} {format} {how:?}: row {t} alone and among others"
                    );
                }
                all.push((isa, together.iter().map(|x| x.to_bits()).collect()));
            }
            // Lanes never meet: with FMA the instruction set does not show.
            let (first, bits) = &all[0];
            for (isa, other) in &all[1..] {
                if fused(*isa) {
                    assert_eq!(bits, other, "{format} {how:?}: {first} and {isa}");
                }
            }
        }
    }
}

/// Scales of many blocks: in chunks where a row is alone, held where they fit for the tiles of many.
#[test]
#[cfg_attr(miri, ignore = "hours")]
fn long_rows_have_the_same_bits_alone_and_among_others() {
    let affine = |bits, group| Format::Affine { bits, group, scales: DType::F16 };
    let cases = [
        (Format::Ggml(GgmlType::Q4_0), &[1056, 10_240, 10_272][..]),
        (Format::Ggml(GgmlType::Q5_1), &[1056, 10_272]),
        (Format::Ggml(GgmlType::Q6_K), &[1280, 5120, 5376]),
        (Format::Ggml(GgmlType::Q4_K), &[1280, 10_496]),
        (Format::Ggml(GgmlType::Q3_K), &[5120, 5376]),
        (affine(4, 128), &[1152, 10_368]),
        (affine(2, 64), &[5120, 5184]),
    ];
    let (pool, t) = (Pool::new(2), 21);
    for (format, all) in cases {
        for &cols in all {
            let weight = random(format, 5, cols, cols as u64);
            let packed = PackedMatrix::pack(&pool, &weight).unwrap();
            let x = activations(t, cols, 3);
            let used = rounded(&x);
            for isa in Isa::variants() {
                let together = run(&pool, isa, Activations::Int8, &x, &packed, None);
                for (t, among) in together.chunks(5).enumerate() {
                    let alone = run(&pool, isa, Activations::Int8, &x[t * cols..][..cols], &packed, None);
                    assert!(
                        alone.iter().zip(among).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{isa} {format} K {cols}: row {t} alone and among others"
                    );
                }
                let sums = (2 * cols / BLOCK + 4) as f64;
                let worst = worst(&weight, &x, &used, &[0.0; 5], &together, sums);
                assert!(worst <= 1.0, "{isa} {format} K {cols}: {worst} of the bound");
            }
        }
    }
}

/// Whether `a * b + c` is rounded once.
fn fused(isa: Isa) -> bool {
    isa != Isa::Portable(crate::backend::cpu::isa::Portable)
        || cfg!(any(target_feature = "fma", target_arch = "aarch64"))
}

/// Integer products have the same bits on x86-64 and on ARM: the number is that of AVX-512 with VNNI.
#[test]
#[cfg_attr(miri, ignore = "Miri has no FMA")]
fn bits_are_those_of_every_machine_with_fma() {
    let pool = Pool::new(2);
    let x = activations(5, 512, 11);
    for isa in Isa::variants().into_iter().filter(|&isa| fused(isa)) {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for format in formats() {
            let weight = PackedMatrix::pack(&pool, &random(format, 40, 512, 13)).unwrap();
            for value in run(&pool, isa, Activations::Int8, &x, &weight, None) {
                hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
        assert_eq!(hash, 0xbfd7_01e3_e6d9_f7e9, "{isa}: {hash:#018x}");
    }
}

#[test]
fn an_order_permutes_the_input() {
    let pool = Pool::new(1);
    let format = Format::Affine { bits: 4, group: 32, scales: DType::F16 };
    let order: Vec<u32> = (0..96u32).map(|i| (i * 7 + 5) % 96).collect();
    let plain = random(format, 20, 96, 5);
    let ordered = plain.clone().with_order(order.clone().into());
    let x = activations(5, 96, 2);
    let moved: Vec<f32> =
        x.chunks(96).flat_map(|x| order.iter().map(|&k| x[k as usize]).collect::<Vec<_>>()).collect();
    for how in [Activations::Int8, Activations::F32] {
        let got = run(&pool, Isa::detect(), how, &x, &PackedMatrix::pack(&pool, &ordered).unwrap(), None);
        let expected =
            run(&pool, Isa::detect(), how, &moved, &PackedMatrix::pack(&pool, &plain).unwrap(), None);
        assert_eq!(got, expected);
    }
}

#[test]
fn an_infinity_or_a_nan_shows_in_every_output_of_its_row() {
    let pool = Pool::new(1);
    let weight = PackedMatrix::pack(&pool, &random(Format::Ggml(GgmlType::Q4_0), 17, 64, 5)).unwrap();
    for wrong in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut x = activations(3, 64, 2);
        x[64 + 40] = wrong;
        let got = run(&pool, Isa::detect(), Activations::Int8, &x, &weight, None);
        assert!(got[17..34].iter().all(|x| x.is_nan()), "{wrong}: {:?}", &got[17..34]);
        assert!(got[..17].iter().chain(&got[34..]).all(|x| x.is_finite()));
    }
}
