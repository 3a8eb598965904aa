use approx::assert_abs_diff_eq;

use super::*;
use crate::Error;
use crate::sample::constraint::Mask;

fn options() -> SamplingOptions {
    SamplingOptions { temperature: 1.0, seed: 7, sequence: 3, ..Default::default() }
}

fn one(options: SamplingOptions, logits: &[f32]) -> crate::Result<Sampled> {
    Sampler::new(options, logits.len())?.sample(logits, DrawPlace::default())
}

/// After a prompt of these tokens.
fn after(tokens: &[u32]) -> DrawPlace<'_> {
    DrawPlace { tokens, prompt: tokens.len(), ..Default::default() }
}

/// Counts of `n` draws at positions 0..
fn counts(options: SamplingOptions, logits: &[f32], n: u64) -> Vec<f64> {
    let mut sampler = Sampler::new(options, logits.len()).unwrap();
    let mut counts = vec![0.0; logits.len()];
    let tokens = vec![0; n as usize];
    for position in 0..tokens.len() {
        counts[sampler.sample(logits, after(&tokens[..position])).unwrap().token as usize] += 1.0;
    }
    counts
}

fn chi_square(counts: &[f64], weights: &[f64]) -> f64 {
    let (n, total): (f64, f64) = (counts.iter().sum(), weights.iter().sum());
    counts.iter().zip(weights).fold(0.0, |x, (&c, &w)| {
        let expected = n * w / total;
        if w == 0.0 {
            assert_eq!(c, 0.0, "a token that was filtered out was drawn");
            return x;
        }
        x + (c - expected).powi(2) / expected
    })
}

const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 1.0, 0.0, 1.5];

fn weights(temperature: f64, keep: &[usize]) -> Vec<f64> {
    (0..6).map(|i| if keep.contains(&i) { (f64::from(LOGITS[i]) / temperature).exp() } else { 0.0 }).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let all = [0, 1, 2, 3, 4, 5];
    // 20.5 is the 0.999 quantile of chi-square with 5 degrees of freedom.
    for temperature in [0.5f32, 1.0, 2.0] {
        let c = counts(SamplingOptions { temperature, ..options() }, &LOGITS, 20_000);
        assert!(chi_square(&c, &weights(f64::from(temperature), &all)) < 20.5, "{c:?}");
    }
    let c = counts(SamplingOptions { top_k: 3, ..options() }, &LOGITS, 20_000);
    assert!(chi_square(&c, &weights(1.0, &[1, 3, 5])) < 20.5);
    // p = 0.42, 0.25, 0.15, …: 0.6 needs two tokens.
    let c = counts(SamplingOptions { top_p: 0.6, temperature: 3.0, ..options() }, &LOGITS, 20_000);
    assert!(chi_square(&c, &weights(3.0, &[1, 5])) < 20.5);
    // Relative to the best: 0.61, 0.37, 0.22, …
    let c = counts(SamplingOptions { min_p: 0.3, ..options() }, &LOGITS, 20_000);
    assert!(chi_square(&c, &weights(1.0, &[1, 3, 5])) < 20.5);
}

#[test]
fn greedy_takes_the_lowest_index_of_equals() {
    let logits = [0.0, 3.0, 3.0, 1.0];
    let got = one(SamplingOptions { logprobs: Some(2), ..Default::default() }, &logits).unwrap();
    assert_eq!(got.token, 1);
    let logprobs = got.logprobs.unwrap();
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    let exact = 3f64 - (1.0 + 2.0 * 3f64.exp() + 1f64.exp()).ln();
    assert_abs_diff_eq!(f64::from(logprobs.token), exact, epsilon = 1e-6);
    assert_eq!(one(SamplingOptions::default(), &logits).unwrap().logprobs, None);
    assert_eq!(
        one(SamplingOptions { logprobs: Some(0), ..Default::default() }, &logits)
            .unwrap()
            .logprobs
            .unwrap()
            .top,
        []
    );
}

#[test]
fn greedy_is_the_first_of_the_largest_whatever_the_size() {
    let mut state = 1_u32;
    for size in [1, 2, 63, 64, 65, 128, 1000, 1025] {
        for round in 0..20 {
            let mut logits = Vec::new();
            for _ in 0..size {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Few values, so that many are equal, and zeros of both signs.
                logits.push(((state >> 28) as f32 - 8.0) * if round % 2 == 0 { 0.0 } else { 1.0 });
            }
            let mut wanted = 0;
            (0..size).for_each(|i| wanted = if logits[i] > logits[wanted] { i } else { wanted });
            let greedy = SamplingOptions { temperature: 0.0, ..options() };
            assert_eq!(one(greedy, &logits).unwrap().token as usize, wanted, "{logits:?}");
            let bad = (state >> 8) as usize % size;
            logits[bad] = if round % 3 == 0 { f32::NAN } else { f32::INFINITY };
            let error = one(options(), &logits).unwrap_err().to_string();
            assert_eq!(error, format!("sampling: the logit of token {bad} is {}", logits[bad]));
        }
    }
}

#[test]
fn equal_keys_draw_equal_tokens() {
    let draw = |seed, sequence, position| {
        let mut s = Sampler::new(SamplingOptions { seed, sequence, ..options() }, 1000).unwrap();
        s.sample(&vec![0.0; 1000], after(&vec![0; position])).unwrap().token
    };
    assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
    let all: std::collections::HashSet<u32> =
        [draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1, 2 << 32, 3)].into();
    assert!(all.len() > 3);
}

#[test]
fn logits_that_cannot_be_sampled_are_errors() {
    for temperature in [0.0, 1.0] {
        let o = SamplingOptions { temperature, ..options() };
        for logits in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert!(matches!(one(o.clone(), &logits), Err(Error::Sampling(_))));
        }
        assert_eq!(one(o.clone(), &[f32::NEG_INFINITY, f32::MIN]).unwrap().token, 1);
        assert_eq!(one(o, &[f32::MIN, f32::MAX]).unwrap().token, 1);
    }
    let mut sampler = Sampler::new(options(), 3).unwrap();
    assert!(sampler.sample(&[0.0; 2], DrawPlace::default()).is_err());
    assert!(Sampler::new(options(), 0).unwrap().sample(&[], DrawPlace::default()).is_err());
}

#[test]
fn penalties_lower_what_was_seen() {
    let logits = [2.0, 1.9, -1.0];
    let token = |o: SamplingOptions, place| Sampler::new(o, 3).unwrap().sample(&logits, place).unwrap().token;
    let o = SamplingOptions { repeat_penalty: 1.5, ..Default::default() };
    assert_eq!(token(o.clone(), after(&[0, 0])), 1);
    assert_eq!(token(o.clone(), after(&[7])), 0);
    assert_eq!(token(SamplingOptions { penalty_window: 1, ..o }, after(&[0, 2])), 0);
    let generated = |tokens| DrawPlace { tokens, ..Default::default() };
    let o = SamplingOptions { frequency_penalty: 0.04, ..Default::default() };
    assert_eq!(token(o.clone(), generated(&[0, 0])), 0);
    assert_eq!(token(o.clone(), generated(&[0, 0, 0])), 1);
    assert_eq!(token(o.clone(), after(&[0, 0, 0])), 0, "a prompt is not penalised");
    assert_eq!(token(SamplingOptions { penalty_window: 1, ..o }, generated(&[0, 0, 0])), 1);
    let o = SamplingOptions { presence_penalty: 0.06, ..Default::default() };
    assert_eq!(token(o.clone(), generated(&[0, 0, 0, 1])), 0, "once, however often");
    assert_eq!(token(o, generated(&[0, 0, 0])), 0);
    let o = SamplingOptions { presence_penalty: 0.2, ..Default::default() };
    assert_eq!(token(o, generated(&[0])), 1);
    let o = SamplingOptions { logit_bias: vec![(2, 5.0)], logprobs: Some(0), ..Default::default() };
    let got = one(o, &logits).unwrap();
    assert_eq!(got.token, 2);
    assert!(got.logprobs.unwrap().token < -3.0, "the log-probability is of the unmodified distribution");
}

#[test]
fn a_mask_and_a_ban_come_before_everything() {
    let logits = [2.0, 1.9, -1.0, 0.0];
    let mask = Mask::of(4, [1, 2]);
    let place = DrawPlace { mask: Some(&mask), ..Default::default() };
    let token =
        |o: SamplingOptions, place| Sampler::new(o, 4).unwrap().sample(&logits, place).map(|s| s.token);
    assert_eq!(token(SamplingOptions::default(), place).unwrap(), 1);
    assert_eq!(token(SamplingOptions::default(), DrawPlace { banned: &[1], ..place }).unwrap(), 2);
    let banned = DrawPlace { banned: &[1, 2], ..place };
    assert!(matches!(token(SamplingOptions::default(), banned), Err(Error::Sampling(_))));
    // Ids that no logit has are nobody's.
    let suppressed = DrawPlace { suppressed: &[0, 1, 9], ..Default::default() };
    assert_eq!(token(SamplingOptions::default(), suppressed).unwrap(), 3);
    assert!(token(SamplingOptions::default(), DrawPlace { suppressed: &[1, 2], ..place }).is_err());
    // The filters look at what is allowed: of all tokens, 0 would be the only one left.
    for o in [
        SamplingOptions { top_k: 1, ..options() },
        SamplingOptions { top_p: 0.01, ..options() },
        SamplingOptions { min_p: 1.0, ..options() },
    ] {
        assert_eq!(token(o, place).unwrap(), 1);
    }
    // No bias can bring back what is not allowed, and a ban of all that is cannot be outvoted.
    let o = SamplingOptions { logit_bias: vec![(0, 100.0), (1, -100.0)], ..Default::default() };
    assert_eq!(token(o, place).unwrap(), 2);
    // A mask shorter than the logits allows none of the rest.
    let short = Mask::of(2, [0, 1]);
    let o = SamplingOptions { logit_bias: vec![(3, 100.0)], ..Default::default() };
    assert_eq!(token(o, DrawPlace { mask: Some(&short), ..Default::default() }).unwrap(), 0);
}

#[test]
fn top_p_ranks_in_blocks() {
    // Equal logits: 0.5 of 10,000 needs 5,000, the lowest indices.
    let c = counts(SamplingOptions { top_p: 0.5, ..options() }, &vec![0.25; 10_000], 300);
    assert!(c[5000..].iter().all(|&c| c == 0.0) && c[2304..5000].iter().any(|&c| c > 0.0));
}

#[test]
fn absurd_options_are_refused() {
    let base = options();
    for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0, 1e30] {
        for o in [
            SamplingOptions { temperature: v, ..base.clone() },
            SamplingOptions { top_p: v, ..base.clone() },
            SamplingOptions { min_p: v, ..base.clone() },
            SamplingOptions { repeat_penalty: v, ..base.clone() },
            SamplingOptions { presence_penalty: v, ..base.clone() },
            SamplingOptions { frequency_penalty: v, ..base.clone() },
            SamplingOptions { logit_bias: vec![(0, v * 100.0)], ..base.clone() },
        ] {
            assert!(matches!(o.validate(10), Err(Error::Option { .. })), "{o:?}");
        }
    }
    for o in [
        SamplingOptions { top_k: 1 << 63, ..base.clone() },
        SamplingOptions { top_p: 0.0, ..base.clone() },
        SamplingOptions { penalty_window: usize::MAX, ..base.clone() },
        SamplingOptions { logit_bias: vec![(10, 1.0)], ..base.clone() },
        SamplingOptions { logit_bias: vec![(1, 1.0), (1, 2.0)], ..base.clone() },
        SamplingOptions { logit_bias: vec![(1, 1.0); 2000], ..base.clone() },
        SamplingOptions { logprobs: Some(21), ..base.clone() },
    ] {
        assert!(matches!(o.validate(10), Err(Error::Option { .. })), "{o:?}");
    }
    base.validate(10).unwrap();
}

fn run_stops(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
    let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
    let mut m = StopMatcher::new(&stops).unwrap();
    let mut out: String = pieces.iter().map(|p| m.push(p)).collect();
    out += &m.finish();
    (out, m.matched().map(str::to_owned))
}

#[test]
fn stops_do_not_depend_on_the_pieces() {
    let texts = ["xab", "aaab", "a•b••c", "abcd", "aabcabcd", "••", "", "é\u{301}ab"];
    let sets: [&[&str]; 5] = [&["ab"], &["aab", "b"], &["••c", "•b"], &["abcd", "bc"], &[]];
    for stops in sets {
        for text in texts {
            let whole = run_stops(stops, &[text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(run_stops(stops, &chars), whole, "{stops:?} {text}");
            if let Some(stop) = &whole.1 {
                assert!(text.starts_with(&(whole.0.clone() + stop)));
            } else {
                assert_eq!(whole.0, text);
            }
        }
    }
    assert_eq!(run_stops(&["</s>"], &["a<", "/", "s", ">b"]), ("a".into(), Some("</s>".into())));
    let mut m = StopMatcher::new(&["•x".into()]).unwrap();
    assert_eq!(m.push("a•"), "a");
    assert_eq!(m.push("y"), "•y");
}

#[test]
fn bad_stops_are_refused() {
    for stops in [vec![String::new()], vec!["a".to_string(); 17], vec!["a".repeat(513)]] {
        assert!(matches!(StopMatcher::new(&stops), Err(Error::Option { option: "stop", .. })));
    }
}
