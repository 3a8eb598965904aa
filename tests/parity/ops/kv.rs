//! The KV cache: writes, gaps, rewrites, growth, and its moves between host and backend.

use backstop::backend::LayerState;
use backstop::backend::batch::Run;
use backstop::backend::kv::{HostKv, KvShape, KvType};
use backstop::backend::ops::{Backend, KvRows};

use super::rig::{Rig, rigs, round, values};

const HEADS: usize = 2;
const DIM: usize = 10;
const WIDTH: usize = HEADS * DIM;

fn shape(kind: impl Into<KvType>) -> KvShape {
    KvShape::new(HEADS, DIM, kind.into())
}

/// What a cache must hold of `x`: rounded to the backend's type of activations, then to the cache's.
fn kept(rig: &Rig, kind: KvType, x: &[f32]) -> Vec<f32> {
    let x: Vec<f32> = x.iter().map(|&x| round(rig.dtype, x)).collect();
    match kind.float() {
        Some(kind) => x.iter().map(|&x| round(kind, x)).collect(),
        // As the host's own cache rounds it, whose codes are tested against MLX's in bits.
        None => {
            let mut kv = HostKv::new(shape(kind));
            kv.write(0, &x, &x).unwrap();
            kv.read().unwrap().0
        }
    }
}

#[track_caller]
fn assert_holds(rig: &Rig, layer: &LayerState, k: &[f32], v: &[f32]) {
    let kind = layer.shape().kind;
    assert_eq!(layer.len(), k.len() / WIDTH, "{} in {kind}", rig.name);
    let (got_k, got_v) = rig.dispatch.state_to_host(layer).unwrap().read().unwrap();
    assert_eq!(got_k, kept(rig, kind, k), "keys on {} in {kind}", rig.name);
    assert_eq!(got_v, kept(rig, kind, v), "values on {} in {kind}", rig.name);
}

#[test]
fn what_is_written_in_steps_is_held_across_growth() {
    for rig in rigs() {
        for kind in KvType::ALL {
            let (k, v) = (values(1, 600 * WIDTH, 1.0), values(2, 600 * WIDTH, 1.0));
            let mut layer = LayerState::Host(HostKv::new(shape(kind)));
            let mut len = 0;
            // Over the pages of 64 of the host, and the steps of 256 by which MLX grows.
            for add in [1, 62, 1, 1, 64, 65, 61, 1, 1, 0, 255, 88] {
                rig.append(
                    &mut layer,
                    &k[len * WIDTH..(len + add) * WIDTH],
                    &v[len * WIDTH..(len + add) * WIDTH],
                );
                len += add;
                assert_holds(&rig, &layer, &k[..len * WIDTH], &v[..len * WIDTH]);
            }
            assert_eq!(len, 600);
        }
    }
}

#[test]
fn a_run_takes_its_own_rows_of_the_step() {
    for rig in rigs() {
        let (k, v) = (values(3, 9 * WIDTH, 1.0), values(4, 9 * WIDTH, 1.0));
        let (rows_k, rows_v) = (rig.tensor(&[9, WIDTH], &k), rig.tensor(&[9, WIDTH], &v));
        for (row, len) in [(0, 9), (0, 2), (2, 1), (3, 6), (8, 1)] {
            let mut layer = LayerState::Host(HostKv::new(shape(rig.dtype)));
            let run = Run { sequence: 3, row, len, start: 0 };
            rig.dispatch.write(&mut layer, KvRows { k: &rows_k, v: &rows_v }, &run).unwrap();
            let range = row * WIDTH..(row + len) * WIDTH;
            assert_holds(&rig, &layer, &k[range.clone()], &v[range]);
        }
    }
}

#[test]
fn what_is_forgotten_is_written_anew() {
    for rig in rigs() {
        for kind in KvType::ALL {
            for keep in [0, 1, 63, 64, 65, 256, 299] {
                let (k, v) = (values(5, 300 * WIDTH, 1.0), values(6, 300 * WIDTH, 1.0));
                let mut layer = rig.cache(shape(kind), &k, &v);
                layer.truncate(keep);
                let (mut k, mut v) = (k[..keep * WIDTH].to_vec(), v[..keep * WIDTH].to_vec());
                assert_holds(&rig, &layer, &k, &v);
                let (new_k, new_v) = (values(7, 70 * WIDTH, 2.0), values(8, 70 * WIDTH, 2.0));
                rig.append(&mut layer, &new_k, &new_v);
                k.extend(new_k);
                v.extend(new_v);
                assert_holds(&rig, &layer, &k, &v);

                // A write before the end forgets what was behind it.
                let tensor = rig.tensor(&[2, WIDTH], &values(9, 2 * WIDTH, 1.0));
                let run = Run { sequence: 0, row: 0, len: 2, start: keep };
                rig.dispatch.write(&mut layer, KvRows { k: &tensor, v: &tensor }, &run).unwrap();
                k.truncate(keep * WIDTH);
                v.truncate(keep * WIDTH);
                k.extend(values(9, 2 * WIDTH, 1.0));
                v.extend(values(9, 2 * WIDTH, 1.0));
                assert_holds(&rig, &layer, &k, &v);
            }
        }
    }
}

/// Host → backend → host: the values, in the cache's type and not in that of activations.
#[test]
fn a_cache_that_moves_keeps_its_values_in_its_type() {
    for rig in rigs() {
        for kind in KvType::ALL {
            for len in [1, 64, 65, 300] {
                let (k, v) = (values(10, len * WIDTH, 1.0), values(11, len * WIDTH, 1.0));
                let mut host = HostKv::new(shape(kind));
                host.write(0, &k, &v).unwrap();
                let before = host.read().unwrap();
                let mut layer = LayerState::Host(host);
                // An empty run writes nothing, but moves the cache.
                rig.append(&mut layer, &[], &[]);
                assert_eq!(rig.is_cpu(), matches!(layer, LayerState::Host(_)), "{}", rig.name);
                assert_eq!((layer.len(), *layer.shape()), (len, shape(kind)));
                let back = rig.dispatch.state_to_host(&layer).unwrap();
                assert_eq!(*back.shape(), shape(kind));
                assert_eq!(back.read().unwrap(), before, "{len} tokens on {} in {kind}", rig.name);
            }
        }
    }
}

#[test]
fn writes_that_do_not_fit_are_refused_alike_and_change_nothing() {
    let mut texts: Vec<Vec<String>> = Vec::new();
    for rig in rigs() {
        let (k, v) = (values(12, 3 * WIDTH, 1.0), values(13, 3 * WIDTH, 1.0));
        let mut layer = rig.cache(shape(rig.dtype), &k, &v);
        let rows = |shape: &[usize]| rig.tensor(shape, &vec![0.5; shape.iter().product()]);
        let mut texts_here = Vec::new();
        for (k_shape, v_shape, row, len, start) in [
            (&[1, WIDTH][..], &[1, WIDTH][..], 0, 1, 4), // a gap
            (&[2, WIDTH], &[1, WIDTH], 0, 1, 3),
            (&[2, WIDTH], &[2, WIDTH], 1, 2, 3),
            (&[2, WIDTH], &[2, WIDTH], 2, 1, 3),
            (&[2, 2 * WIDTH], &[2, 2 * WIDTH], 0, 1, 3), // whole rows of another width
            (&[2, DIM], &[2, DIM], 0, 2, 3),
            (&[WIDTH], &[WIDTH], 0, 1, 3),
        ] {
            let run = Run { sequence: 0, row, len, start };
            let rows = KvRows { k: &rows(k_shape), v: &rows(v_shape) };
            let error = rig.dispatch.write(&mut layer, rows, &run).unwrap_err();
            texts_here.push(error.to_string());
            assert_holds(&rig, &layer, &k, &v);
        }
        assert_eq!(
            texts_here,
            [
                "kv_write: position 4, expected at most the 3 cached",
                "kv_write: k is [2, 20] and v [1, 20], expected rows 0..1 of 2 heads of 10",
                "kv_write: k is [2, 20] and v [2, 20], expected rows 1..3 of 2 heads of 10",
                "kv_write: k is [2, 20] and v [2, 20], expected rows 2..3 of 2 heads of 10",
                "kv_write: k is [2, 40] and v [2, 40], expected rows 0..1 of 2 heads of 10",
                "kv_write: k is [2, 10] and v [2, 10], expected rows 0..2 of 2 heads of 10",
                "kv_write: k is [20] and v [20], expected rows 0..1 of 2 heads of 10",
            ],
            "on {}",
            rig.name
        );
        texts.push(texts_here);
    }
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Codes, scales and biases are the same on every backend, also where MLX fills heads up to whole groups, and survive a move.
#[test]
fn a_quantized_cache_has_the_same_codes_everywhere() {
    for rig in rigs() {
        for kind in [KvType::Q8, KvType::Q4] {
            for head_dim in [1, 10, 32, 40, 64, 80, 128] {
                let shape = KvShape::new(HEADS, head_dim, kind);
                let width = HEADS * head_dim;
                let mut k = rig.values(14, 70 * width, 1.0);
                // A group of equal values, one of zeros, and one far from zero.
                k[..width].fill(0.75);
                k[width..2 * width].fill(0.0);
                k[2 * width..3 * width].iter_mut().for_each(|x| *x = round(rig.dtype, *x * 0.01 - 20.0));
                let v = rig.values(15, 70 * width, 3.0);
                let mut expected = HostKv::new(shape);
                expected.write(0, &k, &v).unwrap();
                let mut layer = rig.cache(shape, &k[..65 * width], &v[..65 * width]);
                rig.append(&mut layer, &k[65 * width..], &v[65 * width..]);
                let got = rig.dispatch.state_to_host(&layer).unwrap();
                assert!(
                    got.read_codes().unwrap() == expected.read_codes().unwrap(),
                    "{kind} of {head_dim} on {}",
                    rig.name
                );
                let mut moved = LayerState::Host(got);
                rig.append(&mut moved, &[], &[]);
                let back = rig.dispatch.state_to_host(&moved).unwrap();
                assert!(
                    back.read_codes().unwrap() == expected.read_codes().unwrap(),
                    "{kind} of {head_dim} moved to {}",
                    rig.name
                );
            }
        }
    }
}
