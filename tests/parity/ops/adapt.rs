//! What adapters add to products.

use backstop::backend::Op;
use backstop::backend::ops::{Backend, compose};
use backstop::tensor::{DType, Weight};

use super::rig::{DTYPES, Element, projection, rigs, values, weight};

/// `(into + scale · (x · Aᵀ) · Bᵀ) ∘ c + d` of some rows, with the sum of the terms' magnitudes; `into` of the others.
fn reference(
    x: &[f32],
    into: &[f32],
    rows: &std::ops::Range<usize>,
    [low, high]: [&Weight; 2],
    scale: f32,
    columns: Option<[&[f32]; 2]>,
) -> Vec<Element> {
    let (&[rank, k], &[n, _]) = (low.shape(), high.shape()) else { panic!("no matrices") };
    let (a, b) = (low.to_f32(), high.to_f32());
    let mut out = Vec::new();
    for (row, (x, into)) in x.chunks_exact(k).zip(into.chunks_exact(n)).enumerate() {
        let products: Vec<[f64; 2]> = (a.chunks_exact(k))
            .map(|a| {
                let terms = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x));
                terms.fold([0.0, 0.0], |[sum, size], term| [sum + term, size + term.abs()])
            })
            .collect();
        for (column, &into) in into.iter().enumerate() {
            let into = f64::from(into);
            if !rows.contains(&row) {
                out.push(Element::rounded(into));
                continue;
            }
            let (mut value, mut summed, mut rounded) = (0.0, 0.0, 0.0);
            for (b, [product, size]) in b[column * rank..][..rank].iter().zip(&products) {
                let by = f64::from(scale) * f64::from(*b);
                value += by * product;
                rounded += (by * product).abs();
                summed += by.abs() * size;
            }
            let [by, plus] = columns.map_or([1.0, 0.0], |of| of.map(|of| f64::from(of[n + column])));
            let value = (into + value) * by + plus;
            let size = (rounded + into.abs()) * by.abs();
            out.push(Element {
                value,
                rounded: size + value.abs(),
                summed: (summed + into.abs()) * by.abs() + plus.abs(),
            });
        }
    }
    out
}

#[test]
fn adapters_add_to_their_rows_alone() {
    for rig in rigs() {
        for (i, [t, n, k, rank]) in
            [[1, 65, 64, 4], [3, 31, 33, 1], [17, 64, 65, 16], [65, 33, 48, 5]].into_iter().enumerate()
        {
            for rows in [0..t, 0..t / 2, t / 2..t, t / 3..t / 3 + 1, 0..0] {
                for dtype in DTYPES {
                    let (x, into) = (rig.values(1, t * k, 1.0), rig.values(2, t * n, 1.0));
                    let (low, high) = (projection(dtype, 3, rank, k), projection(dtype, 4, n, rank));
                    let table = |seed, first: f32| {
                        let mut rows = vec![first; n];
                        rows.extend(rig.values(seed, n, 1.0));
                        rows
                    };
                    let tables = [table(5, 1.0), table(6, 0.0)];
                    let prepared = tables.each_ref().map(|of| rig.matrix(&weight(DType::F32, &[2, n], of)));
                    let columns = (i % 2 == 0).then(|| [&prepared[0], &prepared[1]]);
                    let own = columns.map(|_| tables.each_ref().map(Vec::as_slice));
                    let expected = reference(&x, &into, &rows, [&low, &high], 0.7, own);
                    let (x, into) = (rig.tensor(&[t, k], &x), rig.tensor(&[t, n], &into));
                    let (low, high) = (rig.matrix(&low), rig.matrix(&high));
                    let (x, into, rows, low, high) = (&x, &into, &rows, &low, &high);
                    let op = Op::Adapt { x, into, rows, low, high, scale: 0.7, columns };
                    let what = format!("T {t}, N {n}, K {k}, r {rank}, rows {rows:?}, weights {dtype}");
                    rig.check(&op, &what, &expected);
                    let bits = |outputs: &[_]| -> Vec<u32> {
                        let host = rig.dispatch.to_host(&outputs[0]).unwrap();
                        host.data().iter().map(|x| x.to_bits()).collect()
                    };
                    let parts = compose(&rig.dispatch, &op).unwrap();
                    assert_eq!(bits(&parts), bits(&rig.dispatch.run(&op).unwrap()), "{what}: by its parts");
                }
            }
        }
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    for rig in rigs() {
        let (x, into) = (rig.tensor(&[3, 8], &values(1, 24, 1.0)), rig.tensor(&[3, 5], &values(2, 15, 1.0)));
        let matrix = |rows, columns| rig.matrix(&projection(DType::F32, 3, rows, columns));
        let cases = [
            (0..3, matrix(2, 8), matrix(5, 2), None),
            (0..4, matrix(2, 8), matrix(5, 2), Some("rows 0..4")),
            (0..3, matrix(2, 7), matrix(5, 2), Some("[2, 7]")),
            (0..3, matrix(2, 8), matrix(5, 3), Some("[5, 3]")),
            (0..3, matrix(2, 8), matrix(4, 2), Some("[4, 2]")),
        ];
        for (rows, low, high, wrong) in &cases {
            let op = Op::Adapt { x: &x, into: &into, rows, low, high, scale: 1.0, columns: None };
            match (rig.dispatch.run(&op), wrong) {
                (Ok(_), None) => {}
                (Err(error), Some(wrong)) => {
                    let error = error.to_string();
                    assert!(error.starts_with("adapt: ") && error.contains(wrong), "{error}");
                }
                (got, wrong) => panic!("{got:?} where {wrong:?} was expected"),
            }
        }
    }
}
