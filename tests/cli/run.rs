//! `backstop run`: the text, the summary, the ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use approx::assert_relative_eq;
use backstop::{Chat, LoadOptions, Message, Model, ModelFiles, Piece, TemplateChoice};

use crate::support::*;

#[test]
fn stdout_is_the_librarys_text_alone_and_stderr_the_summary() {
    let ran = ok(&[
        "run",
        PROMPT,
        "--max-tokens",
        "40",
        "--temperature",
        "0",
        "--backend",
        "cpu",
        "--threads",
        "1",
        "--drafts",
        "off",
    ]);
    let expected = Model::builtin().unwrap().generate(PROMPT, &greedy(40)).unwrap().text().unwrap();
    assert!(!expected.is_empty());
    assert_eq!(ran.out, expected);
    let rows: Vec<&str> = ran.err.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    let memory = if cfg!(any(target_os = "linux", target_os = "macos")) { &["memory"][..] } else { &[] };
    assert_eq!(rows, [&["model", "backend", "prompt", "generated"], memory].concat(), "{}", ran.err);
    for part in [", 1 thread): asked for\n", " tok/s, first token after ", "generated  "] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert!(!ran.err.contains('\x1b'), "colours are for terminals");
}

/// Another model's guesses change how many steps a text takes; one with other tokens is refused.
#[test]
fn a_draft_model_guesses() {
    let stories = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/stories");
    let ask = ["run", PROMPT, "--max-tokens", "60", "--temperature", "0", "--backend", "cpu"];
    let plain = ok(&[&ask[..], &["--drafts", "off"]].concat());
    let drafted = ok(&[&ask[..], &["--draft", stories]].concat());
    assert_eq!(drafted.out, plain.out);
    let line = drafted.err.lines().find(|line| line.starts_with("drafts ")).expect(&drafted.err);
    assert!(line.contains(" were right, "), "{line}");

    let error = |draft: &str, more: &[&str]| {
        let ran = backstop(&[&ask[..], &["--draft", draft], more].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        ran.err
    };
    assert_eq!(
        error(stories, &["--drafts", "off"]),
        "error: --draft is a model, expected none where drafts are off\n"
    );
    let other = fixture("models/llama-bf16");
    assert_eq!(
        error(other.to_str().unwrap(), &[]),
        "error: --draft is llama-bf16: it has no tokenizer, expected a model with the same vocabulary\n"
    );
    let noise = Noise::new();
    let said = error(noise.path(), &[]);
    assert!(
        said.contains(": its token ") && said.ends_with("expected a model with the same vocabulary\n"),
        "{said}"
    );
}

#[test]
fn a_seed_decides_the_text() {
    let text = |seed| ok(&["run", PROMPT, "--max-tokens", "40", "--temperature", "1.5", "--seed", seed]).out;
    let (first, again, other) = (text("1"), text("1"), text("2"));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn the_prompt_comes_from_stdin_too() {
    let typed = ok(&["run", PROMPT, "--max-tokens", "12"]).out;
    for (stdin, args) in [
        (PROMPT, &["run", "-"][..]),
        ("Once upon a time\r\n", &["run", "-"]),
        ("Once upon a time\n", &["run"]),
    ] {
        let ran = backstop_with(stdin, &[args, &["--max-tokens", "12"]].concat());
        assert_eq!((ran.out.as_str(), ran.code), (typed.as_str(), Some(0)), "{}", ran.err);
    }
    // One line end is the shell's, two are meant.
    let tokens = |stdin: &str| {
        json(&backstop_with(stdin, &["run", "--json", "--max-tokens", "1"]))["prompt_tokens"].clone()
    };
    assert_ne!(tokens("Once\n\n"), tokens("Once\n"));

    let ran = backstop_with(b"Once \xff", &["run", "-"]);
    let expected = "error: stdin: byte 5 (0xff) is not UTF-8: convert the text first, as with iconv\n";
    assert_eq!((ran.err.as_str(), ran.code), (expected, Some(1)));
    let ran = backstop_with(vec![b'a'; (32 << 20) + 1], &["run", "-"]);
    assert_eq!(ran.err, "error: stdin: it is longer than a prompt may be, 33554432 bytes\n");
}

#[test]
fn an_empty_prompt_is_bos_alone_or_an_error() {
    let ran = ok(&["run", "", "--max-tokens", "3", "--json"]);
    assert_eq!(json(&ran)["prompt_tokens"], 1);
    let noise = Noise::new();
    refused(
        &["run", "", "--raw", "--model", noise.path()],
        1,
        "error: prompt: it is empty, and this model's tokenizer adds no BOS",
    );
}

#[test]
fn json_tells_everything_and_agrees_with_itself() {
    let ran = ok(&["run", PROMPT, "--max-tokens", "16", "--temperature", "0", "--backend", "cpu", "--json"]);
    assert_eq!(ran.err, "");
    assert_eq!(ran.out.trim_end().lines().count(), 1);
    let run = json(&ran);
    let model = Model::builtin().unwrap();
    let mut generation = model.generate(PROMPT, &greedy(16)).unwrap();
    let pieces: Vec<_> = generation.by_ref().map(Result::unwrap).collect();
    assert_eq!(run["text"], pieces.iter().map(|piece| piece.text.as_str()).collect::<String>());
    assert_eq!(run["tokens"], serde_json::json!(generation.tokens()));
    let logprobs = run["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), generation.tokens().len());
    assert!(logprobs.iter().all(|logprob| logprob.as_f64().unwrap() <= 0.0));
    assert_eq!(run["generated_tokens"], generation.tokens().len());
    assert_eq!(run["prompt_tokens"], generation.prompt().len());
    assert_eq!(run["cached_tokens"], 0);
    assert_eq!(run["finish_reason"], if generation.tokens().len() == 16 { "length" } else { "stop" });
    assert_eq!((&run["backend"]["kind"], &run["backend"]["reason"]), (&"cpu".into(), &"asked for".into()));
    assert!(run["backend"]["device"].as_str().unwrap().starts_with("cpu ("));
    assert_eq!((&run["fallbacks"], &run["replays"]), (&serde_json::json!([]), &serde_json::json!([])));
    let time = |name: &str| run["timings"][name].as_f64().unwrap();
    assert!(time("prompt") <= time("first_token") && time("first_token") <= time("total"), "{run}");
    let generated = generation.tokens().len() as f64 - 1.0;
    let rate = run["rates"]["generation"].as_f64().unwrap();
    assert_relative_eq!(rate * time("generation"), generated, max_relative = 1e-6);
    if cfg!(any(target_os = "linux", target_os = "macos")) {
        assert!(run["peak_memory_bytes"].as_u64().unwrap() > run["model"]["weight_bytes"].as_u64().unwrap());
    }
}

#[test]
fn the_models_own_sampling_holds_unless_the_command_line_says_otherwise() {
    let noise = Noise::new();
    let generation = noise.0.path().join("generation_config.json");
    let text = |options: &[&str]| {
        let args = ["run", PROMPT, "--max-tokens", "24", "--model", noise.path()];
        ok(&[&args, options].concat()).out
    };
    let greedy = text(&[]);
    fs::write(&generation, r#"{"do_sample": true, "temperature": 2.0}"#).unwrap();
    assert_ne!(text(&[]), greedy);
    assert_eq!(text(&["--temperature", "0"]), greedy);
    assert_eq!(text(&["--top-k", "1"]), greedy);
    fs::write(&generation, r#"{"repetition_penalty": 100.0}"#).unwrap();
    refused(
        &["run", PROMPT, "--model", noise.path()],
        1,
        "error: generation_config.json: repeat_penalty is 100, expected a number from 0.1 to 10; \
         --repeat-penalty replaces it",
    );
    assert_eq!(text(&["--repeat-penalty", "1"]), greedy);
}

#[test]
fn the_models_own_limit_of_tokens_holds_unless_the_command_line_says_otherwise() {
    let noise = Noise::new();
    let generation = noise.0.path().join("generation_config.json");
    let run = |options: &[&str]| {
        let args = ["run", PROMPT, "--raw", "--ctx", "64", "--model", noise.path()];
        let (ran, told) = (ok(&[&args, options].concat()), ok(&[&args, options, &["--json"]].concat()));
        let told = json(&told);
        let tokens = |name: &str| told[name].as_u64().unwrap();
        let ending = ran.err.lines().find(|line| line.starts_with("generated")).unwrap().rsplit(", ").next();
        (tokens("prompt_tokens"), tokens("generated_tokens"), ending.unwrap().to_owned())
    };
    let (prompt, _, _) = run(&[]);
    let full = "stopped by the full context (--ctx)";
    let own = "stopped at the model's own limit (--max-tokens)";
    for (file, options, generated, ending) in [
        ("{}", &[][..], 64 - prompt, full),
        (r#"{"max_new_tokens": 7}"#, &[], 7, own),
        (r#"{"max_new_tokens": 7}"#, &["--max-tokens", "9"], 9, "stopped at --max-tokens"),
        (r#"{"max_new_tokens": 7, "max_length": 60}"#, &[], 7, own),
        (r#"{"max_new_tokens": 1000}"#, &[], 64 - prompt, full),
        (r#"{"max_length": 60}"#, &[], 60 - prompt, own),
        // The prompt alone is that long: the file's limit cannot be meant for it.
        (r#"{"max_length": 2}"#, &[], 64 - prompt, full),
    ] {
        fs::write(&generation, file).unwrap();
        assert_eq!(run(options), (prompt, generated, ending.to_owned()), "{file} {options:?}");
    }
}

#[test]
fn a_chat_template_is_used_unless_raw() {
    let noise = Noise::new();
    let model = noise.load();
    let expected = |messages: &[Message]| {
        model.chat(&Chat::new(messages.to_vec()), &greedy(12)).unwrap().text().unwrap()
    };
    let (system, user) = (Message::new("system", "Be brief."), Message::new("user", PROMPT));
    let args = ["run", PROMPT, "--max-tokens", "12", "--model", noise.path()];
    assert_eq!(ok(&args).out, expected(std::slice::from_ref(&user)));
    assert_eq!(ok(&[&args, &["--system", "Be brief."][..]].concat()).out, expected(&[system, user]));
    let raw = model.generate(PROMPT, &greedy(12)).unwrap().text().unwrap();
    assert_eq!(ok(&[&args, &["--raw"][..]].concat()).out, raw);
}

#[test]
fn thoughts_are_no_part_of_the_text() {
    let noise = Noise::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let template = "{#- </think> -#}{%- for m in messages -%}{{ m.content }}|{%- endfor -%}\
                    {%- if add_generation_prompt -%}<think>{%- endif -%}";
    fs::write(file.path(), template).unwrap();
    let thought = noise.load().generate(&format!("{PROMPT}|<think>"), &greedy(12)).unwrap().text().unwrap();
    let args = ["run", PROMPT, "--max-tokens", "12", "--model", noise.path(), "--chat-template"];
    let args = [&args[..], &[file.path().to_str().unwrap()]].concat();
    assert_eq!(ok(&args).out, "");
    let run = json(&ok(&[&args[..], &["--json"]].concat()));
    assert_eq!(
        (run["text"].as_str(), run["reasoning"].as_str().map(str::trim)),
        (Some(""), Some(thought.trim()))
    );

    let choice = TemplateChoice::File(file.path().to_owned());
    let load = LoadOptions { chat_template: Some(choice), ..LoadOptions::default() };
    let model = Model::load_with(ModelFiles::open(Path::new(noise.path())).unwrap(), load).unwrap();
    let mut answer = model.chat(&Chat::new(vec![Message::new("user", PROMPT)]), &greedy(12)).unwrap();
    let pieces: Vec<Piece> = answer.by_ref().map(|piece| piece.unwrap()).collect();
    assert!(pieces.iter().all(|piece| piece.text.is_empty()));
    let thoughts: String = pieces.iter().map(|piece| piece.reasoning.as_str()).collect();
    assert_eq!(thoughts.trim(), thought.trim());
    let message = answer.reply().to_message();
    assert_eq!((&message.content, &message.extra["reasoning_content"]), (&"".into(), &thoughts.into()));
}

#[test]
fn a_closed_stdout_ends_quietly() {
    let noise = Noise::new();
    for args in
        [&["run", PROMPT, "--ctx", "100000", "--model", noise.path()][..], &["run", PROMPT], &["inspect"]]
    {
        let mut child = command(args).spawn().unwrap();
        drop(child.stdout.take());
        let ran = ended(child);
        assert_eq!((ran.err.as_str(), ran.code), ("", Some(0)), "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let full = fs::File::create("/dev/full").unwrap();
    let ran = ended(command(&["run", PROMPT]).stdout(full).spawn().unwrap());
    assert_eq!(
        (ran.err.as_str(), ran.code),
        ("error: stdout: No space left on device (os error 28)\n", Some(1))
    );
}

#[test]
fn ctrl_c_ends_with_the_text_so_far_and_the_summary() {
    let noise = Noise::new();
    let args = ["run", PROMPT, "--temperature", "1", "--ctx", "200000", "--model", noise.path()];
    let mut child = command(&args).spawn().unwrap();
    let mut first = [0; 16];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    interrupt(&child);
    let started = Instant::now();
    let ran = ended_lossy(child);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(ran.code, Some(130), "{}", ran.err);
    assert!(
        ran.err.lines().any(|line| line.starts_with("generated") && line.ends_with(", interrupted")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("\nprompt "), "{}", ran.err);

    let mut child = command(&[&args[..], &["--json", "-v"]].concat()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("generating")), "-v says when it begins");
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    let ran = ended_lossy(child);
    assert_eq!((json(&ran)["finish_reason"].as_str(), ran.code), (Some("cancelled"), Some(130)));
    assert_eq!(
        json(&ran)["tokens"].as_array().unwrap().len(),
        json(&ran)["logprobs"].as_array().unwrap().len()
    );
}

#[test]
fn ctrl_c_ends_a_long_prompt_at_its_next_chunk() {
    let noise = Noise::new();
    let args =
        ["run", "-", "--raw", "--ctx", "200000", "--threads", "1", "--json", "-v", "--model", noise.path()];
    let start = || {
        let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&vec![1; 190_000]).unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(log.any(|line| line.unwrap().contains("generating")), "-v says when it begins");
        child
    };
    // The whole prompt takes minutes.
    let child = start();
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    let started = Instant::now();
    let ran = ended(child);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let told = json(&ran);
    assert_eq!((told["finish_reason"].as_str(), ran.code), (Some("cancelled"), Some(130)));
    assert_eq!((&told["generated_tokens"], &told["prompt_tokens"]), (&0.into(), &190_000.into()));

    // Whoever presses it again does not wait for that.
    let child = start();
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(20));
    interrupt(&child);
    let started = Instant::now();
    assert_eq!(ended(child).code, Some(130));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

fn interrupt(child: &Child) {
    // SAFETY: the process is our child and not yet waited for, so that the id is its own.
    let result = unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(result, 0);
}

/// As [`ended`], where the first bytes of stdout were read and may have cut a character.
fn ended_lossy(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// What the model's author published, by way of the real binary.
#[test]
fn a_real_model_tells_its_published_story() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(dir) =
        root.ancestors().map(|dir| dir.join("shared/models/stories260k")).find(|dir| dir.is_dir())
    else {
        println!("skipped: shared/models/stories260k is absent");
        return;
    };
    let readme = fs::read_to_string(dir.join("README.md")).unwrap();
    let story = readme.split("```\n").nth(1).unwrap().trim_end_matches('\n');
    for backend in ["cpu", "auto"] {
        let model = dir.to_str().unwrap();
        let args = [
            "run",
            PROMPT,
            "--model",
            model,
            "--max-tokens",
            "200",
            "--temperature",
            "0",
            "--backend",
            backend,
        ];
        assert_eq!(ok(&args).out, story, "{backend}");
    }
}

#[test]
fn what_is_piped_in_follows_the_prompt() {
    let noise = Noise::plain();
    let tokens = |stdin: &str, prompt: &str| {
        let args = ["run", prompt, "--json", "--max-tokens", "1", "--model", noise.path()];
        let ran = backstop_with(stdin, &args);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        json(&ran)["prompt_tokens"].as_u64().unwrap()
    };
    let alone = tokens("", "Sum up:");
    assert_eq!(alone, tokens("", "Sum up:"));
    assert_eq!(tokens("a long text\n", "Sum up:"), tokens("", "Sum up:\n\na long text"));
    assert_eq!(tokens("Sum up:\n", "-"), alone);
}

#[test]
fn special_tokens_of_a_raw_prompt_are_read_unless_they_are_to_stay_text() {
    let noise = Noise::new();
    let tokens = |more: &[&str]| {
        let args = ["run", "<|im_start|>", "--raw", "--json", "--max-tokens", "1", "--model", noise.path()];
        json(&ok(&[&args, more].concat()))["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(&[]), 1);
    assert!(tokens(&["--no-special"]) > 1);
    let ran = backstop(&["run", "x", "--no-special"]);
    assert!(ran.code == Some(2) && ran.err.contains("--raw"), "{}", ran.err);
}

#[test]
fn a_seed_of_minus_one_is_a_random_one() {
    let text = |seed: &str| {
        let args =
            ["run", PROMPT, "--max-tokens", "40", "--temperature", "1.5", "--backend", "cpu", "--seed", seed];
        ok(&args).out
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("-1"), text("-1"));
}

#[test]
fn a_name_that_nothing_has_is_no_prompt() {
    let ran = backstop(&["run", "deepseek-r9:8b"]);
    assert!(ran.code != Some(0) && ran.out.is_empty(), "{}", ran.out);
    assert!(ran.err.contains("deepseek-r9:8b"), "{}", ran.err);
    let ran = backstop(&["parity", "qwen3:8b"]);
    assert_eq!((ran.code, &*ran.out), (Some(1), ""));
    assert!(ran.err.starts_with("error: qwen3:8b is not on this machine"), "{}", ran.err);
}

#[test]
fn whether_it_thinks_is_told_to_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let template = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let asks = template(
        "asks.jinja",
        "{{ messages[0].content }}{% if enable_thinking is defined %} {{ enable_thinking }}{% endif %}",
    );
    let says = |template: &str, more: &[&str]| {
        let args =
            ["run", PROMPT, "-n", "12", "--no-summary", "--backend", "cpu", "--chat-template", template];
        ok(&[&args[..], more].concat()).out
    };
    for (think, text) in [(&[][..], ""), (&["--think", "on"], " True"), (&["--think", "off"], " False")] {
        let plain = template("plain.jinja", &format!("{{{{ messages[0].content }}}}{text}"));
        assert_eq!(says(&asks, think), says(&plain, &[]), "{think:?}");
    }
    assert_ne!(says(&asks, &["--think", "on"]), says(&asks, &["--think", "off"]));
    let noise = Noise::plain();
    let ran = backstop(&["run", PROMPT, "--think", "on", "--model", noise.path()]);
    assert!(ran.code == Some(2) && ran.err.contains("--think needs a chat template"), "{}", ran.err);
    let ran = backstop(&["run", PROMPT, "--think", "much"]);
    assert!(
        ran.code == Some(2) && ran.err.contains("expected on, off, minimal, low, medium or high"),
        "{}",
        ran.err
    );
}
