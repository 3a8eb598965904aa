//! What files say of Muse Glimmer.

use super::experts::{read, uint, without};
use super::{ARRAY, BOOL, F32, File, model};
use crate::config::{Config, Rotation};

const ARCH: &str = "muse-glimmer";

fn float(file: File, key: &str, x: f32) -> File {
    file.with(&format!("{ARCH}.{key}"), F32, x.to_le_bytes())
}

/// Five layers, a window in three of four.
fn muse() -> File {
    let file = uint(uint(model(ARCH), ARCH, "block_count", 5), ARCH, "attention.sliding_window", 6);
    float(float(file, "logit_scale", 0.25), "rope.freq_base", 500.0)
}

/// A flag for each layer: whether it slides.
fn flags(slides: &[u8]) -> Vec<u8> {
    [&BOOL.to_le_bytes()[..], &(slides.len() as u64).to_le_bytes(), slides].concat()
}

/// That just these layers have a window, and that just these rotate.
#[track_caller]
fn slide(config: &Config, slides: [bool; 5]) {
    let windows: Vec<bool> = config.windows.iter().map(|window| *window == Some(6)).collect();
    let rotate: Vec<bool> = config.rotations.iter().map(|rotation| *rotation == Rotation::Global).collect();
    assert_eq!((windows.as_slice(), rotate.as_slice()), (&slides[..], &slides[..]));
}

#[test]
fn norms_of_heads_are_weights_there_and_layers_without_a_window_do_not_rotate() {
    let of = read(&muse()).unwrap();
    let config = of.config();
    assert_eq!((config.model_type, config.logits_multiplier), ("muse_glimmer_text", 0.25));
    assert_eq!((config.final_logit_softcapping, config.rope.theta), (None, 500.0));
    slide(config, [true, true, true, false, true]);
    let weights = of.weights();
    for norm in ["q_norm", "k_norm"] {
        let module = weights.get(&format!("model.layers.4.self_attn.{norm}")).unwrap();
        assert_eq!(module.shape()[..], [4], "{norm}");
    }
    // A flag for each layer, a base of those that rotate, a cap.
    let listed =
        muse().with(&format!("{ARCH}.attention.sliding_window_pattern"), ARRAY, flags(&[0, 1, 1, 0, 1]));
    let listed = float(float(listed, "rope.freq_base_swa", 70.0), "final_logit_softcapping", 20.0);
    let of = read(&listed).unwrap();
    slide(of.config(), [false, true, true, false, true]);
    assert_eq!((of.config().rope.theta, of.config().final_logit_softcapping), (70.0, Some(20.0)));
    let uncapped = read(&float(muse(), "final_logit_softcapping", 0.0)).unwrap();
    assert_eq!(uncapped.config().final_logit_softcapping, None);
}

#[test]
fn what_llama_cpp_wants_to_know_must_be_there() {
    for (file, expected) in [
        (
            without(muse(), &format!("{ARCH}.logit_scale")),
            "muse-glimmer.logit_scale is missing, expected a number",
        ),
        (float(muse(), "logit_scale", 0.0), "muse-glimmer.logit_scale is 0.0, expected a number from 1e-6"),
        (
            float(muse(), "final_logit_softcapping", -1.0),
            "muse-glimmer.final_logit_softcapping is -1.0, expected",
        ),
        (
            without(muse(), &format!("{ARCH}.attention.sliding_window")),
            "muse-glimmer.attention.sliding_window is missing, expected 1 or more",
        ),
        (
            muse().with(&format!("{ARCH}.attention.sliding_window_pattern"), ARRAY, flags(&[0, 1])),
            "muse-glimmer.attention.sliding_window_pattern is a list of 2, expected a flag for each of 5 layers",
        ),
        (uint(muse(), ARCH, "expert_count", 2), "muse-glimmer.expert_count is 2, expected 0 or absent"),
    ] {
        let error = read(&file).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf: ") && error.contains(expected), "{error}, expected {expected}");
    }
}
