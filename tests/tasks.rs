//! Multiple choice against transformers (`tools/fixtures/tasks.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstop::tasks::{Answered, Question, answer, answer_all};
use backstop::{Activations, BackendRequest, KvType, LoadOptions, Model, ModelFiles};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tasks").join(name)
}

fn questions(name: &str) -> Vec<Question> {
    let text = fs::read_to_string(fixture(&format!("{name}.jsonl"))).unwrap();
    text.lines().map(|line| Question::parse(line).unwrap()).collect()
}

fn model(context: Option<usize>) -> Model {
    let options = LoadOptions {
        backend: BackendRequest::Cpu,
        activations: Activations::F32,
        kv_type: Some(KvType::F32),
        context,
        ..LoadOptions::default()
    };
    Model::load_with(ModelFiles::builtin().unwrap(), options).unwrap()
}

#[test]
fn likelihoods_are_those_of_transformers() {
    let expected: Value =
        serde_json::from_str(&fs::read_to_string(fixture("expected.json")).unwrap()).unwrap();
    let model = model(None);
    for name in ["hellaswag", "mmlu"] {
        let questions = questions(name);
        let wanted = expected[name].as_array().unwrap();
        assert_eq!(questions.len(), wanted.len());
        for at_once in [1, 3] {
            let mut answers: Vec<Option<Answered>> = vec![None; questions.len()];
            answer_all(&model, &questions, at_once, |at, said| answers[at].replace(said).is_none()).unwrap();
            for ((question, said), wanted) in questions.iter().zip(answers).zip(wanted) {
                let said = said.unwrap();
                let sums = wanted["log_likelihood"].as_array().unwrap();
                assert_eq!(said.sums.len(), sums.len());
                for (ours, theirs) in said.sums.iter().zip(sums) {
                    let theirs = theirs.as_f64().unwrap();
                    assert!(
                        (ours - theirs).abs() < 1e-4,
                        "{name}: {:?}: {ours}, not {theirs}",
                        question.context
                    );
                }
                let greedy: Vec<bool> =
                    wanted["greedy"].as_array().unwrap().iter().map(|one| one.as_bool().unwrap()).collect();
                assert_eq!((&said.greedy, said.cut), (&greedy, false));
                assert_eq!(Some(said.likeliest() as u64), wanted["acc"].as_u64());
                assert_eq!(Some(said.likeliest_by_length(question) as u64), wanted["acc_norm"].as_u64());
            }
        }
    }
}

#[test]
fn what_has_no_room_loses_its_beginning_or_is_refused() {
    let model = model(Some(64));
    let tail = " The cat sat on the mat. The cat was happy.".repeat(8);
    let of = |begin: &str, ending: &str| Question {
        context: format!("{begin}{tail}"),
        continuations: vec![ending.to_owned(), " It slept.".to_owned()],
        lengths: vec![9, 9],
        answer: 0,
        subject: None,
    };
    let asked = |begin: &str| answer(&model, &of(&begin.repeat(40), " It ran.")).unwrap();
    let [a, b] = [" A dog came in.", " Nobody was there."].map(asked);
    assert!(a.cut && b.cut);
    // What is left of both is the same.
    assert_eq!(a, b);
    let error =
        answer(&model, &of("", &" and it ran away from the big house".repeat(30))).unwrap_err().to_string();
    assert!(error.contains("no room") && error.contains("64"), "{error}");
}

#[test]
fn an_error_ends_all_of_them() {
    let mut questions = vec![questions("hellaswag").swap_remove(2); 20];
    questions[4].continuations[1] = " and so on".repeat(3000);
    let model = model(None);
    let error = answer_all(&model, &questions, 4, |_, _| true).unwrap_err().to_string();
    assert!(error.contains("no room"), "{error}");
    // And one who listens no longer ends them, too.
    questions.remove(4);
    let mut told = 0;
    let take = |_, _| {
        told += 1;
        told < 3
    };
    answer_all(&model, &questions, 2, take).unwrap();
    assert_eq!(told, 3);
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_backstop")).args(args).env_remove("RUST_LOG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_tells_shares_and_their_errors() {
    let dir = tempfile::tempdir().unwrap();
    let answers = dir.path().join("answers.jsonl");
    let (file, out) = (fixture("mmlu.jsonl"), answers.to_str().unwrap());
    let tasks = ["tasks", file.to_str().unwrap(), "--backend", "cpu", "--activations", "f32"];
    let (code, shown, err) = run(&[&tasks[..], &["--json", "--answers", out]].concat());
    assert_eq!(code, Some(0), "{err}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let lines: Vec<Value> = fs::read_to_string(&answers)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines.len(), &shown["questions"]), (3, &Value::from(3)));
    let share = |of: &str, lines: &[&Value]| {
        lines.iter().filter(|line| line[of] == line["answer"]).count() as f64 / lines.len() as f64
    };
    let all: Vec<&Value> = lines.iter().collect();
    for of in ["acc", "acc_norm"] {
        let (value, error) = (&shown[of]["value"], &shown[of]["error"]);
        let p = share(of, &all);
        assert!((value.as_f64().unwrap() - p).abs() < 1e-12);
        // The standard error of a mean of zeros and ones.
        assert!((error.as_f64().unwrap() - (p * (1.0 - p) / 2.0).sqrt()).abs() < 1e-12, "{shown}");
    }
    let stories = &shown["subjects"]["little_stories"];
    assert_eq!(stories["questions"], 2);
    assert!((stories["acc"]["value"].as_f64().unwrap() - share("acc", &[all[0], all[2]])).abs() < 1e-12);

    let (code, table, err) = run(&[&tasks[..], &["--limit", "2"]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert!(table.contains("acc_norm  ") && table.contains("questions  ") && table.contains(" %"), "{table}");

    let broken = dir.path().join("broken.jsonl");
    fs::write(&broken, "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 0}\n\n{\"ctx\": 1}\n")
        .unwrap();
    let (code, _, err) = run(&["tasks", broken.to_str().unwrap()]);
    assert!(code == Some(1) && err.contains("line 3") && err.contains("broken.jsonl"), "{err}");
    fs::write(&broken, "\n").unwrap();
    let (code, _, err) = run(&["tasks", broken.to_str().unwrap()]);
    assert!(code == Some(1) && err.contains("has no question"), "{err}");
}
