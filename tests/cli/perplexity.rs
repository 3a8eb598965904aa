//! `backstop perplexity`: transformers' numbers, and what another setting costs.

use std::fs;

use serde_json::Value;

use crate::support::*;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/text.txt");

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// `tools/fixtures/perplexity.py` made them, in `f32`.
#[test]
fn perplexities_are_those_of_transformers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/perplexity/stories.json");
    let wanted: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let exact =
        ["perplexity", TEXT, "--backend", "cpu", "--activations", "f32", "--kv-type", "f32", "--json"];
    for (kind, ways) in [("sliding", &["--stride", "40"][..]), ("halves", &["--llama-cpp"])] {
        let wanted_of = &wanted[kind];
        let window = wanted_of["window"].to_string();
        let shown = json(&ok(&[&exact[..], &["--window", &window], ways].concat()));
        assert_eq!((&shown["tokens"], &shown["scored"]), (&wanted["tokens"], &wanted_of["count"]), "{kind}");
        assert_eq!(shown["windows"]["kind"], kind);
        let (nll, of_transformers) = (number(&shown["nll"]["value"]), number(&wanted_of["nll"]));
        assert!((nll - of_transformers).abs() < 1e-4, "{kind}: {nll} is not {of_transformers}");
        assert!((number(&shown["perplexity"]["value"]) - nll.exp()).abs() < 1e-9 * nll.exp());
        assert!(number(&shown["perplexity"]["error"]) > 0.0);
    }
}

#[test]
fn another_setting_is_compared_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("positions.jsonl");
    let (file, same) = (file.to_str().unwrap(), ["perplexity", TEXT, "--window", "128", "--json"]);
    // With itself: nothing is different.
    let shown = json(&ok(&[&same[..], &["--compare-backend", "cpu", "--backend", "cpu"]].concat()));
    let other = &shown["other"];
    assert_eq!(number(&other["kl"]["max"]), 0.0);
    assert_eq!((number(&other["ln_ratio"]["value"]), number(&other["same_top"]["value"])), (0.0, 1.0));
    // With keys and values in four bits: it is.
    let of_codes = ["--backend", "cpu", "--compare-kv-type", "q4", "--positions", file];
    let shown = json(&ok(&[&same[..], &of_codes].concat()));
    let lines: Vec<Value> =
        fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len() as u64, shown["scored"].as_u64().unwrap());
    let mean = |of: &str| lines.iter().map(|line| number(&line[of])).sum::<f64>() / lines.len() as f64;
    let kl = &shown["other"]["kl"];
    assert!((mean("kl") - number(&kl["mean"]["value"])).abs() < 1e-9);
    assert!(mean("kl") > 0.0 && number(&kl["median"]) <= number(&kl["p999"]), "{kl}");
    assert!((mean("nll") - number(&shown["nll"]["value"])).abs() < 1e-9);
    assert!((mean("other_nll").exp() - number(&shown["other"]["perplexity"]["value"])).abs() < 1e-6);
    // For a person.
    let table =
        ok(&["perplexity", TEXT, "--window", "128", "--backend", "cpu", "--compare-kv-type", "q8"]).out;
    for part in
        ["perplexity      ", "KL divergence   ", "same top token  ", "windows of 128 tokens, 64 apart"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn what_cannot_be_scored_is_said() {
    let failed = |args: &[&str]| {
        let ran = backstop(args);
        assert_ne!(ran.code, Some(0), "{args:?}");
        ran.err
    };
    let long = failed(&["perplexity", TEXT, "--window", "100000"]);
    assert!(long.contains("--window is 100000, and the model was trained for 512 tokens"), "{long}");
    let stride = failed(&["perplexity", TEXT, "--window", "64", "--stride", "65"]);
    assert!(stride.contains("stride") && stride.contains("65"), "{stride}");
    let none = failed(&["perplexity", "no/such/file"]);
    assert!(none.contains("no/such/file"), "{none}");
}

#[test]
fn a_report_in_html_tells_tokens_and_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.html");
    let args = ["perplexity", TEXT, "--window", "128", "--json", "--backend", "cpu", "--html"];
    let report = |more: &[&str]| {
        let shown = json(&ok(&[&args[..], &[file.to_str().unwrap()], more].concat()));
        (shown, fs::read_to_string(&file).unwrap())
    };
    let (shown, html) = report(&["--compare-kv-type", "q4"]);
    let worst = format!("<td>{:.3e}</td>", number(&shown["other"]["kl"]["max"]));
    assert!(html.contains(&worst), "{worst}: {html}");
    let tokens = shown["tokens"].as_u64().unwrap() as usize;
    assert_eq!(html.matches("<span").count(), tokens.min(4096) + usize::from(tokens > 4096));
    let part = shown["scored"].as_u64().unwrap().div_ceil(480);
    assert_eq!(html.matches("<rect").count() as u64, shown["scored"].as_u64().unwrap().div_ceil(part));
    assert!(html.contains("<th scope=\"row\">KL divergence</th>"), "{html}");
    // Of one model alone: what it expected least.
    let (_, html) = report(&[]);
    assert!(html.contains("-ln p, nats") && !html.contains("KL"), "{html}");
    assert!(html.contains("<th scope=\"col\">probability</th>"), "{html}");
}
