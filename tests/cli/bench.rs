//! `backstop bench`.

use backstop::ModelFiles;
use serde_json::Value;

use crate::support::*;

/// The least, the median and the greatest are positive, and in order.
fn assert_spread(spread: &Value, what: &str) {
    let part = |name: &str| spread[name].as_f64().unwrap_or_else(|| panic!("{what}: {name} of {spread}"));
    let (min, median, max) = (part("min"), part("median"), part("max"));
    assert!(0.0 < min && min <= median && median <= max, "{what}: {spread}");
}

#[test]
fn bench_measures_the_built_in_model() {
    let args = ["bench", "-p", "24", "-n", "6", "--depth", "0,40", "--batch", "2", "--reps", "2"];
    let threads = ["--threads", "1,2", "--backend", "cpu", "--profile", "--json"];
    let shown = json(&ok(&[&args[..], &threads].concat()));
    let files = ModelFiles::builtin().unwrap();
    assert_eq!(shown["model"]["name"], files.name());
    assert_eq!((&shown["prompt_tokens"], &shown["generated_tokens"]), (&24.into(), &6.into()));
    let rows = shown["rows"].as_array().unwrap();
    let cases: Vec<[u64; 3]> = rows
        .iter()
        .map(|row| ["threads", "depth", "batch"].map(|name| row[name].as_u64().unwrap()))
        .collect();
    assert_eq!(cases, [[1, 0, 2], [1, 40, 2], [2, 0, 2], [2, 40, 2]]);
    for row in rows {
        for spread in [&row["rates"]["prompt"], &row["rates"]["generation"], &row["first_token"]] {
            assert_spread(spread, "a measurement");
        }
        for limit in ["read_bandwidth", "fma_peak", "int8_peak"] {
            assert_spread(&row["limits"][limit], limit);
        }
        for part in ["read_bandwidth", "arithmetic_peak"] {
            assert!(row["fractions"][part].as_f64().unwrap() > 0.0, "{part}: {row}");
        }
        assert_eq!(row["arithmetic"], "f32");
        // Its embedding is its head: two tokens of a step share one reading of everything.
        assert_eq!(row["weight_bytes_per_token"].as_f64(), Some(files.checkpoint.total_bytes() as f64 / 2.0));
        let cached = row["depth"].as_f64().unwrap() + 3.5;
        let token = files.kv_token_bytes(files.dtype().into()) as f64;
        assert_eq!(row["kv_bytes_per_token"].as_f64(), Some(token * cached));
        assert_eq!(row["fallbacks"], serde_json::json!([]));
        // The limits' 512 MiB are another process's.
        if let Some(peak) = row["peak_memory_bytes"].as_u64() {
            assert!(peak < 256 << 20, "{peak}");
        }
        assert_profile(&row["profile"], &files);
    }
}

/// Every layer's ops are there, as often as they ran.
fn assert_profile(profile: &Value, files: &ModelFiles) {
    let (layers, config) = (files.config().num_hidden_layers as u64, files.config());
    // One step for both prompts, six to generate; each caches the keys of two sequences.
    for (phase, steps, tokens) in [("prompt", 1, 48), ("generation", 6, 2)] {
        let phase = &profile[phase];
        let ops = phase["ops"].as_array().unwrap();
        let sum = |op: &str, what: &str| -> u64 {
            ops.iter().filter(|of| of["op"] == op).map(|of| of[what].as_u64().unwrap()).sum()
        };
        assert_eq!(sum("attention", "calls"), layers * steps);
        assert_eq!(sum("kv_write", "calls"), 2 * layers * steps);
        let gate_up = 4 * tokens * (config.hidden_size * config.intermediate_size) as u64;
        assert_eq!(sum("gate_up", "operations"), gate_up * layers * steps);
        let time: f64 = ops.iter().map(|of| of["time"].as_f64().unwrap()).sum();
        let all = phase["time"].as_f64().unwrap();
        assert!(0.0 < time && time <= all, "{time} of {all}");
        assert!((phase["between_ops"].as_f64().unwrap() - (all - time)).abs() < 1e-9);
    }
}

/// A lazy backend's steps run ahead of each other; its ops are evaluated one by one for the profile.
#[test]
#[cfg(has_mlx)]
fn bench_measures_mlx() {
    let args = ["bench", "-p", "8", "-n", "5", "--batch", "1,2", "--reps", "1", "--threads", "1"];
    let shown = json(&ok(&[&args[..], &["--backend", "mlx", "--profile", "--json"]].concat()));
    let layers = ModelFiles::builtin().unwrap().config().num_hidden_layers as u64;
    for row in shown["rows"].as_array().unwrap() {
        assert!(row["device"].as_str().unwrap().starts_with("mlx ("), "{row}");
        assert_spread(&row["rates"]["generation"], "generation");
        let ops = row["profile"]["generation"]["ops"].as_array().unwrap();
        let calls = |op: &str| -> u64 {
            ops.iter().filter(|of| of["op"] == op).map(|of| of["calls"].as_u64().unwrap()).sum()
        };
        assert_eq!(calls("attention"), 5 * layers);
        assert!(calls("linear") > 5 * layers, "{row}");
        assert_eq!((&row["fallbacks"], &row["replays"]), (&serde_json::json!([]), &serde_json::json!([])));
    }
}

#[test]
fn bench_leaves_out_what_has_no_tokens() {
    let table = ok(&["bench", "-p", "0", "-n", "4", "--reps", "1", "--threads", "1", "--backend", "cpu"]).out;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("model  stories (built in): llama, "), "{table}");
    assert!(lines[3].starts_with("device ") && lines[3].contains("generation tok/s"), "{table}");
    assert!(lines[4].starts_with("cpu (") && lines[4].contains('–') && lines[4].contains(" %"), "{table}");
    assert!(
        lines[6].starts_with("limits ")
            && lines[6].ends_with("int8 GOP/s")
            && lines[7].starts_with("1 thread "),
        "{table}"
    );
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    let nothing = "error: --prompt and --generate are 0: there is nothing to measure";
    refused(&["bench", "-p", "0", "-n", "0"], 2, nothing);
    let most = ModelFiles::builtin().unwrap().config().max_context();
    let deep = format!(
        "error: --depth and --prompt or --generate ask for a context of {} tokens, expected at most {most}, what the model was trained for",
        most + 8
    );
    refused(&["bench", "-p", "8", "-n", "8", "--depth", &format!("1,{most}")], 2, &deep);
    let threads = "error: invalid value '0' for '--threads <N,…>': expected a whole number from 1 to 4096\n\nFor more information, try '--help'.";
    refused(&["bench", "--threads", "1,0"], 2, threads);
}
