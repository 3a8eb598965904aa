use std::path::{Path, PathBuf};

use approx::{assert_abs_diff_eq, relative_eq};
use serde_json::Value;

use super::*;
use crate::config::Rotation;
use crate::forward::Architecture;
use crate::weights::Checkpoint;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Distance in units of the last place, of finite values of one sign.
fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

#[track_caller]
fn assert_near(name: &str, got: &[f32], expected: &[f32], most: u32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        assert!(ulps(got, expected) <= most, "{name}: [{i}] is {got:e}, expected {expected:e}");
    }
}

/// torch's vectorised power is accurate to the last place or so; llama3 and yarn add roundings of their own.
const ULPS: u32 = 4;

#[test]
fn frequencies_and_tables_match_transformers() {
    let file: Value = serde_json::from_slice(&std::fs::read(fixtures().join("rope.json")).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 22);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let config = Architecture::parse(Path::new(name), case["config"].to_string().as_bytes()).unwrap();
        let config = config.config();
        let got = config.rope.frequencies(case["prompt_len"].as_u64().unwrap() as usize);
        let inv_freq = floats(&case["inv_freq"]);
        assert_eq!(config.rope.dims, 2 * inv_freq.len(), "{name}");
        assert_near(name, &got.inv_freq, &inv_freq, ULPS);
        assert_eq!(got.attention_factor, case["attention_factor"].as_f64().unwrap() as f32, "{name}");

        // From equal frequencies: a last place of a frequency is a visible angle some thousand tokens on.
        let positions: Vec<usize> =
            case["positions"].as_array().unwrap().iter().map(|p| p.as_u64().unwrap() as usize).collect();
        let (cos, sin) = config.rope.tables(&Frequencies { inv_freq, ..got }, &positions);
        for (got, expected) in [(cos, floats(&case["cos"])), (sin, floats(&case["sin"]))] {
            assert_eq!(got.len(), expected.len(), "{name}");
            for (got, expected) in got.iter().zip(expected) {
                let near = relative_eq!(*got, expected, epsilon = 3e-8, max_relative = 3e-7);
                assert!(near, "{name}: {got} {expected}");
            }
        }
    }
}

#[test]
fn frequencies_match_those_of_every_fixture_model() {
    let list: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("models/cases.json")).unwrap()).unwrap();
    for case in list["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let dir = fixtures().join("models").join(name);
        let config = Architecture::read(&dir.join("config.json")).unwrap();
        let config = config.config();
        let expected = Checkpoint::open(&dir.join("expected.safetensors")).unwrap();
        if config.rotations.iter().all(|rotation| *rotation == Rotation::None) {
            assert!(expected.find("inv_freq").is_none(), "{name}");
            continue;
        }
        let got = config.rope.frequencies(case["prompt_len"].as_u64().unwrap() as usize);
        let inv_freq = expected.get("inv_freq", &[config.rope.dims / 2]).unwrap().to_f32();
        assert_near(name, &got.inv_freq, &inv_freq, ULPS);
        let scaling = expected.get("attention_scaling", &[1]).unwrap().to_f32();
        assert_near(name, &[got.attention_factor], &scaling, 0);
    }
}

#[test]
fn prompt_length_decides_only_for_dynamic_and_longrope() {
    let rope = |scaling| Rope { theta: 10_000.0, dims: 8, scaling };
    let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, original: 16 });
    assert_eq!(dynamic.frequencies(1), dynamic.frequencies(16));
    assert_ne!(dynamic.frequencies(16), dynamic.frequencies(17));
    assert!(dynamic.same_frequencies(1, 16) && !dynamic.same_frequencies(17, 18));
    let long = rope(RopeScaling::LongRope {
        short_factor: vec![1.0; 4],
        long_factor: vec![2.0; 4],
        original: 16,
        attention_factor: 1.0,
    });
    assert_eq!(long.frequencies(17), long.frequencies(1000));
    assert!(long.same_frequencies(17, 1000) && !long.same_frequencies(16, 17));
    let linear = rope(RopeScaling::Linear { factor: 4.0 });
    assert!(linear.same_frequencies(1, 1 << 20));
    assert_eq!(linear.frequencies(1), linear.frequencies(1 << 20));
}

#[test]
fn position_zero_rotates_nothing() {
    let rope = Rope { theta: 10_000.0, dims: 6, scaling: RopeScaling::None };
    let (cos, sin) = rope.tables(&rope.frequencies(1), &[0, 3]);
    assert_eq!((cos.len(), sin.len()), (6, 6));
    assert_eq!((&cos[..3], &sin[..3]), (&[1.0; 3][..], &[0.0; 3][..]));
    assert_abs_diff_eq!(cos[3], 3f32.cos(), epsilon = 1e-7);
    assert_abs_diff_eq!(sin[3], 3f32.sin(), epsilon = 1e-7);
}
