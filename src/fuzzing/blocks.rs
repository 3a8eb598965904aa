//! Block formats: decoders, quantizers and kernels on any bytes, those of NaNs and infinities among them.

use std::sync::Arc;

use super::input::Input;
use crate::backend::cpu::kernels::quant::{
    ActivationScratch, PackedMatrix, QuantProjection, Rows, linear_group,
};
use crate::backend::cpu::pool::Pool;
use crate::backend::cpu::{Activations, Isa};
use crate::quant::{Format, GgmlType, Plane, QuantWeight};
use crate::tensor::DType;

/// Every format that files hold.
fn formats() -> Vec<Format> {
    let mut all: Vec<Format> = GgmlType::ALL.into_iter().map(Format::Ggml).collect();
    all.extend([Format::Mxfp4, Format::Mxfp8, Format::Nvfp4]);
    all.extend([Format::Fp8 { group: 128 }, Format::Fp4 { group: 16 }]);
    for scales in [DType::F32, DType::F16, DType::BF16] {
        let groups = [(2, 32), (3, 64), (4, 64), (5, 128), (6, 32), (8, 64)];
        all.extend(groups.map(|(bits, group)| Format::Affine { bits, group, scales }));
    }
    all
}

/// The input: a format, rows, columns, rows of activations, threads, and the planes' bytes, again from the first on where they end.
///
/// No byte makes a decoder, a quantizer or a kernel panic; with FMA the bits of a product do not depend on the instruction set or
/// on threads; with activations as they are it is the product of the decoded values.
pub(super) fn blocks(data: &[u8]) {
    let mut input = Input(data);
    let format = input.pick(&formats());
    let rows = 1 + input.below(20);
    let cols = format.group().max(32) * (1 + input.below(2));
    let (t, threads) = (1 + input.below(5), 1 + input.below(3));
    let bytes = if input.0.is_empty() { &[0][..] } else { input.0 };
    let mut bytes = bytes.iter().copied().cycle();
    let planes = format.row_bytes(cols).into_iter().map(|row| {
        let plane: Vec<u8> = bytes.by_ref().take(row * rows).collect();
        let len = plane.len();
        Plane::new(Arc::new(plane), 0..len)
    });
    let weight = QuantWeight::new("w", format, [rows, cols], planes.collect::<Vec<_>>());
    let values = weight.to_f32();
    let x: Vec<f32> =
        (0..t * cols).map(|_| (f32::from(bytes.next().unwrap_or_default()) - 127.5) / 64.0).collect();
    encode(format, cols, &values);
    if !PackedMatrix::supports(format) {
        return;
    }
    let pool = Pool::new(threads);
    let packed = PackedMatrix::pack(&pool, &weight).expect("a few kilobytes");
    for how in [Activations::Int8, Activations::F32] {
        let run = |pool: &Pool, isa: Isa| {
            let mut out = vec![f32::NAN; t * rows];
            let mut projections =
                [QuantProjection { weight: &packed, bias: None, rows: 0..t, out: &mut out }];
            let x = Rows { data: &x, cols, pick: None };
            linear_group(pool, isa, how, x, &mut projections, &mut ActivationScratch::default())
                .expect("a few kilobytes");
            out
        };
        let alone = Pool::new(1);
        let mut first = None;
        for isa in Isa::variants() {
            let out = run(&alone, isa);
            let bits = bits(&out);
            assert_eq!(self::bits(&run(&pool, isa)), bits, "{format} on {isa}: {threads} threads and one");
            if isa.name() != "portable" {
                assert_eq!(bits, *first.get_or_insert_with(|| bits.clone()), "{format} {how:?} on {isa}");
            }
            if how == Activations::F32 {
                is_product(&weight, &values, &x, &out, isa);
            }
        }
    }
}

/// The bits of numbers, those of one NaN for all.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// `out` `[T, N]` is `x` `[T, K]` times the decoded `values` `[N, K]`, within what the order of sums explains.
fn is_product(weight: &QuantWeight, values: &[f32], x: &[f32], out: &[f32], isa: Isa) {
    let [rows, cols] = *weight.shape();
    for (n, w) in values.chunks_exact(cols).enumerate() {
        let most = largest(weight, n, w);
        // Beyond, sums of finite numbers may be infinite on the way.
        if !most.is_finite() || most > 1e30 {
            continue;
        }
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact(rows)) {
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let terms: f64 = x.iter().map(|x| f64::from(x.abs()) * most).sum();
            let bound = (cols as f64 / 4.0 + 8.0) * 2f64.powi(-23) * terms + 1e-37;
            assert!(
                (f64::from(out[n]) - exact).abs() <= bound,
                "{weight:?} row {n} on {isa}: {} and {exact}",
                out[n]
            );
        }
    }
}

/// The largest magnitude that a code of row `n` stands for, with that of what it is made of.
fn largest(weight: &QuantWeight, n: usize, w: &[f32]) -> f64 {
    let magnitude = |values: &[f32]| {
        let nan = values.iter().any(|x| x.is_nan());
        let most = values.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
        if nan { f64::NAN } else { most }
    };
    let Some((bits, group)) = weight.format().affine() else { return 3.0 * magnitude(w) };
    let groups = w.len() / group;
    let (mut codes, mut scales, mut biases) = (vec![0; w.len()], vec![0.0; groups], vec![0.0; groups]);
    weight.affine_row(n, &mut codes, &mut scales, &mut biases);
    magnitude(w) + magnitude(&scales) * f64::from(1u32 << bits) + magnitude(&biases)
}

/// Quantizes rows of any numbers: the first that are not finite are named, others are decoded to numbers of their size.
fn encode(format: Format, cols: usize, values: &[f32]) {
    if !format.has_encoder() {
        return;
    }
    let dtype = match format {
        Format::Affine { scales, .. } => scales,
        _ => DType::F32,
    };
    let mut bytes = vec![0; values.len() * dtype.size()];
    crate::quant::write_floats(dtype, values, &mut bytes);
    let rows = values.len() / cols;
    let mut planes = [Vec::new(), Vec::new(), Vec::new()];
    for (plane, row) in planes.iter_mut().zip(format.row_bytes(cols)) {
        plane.resize(row * rows, 0);
    }
    let wrong = format.encode(dtype, cols, &bytes, planes.each_mut().map(Vec::as_mut_slice));
    let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if values.iter().all(|x| x.is_finite()) && most < 60_000.0 {
        assert_eq!(wrong, None, "{format}");
        let used = format.row_bytes(cols).len();
        let planes = planes.into_iter().take(used).map(|plane| {
            let len = plane.len();
            Plane::new(Arc::new(plane), 0..len)
        });
        let again = QuantWeight::new("again", format, [rows, cols], planes.collect::<Vec<_>>()).to_f32();
        let fits = |x: &f32| x.abs() <= 2.0 * most + 1e-30;
        assert!(again.iter().all(fits), "{format}: {values:?} became {again:?}");
    }
}
