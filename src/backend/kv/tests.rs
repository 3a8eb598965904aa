//! What is written is read back, rounded; pages are shared, and copied before they change.

use super::*;

#[test]
fn what_is_written_is_read_back_rounded() {
    for kind in KvType::ALL {
        // One group of a length that is no multiple of a word; two and a part.
        for head_dim in [3, 72] {
            let shape = KvShape::new(2, head_dim, kind);
            let width = 2 * head_dim;
            let mut kv = HostKv::new(shape);
            let k: Vec<f32> = (0..70 * width).map(|i| (i * 37 % 101) as f32 * 0.37 - 3.0).collect();
            let v: Vec<f32> = k.iter().map(|x| -x).collect();
            kv.write(0, &k[..width * 69], &v[..width * 69]).unwrap();
            kv.write(69, &k[width * 69..], &v[width * 69..]).unwrap();
            let (k_back, v_back) = kv.read().unwrap();
            for (x, back) in k.iter().zip(&k_back).chain(v.iter().zip(&v_back)) {
                match kind {
                    KvType::F32 => assert_eq!(back, x),
                    KvType::F16 => assert_eq!(*back, f16::from_f32(*x).to_f32()),
                    KvType::BF16 => assert_eq!(*back, bf16::from_f32(*x).to_f32()),
                    // The values span 37: half a step, and the roundings of scale and bias.
                    KvType::Q8 => assert!((x - back).abs() <= 37.0 / 255.0 / 2.0 + 0.04, "{x} {back}"),
                    KvType::Q4 => assert!((x - back).abs() <= 37.0 / 15.0 / 2.0 + 0.04, "{x} {back}"),
                }
            }
            let mut moved = HostKv::new(shape);
            match kv.read_codes().unwrap() {
                Some(rows) => moved.set_codes(&rows).unwrap(),
                None => moved.write(0, &k_back, &v_back).unwrap(),
            }
            assert_eq!(moved.read().unwrap(), (k_back, v_back), "{kind}");
            kv.truncate(5);
            assert_eq!((kv.len(), kv.bytes()), (5, PAGE * shape.token_bytes()));
        }
    }
}

/// A group is rounded by itself, in the bits of [`affine_group`](crate::quant::affine_group), which equal those of
/// `mx.quantize` (`tests/quantize.rs`); what is not finite stays so.
#[test]
fn a_group_has_the_codes_of_mlx_and_its_scale_in_f16() {
    let row: Vec<f32> = (0..40).map(|i| ((i * 29 % 40) as f32 - 11.3) * 0.013).collect();
    for (kind, bits) in [(KvType::Q8, 8), (KvType::Q4, 4)] {
        let mut kv = HostKv::new(KvShape::new(1, 40, kind));
        let mut wrong = row.clone();
        wrong[33] = f32::NAN;
        kv.write(0, &row, &wrong).unwrap();
        let [k, v] = kv.read_codes().unwrap().unwrap();
        for (group, values) in row.chunks(GROUP).enumerate() {
            let mut codes = vec![0; values.len()];
            let (scale, bias) = crate::quant::affine_group(bits, values, &mut codes);
            assert_eq!(k.codes[group * GROUP..][..values.len()], codes);
            assert_eq!((k.scales[group], k.biases[group]), (f16::from_f32(scale), f16::from_f32(bias)));
        }
        assert_eq!(k.scales[0], v.scales[0]);
        assert!(v.scales[1].is_nan() && kv.read().unwrap().1[32..].iter().all(|x| x.is_nan()));
    }
}

#[test]
fn what_lies_behind_a_window_can_be_given_back() {
    let shape = KvShape::new(1, 4, KvType::F32);
    let rows: Vec<f32> = (0..400 * 4).map(|i| i as f32).collect();
    let filled = |len: usize, window| {
        let mut kv = HostKv::new(shape).with_window(window);
        kv.write(0, &rows[..len * 4], &rows[..len * 4]).unwrap();
        kv
    };
    let mut whole = filled(300, None);
    whole.give_back(0);
    assert_eq!((whole.first(), whole.bytes()), (0, 5 * PAGE * shape.token_bytes()));

    // The next token, at 300, sees the keys from 201 on: three pages lie before.
    let mut kv = filled(300, Some(100));
    let first = kv.page(0);
    kv.give_back(0);
    assert_eq!((kv.first(), kv.len(), kv.bytes()), (192, 300, 2 * PAGE * shape.token_bytes()));
    assert!(first.is_some() && kv.page(2).is_none() && kv.page(3).is_some());
    assert_eq!(kv.read().unwrap().0[192 * 4..], rows[192 * 4..300 * 4]);
    assert_eq!(kv.read().unwrap().0[..192 * 4], [0.0; 192 * 4]);
    kv.write(300, &rows[300 * 4..], &rows[300 * 4..]).unwrap();
    assert_eq!((kv.first(), kv.len()), (192, 400));
    assert_eq!(kv.read().unwrap().0[192 * 4..], rows[192 * 4..]);

    // Back to where the next token sees what is held, and to where it does not.
    kv.truncate(291);
    assert_eq!((kv.first(), kv.len()), (192, 291));
    assert!(kv.clone().write(280, &rows[..4], &rows[..4]).is_err());
    kv.truncate(290);
    assert_eq!((kv.first(), kv.len(), kv.bytes()), (0, 0, 0));

    let mut kv = filled(300, Some(100));
    kv.give_back(PAGE);
    assert_eq!(kv.first(), 128);
    // A window that is not full has nothing behind it.
    let mut kv = filled(99, Some(100));
    kv.give_back(0);
    assert_eq!(kv.first(), 0);
}

/// K and V of one type and different widths, in whole pages and parts of them.
#[test]
fn keys_and_values_of_different_widths_are_kept_apart() {
    for kind in KvType::ALL {
        let shape = KvShape { heads: 2, k_dim: 40, v_dim: 24, kind, latent: false };
        let k: Vec<f32> = (0..70 * 80).map(|i| (i * 37 % 101) as f32 * 0.01).collect();
        let v: Vec<f32> = (0..70 * 48).map(|i| (i * 53 % 97) as f32 * 0.02 - 1.0).collect();
        let mut kv = HostKv::new(shape);
        kv.write(0, &k, &v).unwrap();
        // Each as a cache of its width alone has it.
        let alone = |dim: usize, rows: &[f32]| {
            let mut kv = HostKv::new(KvShape::new(2, dim, kind));
            kv.write(0, rows, rows).unwrap();
            (kv.read().unwrap().0, kv.read_codes().unwrap().map(|[k, _]| k))
        };
        let ((alone_k, k_codes), (alone_v, v_codes)) = (alone(40, &k), alone(24, &v));
        assert_eq!(kv.read().unwrap(), (alone_k, alone_v), "{kind}");
        let codes = kv.read_codes().unwrap();
        assert_eq!(codes, k_codes.zip(v_codes).map(<[CodeRows; 2]>::from), "{kind}");
        assert_eq!(kv.bytes(), 2 * PAGE * shape.token_bytes());
        if let Some(codes) = codes {
            let mut moved = HostKv::new(shape);
            moved.set_codes(&codes).unwrap();
            assert_eq!(moved.read().unwrap(), kv.read().unwrap(), "{kind}");
        }
        assert!(kv.write(70, &k[..80], &v[..80]).is_err());
        // As columns of one product.
        let both: Vec<f32> =
            k.chunks(80).zip(v.chunks(48)).flat_map(|(k, v)| k.iter().chain(v).copied()).collect();
        let both = MatrixView::new(&both, [70, 128]);
        let mut cut = HostKv::new(shape);
        cut.write_rows(0, both.columns(0..80), both.columns(80..128)).unwrap();
        assert_eq!(cut.read().unwrap(), kv.read().unwrap(), "{kind}");
        assert!(cut.write_rows(70, both.columns(0..48), both.columns(80..128)).is_err());
    }
}

#[test]
fn a_latent_vector_is_kept_once_with_what_rotates_behind_it() {
    for kind in [KvType::F32, KvType::F16, KvType::BF16] {
        let shape = KvShape::latent(20, 6, kind);
        assert_eq!((shape.widths(), shape.dims()), ([20, 6], [26, 20]));
        assert_eq!(shape.token_bytes(), KvShape::new(1, 13, kind).token_bytes());
        let rounded = |width: usize, by: f32| -> Vec<f32> {
            (0..70 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * by).collect()
        };
        let (latents, rotating) = (rounded(20, 0.25), rounded(6, 0.5));
        let mut kv = HostKv::new(shape);
        kv.write(0, &latents, &rotating).unwrap();
        assert_eq!(kv.read().unwrap(), (latents.clone(), rotating.clone()), "{kind}");
        assert_eq!(kv.values(1, 0).value(5, 25, 26), rotating[69 * 6 + 5]);
        assert_eq!(kv.bytes(), 2 * PAGE * shape.token_bytes());
        assert!(kv.read_codes().unwrap().is_none());
        kv.truncate(65);
        kv.write(65, &latents[..20], &rotating[..6]).unwrap();
        assert_eq!(kv.read().unwrap().0[65 * 20..], latents[..20]);
        assert!(kv.write(66, &rotating[..26], &latents[..20]).is_err());
    }
}

#[test]
fn a_gap_or_a_wrong_length_is_refused() {
    let mut kv = HostKv::new(KvShape::new(1, 2, KvType::F32));
    let error = kv.write(1, &[0.0; 2], &[0.0; 2]).unwrap_err().to_string();
    assert!(error.contains("at position 1") && error.contains("a cache of 0 tokens"), "{error}");
    assert!(kv.write(0, &[0.0; 3], &[0.0; 3]).is_err());
    assert!(kv.write(0, &[0.0; 2], &[0.0; 4]).is_err());
    assert!(kv.set_codes(&[CodeRows::default(), CodeRows::default()]).is_err());
    assert_eq!(kv.len(), 0);
}
