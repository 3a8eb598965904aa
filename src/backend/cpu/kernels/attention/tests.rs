use approx::abs_diff_eq;

use super::*;
use crate::backend::cpu::kernels::reference_ops;
use crate::backend::kv::{GROUP, KvShape, KvType};

/// A deterministic stream of values in about -1..1.
fn values(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut next = values(seed);
    (0..len).map(|_| next()).collect()
}

/// A cache of `len` tokens, of which the first `hidden` are none, and whose page goes on with NaNs of tokens that were
/// truncated.
fn cache(seed: u64, shape: KvShape, len: usize, hidden: usize) -> HostKv {
    let [k_width, v_width] = shape.widths();
    let mut kv = HostKv::new(shape);
    let (mut k, mut v) = (random(seed, len * k_width), random(seed + 1, len * v_width));
    k[..hidden * k_width].fill(f32::NAN);
    v[..hidden * v_width].fill(f32::NEG_INFINITY);
    let stale = len.next_multiple_of(PAGE) - len;
    k.resize((len + stale) * k_width, f32::NAN);
    v.resize((len + stale) * v_width, f32::INFINITY);
    kv.write(0, &k, &v).unwrap();
    kv.truncate(len);
    kv
}

/// A step: for each run its rows and the length of its cache, this step's keys included.
struct Step {
    shape: KvShape,
    heads: usize,
    lens: Vec<(usize, usize)>,
    caches: Vec<HostKv>,
    q: Vec<f32>,
    visible: Vec<Range<usize>>,
    soft_cap: Option<f32>,
    sinks: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Step {
    fn new(shape: KvShape, group: usize, lens: &[(usize, usize)], window: Option<usize>) -> Self {
        let rows: usize = lens.iter().map(|(rows, _)| rows).sum();
        let visible = lens
            .iter()
            .flat_map(|&(rows, len)| (len - rows..len).map(move |at| (at, window.unwrap_or(usize::MAX))))
            .map(|(at, window)| (at + 1).saturating_sub(window)..at + 1)
            .collect();
        Self {
            shape,
            heads: shape.heads * group,
            lens: lens.to_vec(),
            caches: lens
                .iter()
                .enumerate()
                .map(|(i, (_, len))| cache(i as u64 * 7 + 3, shape, *len, 0))
                .collect(),
            q: random(99, rows * shape.heads * group * shape.k_dim).iter().map(|x| x * 3.0).collect(),
            visible,
            soft_cap: None,
            sinks: None,
            bias: None,
        }
    }

    fn with<R>(&self, f: impl FnOnce(Attention<'_>) -> R) -> R {
        let mut row = 0;
        let runs: Vec<_> = self
            .lens
            .iter()
            .zip(&self.caches)
            .map(|(&(len, _), kv)| {
                row += len;
                AttentionRun { row: row - len, len, kv }
            })
            .collect();
        f(Attention {
            q: &self.q,
            runs: &runs,
            visible: &self.visible,
            scale: 1.0 / (self.shape.k_dim as f32).sqrt(),
            soft_cap: self.soft_cap,
            sinks: self.sinks.as_deref(),
            bias: self.bias.as_deref(),
        })
    }

    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        self.with(|args| compute(isa, threads, args))
    }

    fn check(&self, what: &str) {
        let want = self.with(|args| reference_ops::attention(&args));
        let bound = self.caches.iter().map(|kv| self.bound(kv)).fold(0.0, f64::max);
        for isa in Isa::available() {
            let got = self.run(isa, 2);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = (f64::from(*got) - want).abs();
                assert!(
                    error <= bound * want.abs().max(1.0),
                    "{what} on {isa}: element {i} is {got}, want {want}, off by {error:.2e} of {bound:.2e}"
                );
            }
        }
    }

    /// How far a row over `kv` may be off. Sums of codes and of biases cancel, so that what is rounded is larger than the
    /// scores and values: to first order a score is off by `√(GROUP + groups)` half steps of the largest sum of its terms, a
    /// share by as much of itself, and a weighted value by that and by as many of the largest sum of a value's terms.
    fn bound(&self, kv: &HostKv) -> f64 {
        let Some([k, v]) = kv.read_codes().unwrap() else { return 2e-6 };
        let [k_dim, v_dim] = self.shape.dims();
        let groups = k_dim.max(v_dim).div_ceil(GROUP);
        let heads = |rows: &crate::backend::kv::CodeRows, dim: usize| {
            let groups = dim.div_ceil(GROUP);
            let of = |group: usize| {
                let from = group / groups * dim + group % groups * GROUP;
                let codes = &rows.codes[from..from + GROUP.min(dim - group % groups * GROUP)];
                let largest =
                    f64::from(*codes.iter().max().unwrap()) * f64::from(rows.scales[group].to_f32()).abs();
                (codes.len() as f64, largest + f64::from(rows.biases[group].to_f32()).abs())
            };
            let sums = (0..rows.scales.len()).map(of).collect::<Vec<_>>();
            sums.chunks(groups).map(|head| head.to_vec()).collect::<Vec<_>>()
        };
        let q = self.q.iter().fold(0.0_f32, |max, q| max.max(q.abs()));
        let score = heads(&k, k_dim)
            .iter()
            .map(|of| of.iter().map(|(len, x)| len * x).sum::<f64>())
            .fold(0.0, f64::max)
            * f64::from(q)
            / (k_dim as f64).sqrt();
        let value = heads(&v, v_dim).iter().flatten().map(|of| of.1).fold(0.0, f64::max);
        let chain = ((GROUP + groups) as f64).sqrt() * f64::from(f32::EPSILON) / 2.0;
        2e-6 + chain * value * (1.0 + score)
    }

    /// Elements of a row of the output.
    fn width(&self) -> usize {
        self.heads * self.shape.v_dim
    }
}

fn compute(isa: Isa, threads: usize, args: Attention<'_>) -> Vec<f32> {
    let pool = Pool::new(threads);
    let mut scratch = AttentionScratch::default();
    let shape = args.runs[0].kv.shape();
    let len = args.q.len() / shape.k_dim * shape.v_dim;
    let mut out = vec![f32::NAN; len];
    attention(&pool, isa, args, &mut out, &mut scratch).unwrap();
    // Scratch that was used before: nothing of it may show.
    let mut again = vec![f32::NAN; len];
    attention(&pool, isa, args, &mut again, &mut scratch).unwrap();
    assert_eq!(bits(&out), bits(&again));
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const F32: KvType = KvType::F32;

#[test]
fn head_dims_types_and_groups_match_the_reference() {
    if cfg!(miri) {
        for kind in KvType::ALL {
            let shape = KvShape { heads: 2, k_dim: 20, v_dim: 11, kind, latent: false };
            Step::new(shape, 2, &[(1, 131), (5, 70)], None).check(&format!("{kind}"));
        }
        return;
    }
    for kind in KvType::ALL {
        for head_dim in [1, 3, 8, 16, 20, 48, 64, 80, 96, 128, 256] {
            let shape = KvShape::new(2, head_dim, kind);
            let lens = [(5, 70), (1, 131), (20, 90)];
            Step::new(shape, 2, &lens, None).check(&format!("{kind} {head_dim}"));
        }
        for (k_dim, v_dim) in [(40, 24), (24, 40), (192, 128), (3, 33)] {
            let shape = KvShape { heads: 2, k_dim, v_dim, kind, latent: false };
            let lens = [(5, 70), (1, 300), (60, 90)];
            Step::new(shape, 2, &lens, Some(100)).check(&format!("{kind} {k_dim} and {v_dim}"));
        }
        for group in 1..=8 {
            let shape = KvShape::new(2, 40, kind);
            Step::new(shape, group, &[(1, 300), (9, 9), (33, 90)], None)
                .check(&format!("{kind} group {group}"));
        }
    }
}

/// Latent vectors have the bits of a cache that holds them twice, as keys and as values: which is what the other tests are of.
#[test]
fn latent_vectors_have_the_bits_of_keys_and_values() {
    let lens = if cfg!(miri) { [(3, 70), (1, 80)] } else { [(37, 300), (1, 700)] };
    for kind in [F32, KvType::F16, KvType::BF16] {
        for (rank, rope_dim, heads) in [(14, 8, 1), (14, 8, 2), (512, 64, 16), (64, 32, 20), (33, 2, 40)] {
            if cfg!(miri) && rank > 14 {
                continue;
            }
            let shape = KvShape::latent(rank, rope_dim, kind);
            for window in [None, Some(70)] {
                let mut latent = Step::new(shape, heads, &lens, window);
                latent.sinks = Some(random(5, heads));
                let twice = KvShape { latent: false, ..shape };
                let caches = latent.caches.iter().map(|kv| {
                    let (latents, rotating) = kv.read().unwrap();
                    let rows = latents.chunks(rank).zip(rotating.chunks(rope_dim));
                    let keys: Vec<f32> = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
                    let mut plain = HostKv::new(twice);
                    plain.write(0, &keys, &latents).unwrap();
                    plain
                });
                let plain = Step {
                    shape: twice,
                    caches: caches.collect(),
                    lens: lens.to_vec(),
                    q: latent.q.clone(),
                    visible: latent.visible.clone(),
                    sinks: latent.sinks.clone(),
                    bias: None,
                    ..latent
                };
                for isa in Isa::available() {
                    for threads in [1, 3] {
                        let (got, want) = (latent.run(isa, threads), plain.run(isa, threads));
                        assert_eq!(
                            bits(&got),
                            bits(&want),
                            "{kind} {rank}+{rope_dim} of {heads} heads on {isa}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours; masks are numbers to compare with")]
fn masks_match_the_reference() {
    let kinds = [
        (F32, 16),
        (KvType::F16, 64),
        (KvType::BF16, 40),
        (KvType::Q8, 64),
        (KvType::Q4, 64),
        (KvType::Q4, 41),
    ];
    for (kind, head_dim) in kinds {
        let shape = KvShape::new(1, head_dim, kind);
        for window in [None, Some(1), Some(7), Some(64), Some(100), Some(256), Some(300)] {
            for group in [1, 4] {
                let lens = [(130, 600), (1, 700), (3, 259), (64, 64), (1, 1)];
                Step::new(shape, group, &lens, window)
                    .check(&format!("{kind} window {window:?} group {group}"));
            }
        }
    }
}

/// Of heads, where Miri would take a quarter of an hour for the larger.
const DIM: usize = if cfg!(miri) { 8 } else { 32 };

#[test]
fn distances_add_to_scores() {
    for kind in [F32, KvType::Q8] {
        let lens = if cfg!(miri) { [(40, 40), (1, 77)] } else { [(40, 300), (1, 77)] };
        for &reach in if cfg!(miri) { &[3][..] } else { &[0, 3, 128] } {
            let mut step = Step::new(KvShape::new(2, DIM, kind), 2, &lens, None);
            // Of both sides, as encoders see them.
            step.visible = vec![0..300; 40];
            step.visible.push(0..77);
            if cfg!(miri) {
                step.visible[..40].fill(0..40);
            }
            step.bias = Some(random(7, 4 * (2 * reach + 1)).iter().map(|x| x * 4.0).collect());
            step.check("bias");
            step.sinks = Some(vec![0.3, -2.0, 40.0, -90.0]);
            step.check("bias and sinks");
        }
    }
}

#[test]
fn a_soft_cap_is_applied() {
    for kind in [F32, KvType::Q8] {
        // Enough rows to be packed, for Miri, too.
        let lens = if cfg!(miri) { [(40, 40), (1, 77)] } else { [(40, 300), (1, 77)] };
        let mut step = Step::new(KvShape::new(2, DIM, kind), 2, &lens, None);
        step.soft_cap = Some(0.7);
        step.check("soft cap");
        step.sinks = Some(vec![0.3, -2.0, 40.0, -90.0]);
        step.check("soft cap and sinks");
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours; what is hidden is memory like the rest")]
fn hidden_keys_may_hold_anything() {
    for kind in KvType::ALL {
        let shape = KvShape::new(1, 20, kind);
        // One row, few, and enough to be packed.
        for rows in [1, 3, 40] {
            let step = Step::new(shape, 2, &[(rows, 403)], Some(90));
            let mut poisoned = Step::new(shape, 2, &[(rows, 403)], Some(90));
            poisoned.caches[0] = cache(3, shape, 403, 403 - rows + 1 - 90);
            for isa in Isa::available() {
                assert_eq!(
                    bits(&step.run(isa, 1)),
                    bits(&poisoned.run(isa, 2)),
                    "{kind} on {isa}, {rows} rows"
                );
            }
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    for len in [3, 600] {
        let mut step = Step::new(KvShape::new(1, 8, F32), 1, &[(2, len)], None);
        step.visible[0] = 0..0;
        for isa in Isa::available() {
            assert_eq!(step.run(isa, 2)[..8], [0.0; 8]);
        }
    }
}

/// The rows of `step` one chunk of `chunk` rows after the other, each with a cache that ends where it does.
fn chunked(step: &Step, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
    let (rows, len) = step.lens[0];
    let mut out = Vec::new();
    for first in (0..rows).step_by(chunk) {
        let end = (first + chunk).min(rows);
        let mut kv = step.caches[0].clone();
        kv.truncate(len - rows + end);
        step.with(|args| {
            let run = AttentionRun { row: 0, len: end - first, kv: &kv };
            let q = &args.q[first * step.width()..end * step.width()];
            let visible = &args.visible[first..end];
            out.extend(compute(isa, threads, Attention { q, runs: &[run], visible, ..args }));
        });
    }
    out
}

#[test]
#[cfg_attr(miri, ignore = "hours; the tests above take the same ways")]
fn chunks_threads_and_neighbours_change_no_bit() {
    for (kind, head_dim, heads, group) in [
        (F32, 16, 2, 3),
        (KvType::BF16, 64, 1, 4),
        (KvType::F16, 80, 2, 1),
        (KvType::BF16, 9, 1, 8),
        (KvType::Q8, 64, 1, 4),
        (KvType::Q8, 9, 1, 3),
        (KvType::Q4, 80, 1, 2),
        (KvType::Q4, 41, 1, 1),
    ] {
        let shape = KvShape::new(heads, head_dim, kind);
        for window in [None, Some(70), Some(300)] {
            let step = Step::new(shape, group, &[(150, 700)], window);
            for isa in Isa::available() {
                let want = bits(&step.run(isa, 1));
                for chunk in [1, 7, 64, 150] {
                    for threads in [1, 2, 3] {
                        let got = chunked(&step, isa, threads, chunk);
                        assert_eq!(
                            want,
                            bits(&got),
                            "{kind} {head_dim} {isa}: {chunk} rows, {threads} threads"
                        );
                    }
                }
                // The same run between others.
                let mut many = Step::new(shape, group, &[(1, 290), (150, 700), (5, 40)], window);
                many.caches[1] = step.caches[0].clone();
                let at = step.width();
                many.q[at..at + step.q.len()].copy_from_slice(&step.q);
                for threads in [1, 3] {
                    let got = many.run(isa, threads);
                    assert_eq!(
                        want,
                        bits(&got[at..at + step.q.len()]),
                        "{kind} {head_dim} {isa}: neighbours"
                    );
                }
            }
        }
    }
}

#[test]
fn large_and_equal_scores() {
    let shape = KvShape::new(1, 16, F32);
    for len in [5, 64, 700] {
        let mut step = Step::new(shape, 1, &[(1, len)], None);
        step.q.iter_mut().for_each(|q| *q *= 1e6);
        for isa in Isa::available() {
            assert!(step.run(isa, 2).iter().all(|x| x.abs() <= 1.0), "large scores on {isa}");
        }
        step.q.fill(0.0);
        let (_, v) = step.caches[0].read().unwrap();
        for isa in Isa::available() {
            for (d, got) in step.run(isa, 2).iter().enumerate() {
                let mean = (0..len).map(|key| f64::from(v[key * 16 + d])).sum::<f64>() / len as f64;
                let near = abs_diff_eq!(f64::from(*got), mean, epsilon = 1e-6);
                assert!(near, "equal scores on {isa}: {got}, mean {mean}");
            }
        }
    }
}
