use super::*;

/// Runs every operation on lanes that include the awkward values and compares with scalar Rust.
struct Check;

impl Kernel for Check {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = S::LANES;
        let awkward = [
            0.0, -0.0, 1.0, -1.5, 2.5, 3.5, -2.5, 1e-40, -1e-39, 65504.0, 65520.0, 7e-8, 1e30, -3e38, 0.1,
            1234.567,
        ];
        let a: Vec<f32> = awkward[..n].to_vec();
        let b: Vec<f32> = awkward.iter().rev().take(n).map(|x| x * 0.75 + 0.5).collect();
        let (va, vb) = (s.load(&a), s.load(&b));
        let lanes = |v: S::V| {
            let mut out = vec![0.0; n];
            s.store(&mut out, v);
            out
        };
        let same = |op: &str, v: S::V, f: &dyn Fn(usize) -> f32| {
            for (i, got) in lanes(v).into_iter().enumerate() {
                assert_eq!(got.to_bits(), f(i).to_bits(), "{op} lane {i}: {got} against {}", f(i));
            }
        };
        same("add", s.add(va, vb), &|i| a[i] + b[i]);
        same("sub", s.sub(va, vb), &|i| a[i] - b[i]);
        same("mul", s.mul(va, vb), &|i| a[i] * b[i]);
        same("div", s.div(va, vb), &|i| a[i] / b[i]);
        same("neg", s.neg(va), &|i| -a[i]);
        same("abs", s.abs(va), &|i| a[i].abs());
        same("sqrt", s.sqrt(s.abs(va)), &|i| a[i].abs().sqrt());
        same("round", s.round(va), &|i| a[i].round_ties_even());
        same("copysign", s.copysign(vb, va), &|i| b[i].copysign(a[i]));
        same("min", s.min(va, vb), &|i| if a[i] < b[i] { a[i] } else { b[i] });
        same("max", s.max(va, vb), &|i| if a[i] > b[i] { a[i] } else { b[i] });
        same("select_lt", s.select_lt(va, vb, vb, s.neg(va)), &|i| if a[i] < b[i] { b[i] } else { -a[i] });
        let nan = s.splat(f32::NAN);
        same("min of NaN first", s.min(nan, va), &|i| a[i]);
        assert!(lanes(s.max(va, nan)).iter().all(|x| x.is_nan()));
        let fused = !matches!(s.isa(), Isa::Portable(_))
            || cfg!(any(target_feature = "fma", target_arch = "aarch64"));
        same("fma", s.fma(va, vb, va), &|i| {
            if fused { a[i].mul_add(b[i], a[i]) } else { a[i] * b[i] + a[i] }
        });
        for power in [-151.0f32, -149.0, -127.0, -126.0, -1.0, 0.0, 1.0, 127.0, 128.0] {
            let exact = (1.371f32 as f64 * f64::from(power).exp2()) as f32;
            same("scale_pow2", s.scale_pow2(s.splat(1.371), s.splat(power)), &|_| exact);
        }

        let sums: Vec<S::V> = (0..4)
            .map(|k| s.mul(va, s.splat(1.0 + k as f32 * 0.37)))
            .map(|v| s.min(v, s.splat(3.3)))
            .collect();
        let four = s.reduce_add4([sums[0], sums[1], sums[2], sums[3]]);
        for (v, sum) in sums.iter().zip(four) {
            let mut tree = lanes(*v);
            while tree.len() > 1 {
                let half = tree.len() / 2;
                tree = (0..half).map(|i| tree[i] + tree[i + half]).collect();
            }
            assert_eq!(s.reduce_add(*v).to_bits(), tree[0].to_bits());
            assert_eq!(sum.to_bits(), tree[0].to_bits());
        }
        assert_eq!(s.reduce_max(va), a.iter().copied().fold(f32::MIN, f32::max));

        for len in 0..=n {
            let mut out = vec![9.0; n + 1];
            s.store_partial(&mut out[..len], s.load_partial(&a[..len]));
            assert_eq!(&out[..len], &a[..len]);
            assert!(out[len..].iter().all(|x| *x == 9.0));
            assert!(lanes(s.load_partial(&a[..len]))[len..].iter().all(|x| x.to_bits() == 0));
            // At an address that no `f32` has.
            let mut bytes = vec![0_u8; 4 * n + 1];
            bytes[1..=4 * len].copy_from_slice(bytemuck::cast_slice(&a[..len]));
            // SAFETY: there are `len` elements behind the first byte.
            unsafe {
                let v = s.load_partial_ptr(bytes.as_ptr().add(1).cast(), len);
                assert_eq!(lanes(v)[..len], a[..len]);
                bytes.fill(9);
                s.store_partial_ptr(bytes.as_mut_ptr().add(1).cast(), len, v);
            }
            assert_eq!(bytes[1..=4 * len], *bytemuck::cast_slice::<f32, u8>(&a[..len]));
            assert!(bytes[4 * len + 1..].iter().all(|byte| *byte == 9));
        }
        ties(s);
        narrow::<S, f16>(s, &|x| f16::from_f32(x).to_f32());
        narrow::<S, bf16>(s, &|x| bf16::from_f32(x).to_f32());
    }
}

/// Every 16-bit pattern (for Miri, each sixteenth vector of them) widens exactly, and values between two of them round as the
/// `half` crate rounds.
#[inline(always)]
fn narrow<S: Simd, E: Element>(s: S, round: &dyn Fn(f32) -> f32) {
    let n = S::LANES;
    for start in (0..65536).step_by(if cfg!(miri) { 16 * n } else { n }) {
        let bits: Vec<u16> = (0..n).map(|i| (start + i) as u16).collect();
        let typed: Vec<E> = bytemuck::cast_slice(&bits).to_vec();
        let (mut wide, mut back) = (vec![0.0; n], typed.clone());
        // SAFETY: the vectors hold n = LANES elements.
        unsafe {
            let v = E::load(s, typed.as_ptr());
            s.store(&mut wide, v);
            E::store(s, back.as_mut_ptr(), v);
        }
        for i in 0..n {
            let exact = match E::DTYPE {
                crate::tensor::DType::BF16 => bf16::from_bits(bits[i]).to_f32(),
                _ => f16::from_bits(bits[i]).to_f32(),
            };
            assert!(wide[i].to_bits() == exact.to_bits() || wide[i].is_nan() && exact.is_nan());
        }
        let between: Vec<f32> = (0..n)
            .map(|i| f32::from_bits((((start + i) as u32) << 16) | (0x7fff + (i as u32 % 3))))
            .collect();
        // SAFETY: both vectors hold n = LANES elements; partial reads and writes stay inside them.
        unsafe {
            E::store(s, back.as_mut_ptr(), s.load(&between));
            s.store(&mut wide, E::load(s, back.as_ptr()));
            for i in 0..n {
                let exact = round(between[i]);
                assert!(
                    wide[i].to_bits() == exact.to_bits() || wide[i].is_nan() && exact.is_nan(),
                    "{} rounds to {}, not {exact}",
                    between[i],
                    wide[i]
                );
            }
            if start == 0x3f80 {
                for len in 0..=n {
                    let mut part = vec![0.0; n];
                    s.store(&mut part, E::load_partial(s, back.as_ptr(), len));
                    assert_eq!(part[..len], wide[..len]);
                    assert!(part[len..].iter().all(|x| *x == 0.0));
                    let mut copy = vec![bytemuck::Zeroable::zeroed(); n];
                    E::store_partial(s, copy.as_mut_ptr(), len, s.load(&wide));
                    assert_eq!(
                        bytemuck::cast_slice::<E, u8>(&copy[..len]),
                        bytemuck::cast_slice::<E, u8>(&back[..len])
                    );
                }
            }
        }
    }
}

/// What lies in the middle of two halves, and one `f32` beside it on either side, rounds as the `half` crate rounds.
#[inline(always)]
fn ties<S: Simd>(s: S) {
    let n = S::LANES;
    // The largest half and what would follow it are 65504 and 65536.
    let value = |bits: u16| if bits == 0x7c00 { 65536.0 } else { f16::from_bits(bits).to_f32() };
    for start in (0..0x7c00).step_by(if cfg!(miri) { 64 * n } else { n }) {
        let middle = |i: usize| (value((start + i) as u16) + value((start + i) as u16 + 1)) / 2.0;
        let sides: [fn(f32) -> f32; 4] = [|x| x, f32::next_up, f32::next_down, |x| -x];
        for side in sides {
            let given: Vec<f32> = (0..n).map(|i| side(middle(i))).collect();
            let mut halves = vec![f16::ZERO; n];
            // SAFETY: the vector holds n = LANES elements.
            unsafe { s.store_f16_ptr(halves.as_mut_ptr(), s.load(&given)) };
            for (x, half) in given.iter().zip(halves) {
                assert_eq!(half.to_bits(), f16::from_f32(*x).to_bits(), "{x}");
            }
        }
    }
}

#[test]
fn operations_match_scalar_rust() {
    for isa in Isa::available() {
        isa.dispatch(Check);
    }
}

#[test]
fn names_round_trip() {
    for isa in Isa::available() {
        assert_eq!(Isa::by_name(isa.name()), Some(isa));
    }
    assert_eq!(Isa::available()[0], Isa::detect());
    assert_eq!(Isa::by_name("mmx"), None);
}

/// Products of bytes and upper halves of bytes, against integers in plain Rust.
struct Bytes;

impl Bytes {
    #[inline(always)]
    fn dot<S: IntSimd, const N: usize, const G: usize>(s: S, bits: u32) {
        let lanes = S::F::LANES;
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let bias = if bits == 8 { S::WIDE_BIAS } else { 0 };
        for round in 0..if cfg!(miri) { 4 } else { 100 } {
            // The first rounds have sums that no others exceed: each code and each of `x` at an end.
            let most = (1 << bits) - 1;
            let extreme = [(most, 127), (most, -127), (0, 127), (0, -127)].get(round).copied();
            let mut code = || extreme.map_or_else(|| next() % (most + 1), |(code, _)| code) as u8;
            let bytes: Vec<u8> = (0..N * 4 * lanes).map(|_| code()).collect();
            let mut value = || extreme.map_or_else(|| ((next() % 255) as i8).max(-127), |(_, x)| x);
            let rows: [[i8; 32]; G] = std::array::from_fn(|_| std::array::from_fn(|_| value()));
            let init: [i32; G] = std::array::from_fn(|g| 7 * g as i32 - 3);
            let mut x = vec![0_i8; G * 4 * N];
            for (g, row) in rows.iter().enumerate() {
                for (eight, part) in row[..4 * N].chunks_exact(8).enumerate() {
                    x[place::<S>(4 * N, G, g, eight)..][..8].copy_from_slice(part);
                }
            }
            // SAFETY: `bytes` has N vectors, `x` has G rows of 4 N elements where `place` puts them, and `init` is of G.
            let sums = unsafe {
                let codes: [S::I; N] = std::array::from_fn(|q| s.load_bytes(bytes[4 * lanes * q..].as_ptr()));
                let x: [*const i8; G] = std::array::from_fn(|g| x[place::<S>(4 * N, G, g, 0)..].as_ptr());
                s.dot::<N, G>(bits, s.each_i32::<G>(init.as_ptr(), 1), &codes, x)
            };
            let mut out = vec![0.0; lanes];
            for (g, sum) in s.apart(sums.map(|sum| s.to_float(sum))).into_iter().enumerate() {
                s.float().store(&mut out, sum);
                for (lane, &got) in out.iter().enumerate() {
                    let product = |at: usize| {
                        let code = i32::from(bytes[at / 4 * 4 * lanes + 4 * lane + at % 4]);
                        (code - bias) * i32::from(rows[g][at])
                    };
                    let exact = init[g] + (0..4 * N).map(product).sum::<i32>();
                    assert_eq!(got, exact as f32, "{bits} bits, {N} quads, row {g} of {G}, lane {lane}");
                }
            }
            // SAFETY: `bytes` has a vector.
            let high = unsafe { s.high_nibbles(s.load_bytes(bytes.as_ptr())) };
            s.float().store(&mut out, s.to_float(high));
            for (got, word) in out.iter().zip(bytes.chunks_exact(4)) {
                let exact = u32::from_le_bytes([word[0], word[1], word[2], word[3]].map(|byte| byte >> 4));
                assert_eq!(*got, exact as f32);
            }
        }
    }

    /// What rows of `x` have beside their products: a value of each, and one of all.
    #[inline(always)]
    fn beside<S: IntSimd, const G: usize>(s: S) {
        let lanes = S::F::LANES;
        let values: [f32; 64] = std::array::from_fn(|i| i as f32 + 0.5);
        for step in [1, 2] {
            // SAFETY: `values` has G elements that are `step` apart.
            let each = unsafe { s.each::<G>(values.as_ptr(), step) };
            let all = s.beside::<G>(s.float().load(&values[..lanes]));
            let both: [_; G] = std::array::from_fn(|g| s.float().mul(each[g], all[g]));
            let mut out = vec![0.0; lanes];
            for (g, v) in s.apart(both).into_iter().enumerate() {
                s.float().store(&mut out, v);
                let exact: Vec<f32> = values[..lanes].iter().map(|v| v * values[g * step]).collect();
                assert_eq!(out, exact, "row {g} of {G}, {step} apart");
            }
        }
    }
}

impl IntKernel for Bytes {
    type Out = ();

    #[inline(always)]
    fn run<S: IntSimd>(self, s: S) {
        Self::dot::<S, 8, 1>(s, 4);
        Self::dot::<S, 8, 4>(s, 4);
        Self::dot::<S, 8, 8>(s, 4);
        Self::dot::<S, 8, 16>(s, 4);
        Self::dot::<S, 8, 1>(s, 5);
        Self::dot::<S, 8, 4>(s, 5);
        Self::dot::<S, 8, 16>(s, 5);
        Self::dot::<S, 4, 1>(s, 6);
        Self::dot::<S, 4, 4>(s, 6);
        Self::dot::<S, 4, 8>(s, 6);
        Self::dot::<S, 4, 16>(s, 6);
        Self::dot::<S, 8, 1>(s, 8);
        Self::dot::<S, 8, 2>(s, 8);
        Self::dot::<S, 8, 4>(s, 8);
        Self::dot::<S, 4, 4>(s, 8);
        Self::beside::<S, 1>(s);
        Self::beside::<S, 2>(s);
        Self::beside::<S, 4>(s);
    }
}

#[test]
fn products_of_bytes_are_those_of_integers() {
    for isa in Isa::variants() {
        isa.dispatch_int(Bytes);
    }
}
