//! `backstop doctor`: what this machine can do, and what to do about what it cannot.

mod look;
mod ports;

use std::io::stdout;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::args::DoctorArgs;
use super::progress::Progress;
use super::stream::print;
use super::term;

/// How it stands with a part of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Models run, and something would make more of them.
    Advised,
    /// What a person has to do before models run.
    Broken,
}

/// What was found of one part of the machine.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    /// Lines of it.
    lines: Vec<String>,
    state: State,
    /// What to do, each in a line.
    advice: Vec<String>,
    json: Value,
}

impl Finding {
    fn new(name: &'static str, lines: impl IntoIterator<Item = String>, json: Value) -> Self {
        let lines = lines.into_iter().collect();
        Self { name, lines, state: State::Good, advice: Vec::new(), json }
    }

    /// What would make more of it, where `is` so.
    fn advise(mut self, is: bool, what: impl Into<String>) -> Self {
        if is {
            self.advice.push(what.into());
            self.state = if self.state == State::Broken { State::Broken } else { State::Advised };
        }
        self
    }

    /// Why no model runs, and what to do about it.
    fn broken(mut self, what: impl Into<String>) -> Self {
        self.advice.push(what.into());
        self.state = State::Broken;
        self
    }
}

pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let progress = Progress::start(|| "looking at this machine".to_owned());
    let findings = look::all(args.port);
    drop(progress);
    let text = match args.json {
        true => format!("{}\n", as_json(&findings)),
        false => as_text(&findings, term::shows_colours(&stdout())),
    };
    print(&text)?;
    Ok(if is_broken(&findings) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_broken(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.state == State::Broken)
}

fn as_json(findings: &[Finding]) -> Value {
    let of = |state: State| -> Vec<Value> {
        let findings = findings.iter().filter(move |finding| finding.state == state);
        let told =
            findings.flat_map(|of| of.advice.iter().map(|what| json!({ "part": of.name, "what": what })));
        told.collect()
    };
    let parts: Map<String, Value> =
        findings.iter().map(|finding| (finding.name.to_owned(), finding.json.clone())).collect();
    json!({
        "ok": !is_broken(findings),
        "broken": of(State::Broken),
        "advice": of(State::Advised),
        "parts": parts,
    })
}

fn as_text(findings: &[Finding], colours: bool) -> String {
    let styled = |text: &str, code: &str| match colours {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    };
    let mut text = String::new();
    for finding in findings {
        let lines = finding.lines.iter().map(|line| term::one_line(line));
        let mark = match finding.state {
            State::Good | State::Advised => styled("→", "1"),
            State::Broken => styled("error:", "1;31"),
        };
        let advice = finding.advice.iter().map(|line| format!("{mark} {}", term::one_line(line)));
        for (i, line) in lines.chain(advice).enumerate() {
            let name = if i == 0 { finding.name } else { "" };
            text += &format!("{}  {line}\n", styled(&format!("{name:<8}"), "2"));
        }
    }
    let broken = findings.iter().filter(|finding| finding.state == State::Broken).count();
    text += &match broken {
        0 => "\nThis machine runs models.\n".to_owned(),
        1 => format!("\n{} is wrong: see what is said of it above.\n", styled("1 part", "1;31")),
        many => format!(
            "\n{} are wrong: see what is said of them above.\n",
            styled(&format!("{many} parts"), "1;31")
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::new("memory", ["8 GB".to_owned(), "two\x1b[2J".to_owned()], json!({ "physical": 8 })),
            Finding::new("port", ["8080 is taken".to_owned()], json!({ "free": false }))
                .advise(false, "nothing")
                .advise(true, "--port 0 takes one that is free"),
        ]
    }

    #[test]
    fn what_is_found_is_told_with_what_to_do() {
        let mut findings = findings();
        let expected = "memory    8 GB\n          two␛[2J\nport      8080 is taken\n          → --port 0 takes one \
                        that is free\n\nThis machine runs models.\n";
        assert_eq!(as_text(&findings, false), expected);
        assert!(as_text(&findings, true).starts_with("\x1b[2mmemory  \x1b[0m  8 GB\n"));
        let json = as_json(&findings);
        assert_eq!(json["parts"]["memory"]["physical"], 8);
        assert_eq!((&json["ok"], &json["broken"]), (&json!(true), &json!([])));
        let advice = json!([{ "part": "port", "what": "--port 0 takes one that is free" }]);
        assert_eq!(json["advice"], advice);

        findings
            .push(Finding::new("cpu", ["…".to_owned()], json!({})).broken("wrong text").advise(true, "more"));
        let text = as_text(&findings, false);
        assert!(text.ends_with("cpu       …\n          error: wrong text\n          error: more\n\n1 part is wrong: see what is said of it above.\n"), "{text}");
        assert!(is_broken(&findings));
        assert_eq!(as_json(&findings)["ok"], false);
    }
}
