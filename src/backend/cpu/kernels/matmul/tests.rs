use super::*;
use crate::backend::cpu::kernels::reference;

/// Values in [-1, 1) from a counter (SplitMix64), the same on every run.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The values in `dtype`, at an odd address.
fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xff];
    for v in values {
        match dtype {
            DType::F32 => bytes.extend(v.to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f32(*v).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(*v).to_le_bytes()),
        }
    }
    bytes
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const DEPTHS: &[usize] =
    if cfg!(miri) { &[0, 1, 9, 67] } else { &[0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 100, 641, 1300, 2048] };
const WIDTHS: &[usize] = if cfg!(miri) { &[0, 1, 7] } else { &[0, 1, 2, 3, 4, 5, 7, 70] };
const LENGTHS: &[usize] =
    if cfg!(miri) { &[0, 1, 3, 14] } else { &[0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 64, 65] };

/// Steps of one lane's chain, the tree and the bias, each rounding once (twice a step without FMA).
fn bound(isa: Isa, k: usize) -> f64 {
    let steps = k.div_ceil(isa.lanes()) * if matches!(isa, Isa::Portable(_)) { 2 } else { 1 };
    (steps + isa.lanes().ilog2() as usize + 2) as f64 * f64::from(f32::EPSILON) / 2.0
}

#[test]
fn every_isa_is_within_its_bound_of_the_reference() {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        let mut scratch = Scratch::new(&pool);
        for dtype in TYPES {
            for &k in DEPTHS {
                for &n in WIDTHS {
                    let w = encode(dtype, &values(1, n * k));
                    let w = WeightView::new(&w[1..], dtype, n, k);
                    let bias = values(2, n);
                    // The long ones once, where they cut K.
                    let lengths = if n == 70 || k == 2048 { &[1, 3, 14, 65][..] } else { LENGTHS };
                    for &t in lengths {
                        let x = values(3, t * k);
                        for bias in [None, Some(bias.as_slice())] {
                            let mut out = vec![f32::NAN; t * n];
                            linear(&pool, isa, &x, w, bias, &mut out, &mut scratch).unwrap();
                            let exact = reference::linear(&x, t, &w, bias);
                            for (i, (got, (want, size))) in out.iter().zip(exact).enumerate() {
                                let error = (f64::from(*got) - want).abs();
                                assert!(
                                    error <= bound(isa, k) * size,
                                    "{isa} {dtype} [{t}, {k}] x [{n}, {k}], element {i}: {got} against {want}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The bits of a row of out do not know T, the threads, the neighbours of the row, or those of the column.
#[test]
#[cfg_attr(miri, ignore = "hours; the test above takes the same ways")]
fn bits_depend_on_row_and_column_alone() {
    const T: usize = 67;
    for isa in Isa::available() {
        for (dtype, n, k) in
            [(DType::BF16, 70, 1300), (DType::F32, 5, 641), (DType::F16, 131, 77), (DType::BF16, 9, 2048)]
        {
            let bytes = encode(dtype, &values(5, n * k));
            let w = WeightView::new(&bytes[1..], dtype, n, k);
            let (x, bias) = (values(6, T * k), values(7, n));
            let single: Vec<u32> = {
                let pool = Pool::new(1);
                let mut scratch = Scratch::new(&pool);
                let mut all = Vec::new();
                for t in 0..T {
                    let mut out = vec![0.0; n];
                    linear(&pool, isa, &x[t * k..][..k], w, Some(&bias), &mut out, &mut scratch).unwrap();
                    all.extend(out.into_iter().map(f32::to_bits));
                }
                all
            };
            for threads in [1, 2, 3, 7] {
                let pool = Pool::new(threads);
                let mut scratch = Scratch::new(&pool);
                for (from, t) in [(0, 2), (1, 3), (2, 5), (0, 6), (3, 12), (5, 13), (7, 33), (2, 65), (0, 67)]
                {
                    let mut out = vec![0.0; t * n];
                    linear(&pool, isa, &x[from * k..][..t * k], w, Some(&bias), &mut out, &mut scratch)
                        .unwrap();
                    let same = out.iter().zip(&single[from * n..]).all(|(a, b)| a.to_bits() == *b);
                    assert!(same, "{isa} {dtype} {t} rows at {from}, {threads} threads");
                }
                // A part of the columns, from a row that starts no tile.
                let (skip, t) = (3, 20);
                let rest = WeightView::new(&bytes[1 + skip * k * dtype.size()..], dtype, n - skip, k);
                let mut out = vec![0.0; t * (n - skip)];
                linear(&pool, isa, &x[..t * k], rest, Some(&bias[skip..]), &mut out, &mut scratch).unwrap();
                for (i, row) in out.chunks(n - skip).enumerate() {
                    let same = row.iter().zip(&single[i * n + skip..]).all(|(a, b)| a.to_bits() == *b);
                    assert!(same, "{isa} {dtype}, columns from {skip}");
                }
            }
        }
    }
}

#[test]
fn a_group_has_the_bits_of_its_parts() {
    let pool = Pool::new(2);
    let mut scratch = Scratch::new(&pool);
    let k = 96;
    for isa in Isa::available() {
        for &t in if cfg!(miri) { &[7][..] } else { &[1, 7, 40] } {
            let x = values(8, t * k);
            let weights: Vec<(DType, usize, Vec<u8>)> =
                [(DType::BF16, 130), (DType::F32, 0), (DType::F16, 6)]
                    .map(|(dtype, n)| (dtype, n, encode(dtype, &values(n as u64, n * k))))
                    .into();
            let bias = values(9, 6);
            let views: Vec<WeightView<'_>> =
                weights.iter().map(|(dtype, n, b)| WeightView::new(&b[1..], *dtype, *n, k)).collect();
            let biases = [None, None, Some(bias.as_slice())];
            let mut apart: Vec<Vec<f32>> = views.iter().map(|w| vec![0.0; t * w.rows()]).collect();
            let mut together = apart.clone();
            for ((w, bias), out) in views.iter().zip(biases).zip(&mut apart) {
                linear(&pool, isa, &x, *w, bias, out, &mut scratch).unwrap();
            }
            let mut group: Vec<Projection<'_>> = views
                .iter()
                .zip(biases)
                .zip(&mut together)
                .map(|((weight, bias), out)| Projection { weight: *weight, bias, out })
                .collect();
            linear_group(&pool, isa, &x, &mut group, &mut scratch).unwrap();
            assert_eq!(apart, together, "{isa} T = {t}");
        }
    }
}

#[test]
#[should_panic(expected = "linear: x against")]
fn a_wrong_length_is_refused() {
    let pool = Pool::new(1);
    let w = [0u8; 64];
    let w = WeightView::new(&w, DType::F32, 4, 4);
    linear(&pool, Isa::detect(), &[0.0; 7], w, None, &mut [0.0; 8], &mut Scratch::new(&pool)).unwrap();
}
