//! What coding agents and libraries send beside the plain case: each request becomes the prompt that it stands for.

use std::fs;

use serde_json::{Value, json};

use crate::script::{QWEN3, Script};
use crate::support::{Noise, Server, named_events, with};

/// Writes everything that it is given; systems at the beginning alone.
const TEMPLATE: &str = "{%- for t in tools or [] -%}{tool {{ t.function.name }} {{ t.function.description or '' }}}{%- endfor -%}\
    {%- for m in messages -%}{%- if m.role == 'system' and not loop.first -%}{{ raise_exception('too late') }}{%- endif -%}\
    [{{ m.role }}{% if m.reasoning_content %} thought {{ m.reasoning_content }}{% endif %}] {{ m.content }}\
    {%- for c in m.tool_calls or [] -%}({{ c.function.name }} {{ c.function.arguments | tojson }}){%- endfor -%}\
    {%- endfor -%}{%- if add_generation_prompt -%}[assistant]{%- endif -%}";

/// A model of noise that is asked for prompts.
struct Prompts {
    _noise: Noise,
    server: Server,
}

impl Prompts {
    fn new() -> Self {
        let noise = Noise::new();
        let config = json!({ "chat_template": TEMPLATE }).to_string();
        fs::write(noise.0.path().join("tokenizer_config.json"), config).unwrap();
        let server = Server::start(&[noise.path()]);
        Self { _noise: noise, server }
    }

    /// The prompt of a chat, and its tokens.
    fn chat(&self, body: &Value) -> (String, usize) {
        let shown = self.server.post("/apply-template", body).ok();
        (shown["prompt"].as_str().unwrap().to_owned(), shown["tokens"].as_array().unwrap().len())
    }

    /// The tokens of what Anthropic's API is asked.
    fn message(&self, body: Value) -> usize {
        let count = self.server.post("/v1/messages/count_tokens", &body).ok()["input_tokens"].as_u64();
        count.unwrap() as usize
    }

    /// The tokens of what the API of responses is asked.
    fn response(&self, body: Value) -> usize {
        let body = with(body, json!({ "max_output_tokens": 1, "temperature": 0 }));
        self.server.post("/v1/responses", &body).ok()["usage"]["input_tokens"].as_u64().unwrap() as usize
    }
}

fn user(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

#[test]
fn a_chat_is_shown_as_the_model_is_given_it() {
    let prompts = Prompts::new();
    let call =
        json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } });
    let (prompt, tokens) = prompts.chat(&json!({
        "tools": [{ "type": "function", "function": { "name": "f", "description": "F." } }],
        "messages": [
            user("x"),
            { "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "1", "content": [{ "type": "text", "text": "y" }] },
        ],
    }));
    assert_eq!(prompt, r#"{tool f F.}[user] x[assistant thought hm] (f {"a": 1})[tool] y[assistant]"#);
    assert!(tokens > 10);
    // Systems that come too late for the template are told by the user.
    let late = json!({ "messages": [{ "role": "developer", "content": "a" }, { "role": "system", "content": "b" }, user("x"),
        { "role": "system", "content": "c" }] });
    assert_eq!(prompts.chat(&late).0, "[system] a\n\nb[user] x\n\nc[assistant]");
    let answered = json!({ "messages": [user("x"), { "role": "assistant", "content": "y" }] });
    assert_eq!(prompts.chat(&answered).0, "[user] x[assistant] y[assistant]");
}

#[test]
fn what_claude_code_sends_becomes_the_prompt_it_stands_for() {
    let prompts = Prompts::new();
    let tool = |name: &str, more: Value| {
        with(json!({ "name": name, "description": "D.", "input_schema": { "type": "object" } }), more)
    };
    let billing = |id: &str| json!({ "type": "text", "text": format!("x-anthropic-billing-header: cc_version=2.1.{id}; cc_entrypoint=cli;") });
    let body = |id: &str| {
        json!({
            "model": prompts.server.get("/v1/models").ok()["data"][0]["id"],
            "max_tokens": 8,
            "system": [billing(id), { "type": "text", "text": "Be kind.", "cache_control": { "type": "ephemeral" } }],
            "thinking": { "type": "adaptive", "display": "omitted" },
            "context_management": { "edits": [{ "type": "clear_thinking_20251015", "keep": "all" }] },
            "output_config": { "effort": "high" },
            "metadata": { "user_id": "{}" },
            "tools": [tool("read", json!({})), tool("write", json!({ "defer_loading": true })),
                { "type": "bash_20250124", "name": "bash" }],
            "messages": [
                { "role": "user", "content": [{ "type": "text", "text": "x" }] },
                { "role": "system", "content": [{ "type": "text", "text": "It is late." }], "output_config": { "effort": "low" } },
                { "role": "assistant", "content": [{ "type": "thinking", "thinking": "hm", "signature": "" },
                    { "type": "tool_use", "id": "1", "name": "search", "input": { "q": "w" } }] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "1",
                    "content": [{ "type": "tool_reference", "tool_name": "write" }] },
                    { "type": "document", "title": "T", "source": { "type": "text", "media_type": "text/plain", "data": "y" } }] },
            ],
        })
    };
    let definition = json!({ "type": "function", "function": { "name": "write", "description": "D.", "parameters": { "type": "object" } } });
    let call =
        json!({ "id": "1", "type": "function", "function": { "name": "search", "arguments": { "q": "w" } } });
    let (prompt, tokens) = prompts.chat(&json!({
        "tools": [{ "type": "function", "function": { "name": "read", "description": "D.", "parameters": { "type": "object" } } }],
        "messages": [
            { "role": "system", "content": "Be kind." },
            user("x\n\nIt is late."),
            { "role": "assistant", "reasoning_content": "hm", "tool_calls": [call] },
            { "role": "tool", "content": definition.to_string() },
            user("T\ny"),
        ],
    }));
    assert!(prompt.starts_with(
        "{tool read D.}[system] Be kind.[user] x\n\nIt is late.[assistant thought hm] (search "
    ));
    // Whatever the line of the bill says.
    assert_eq!((prompts.message(body("1.fa9")), prompts.message(body("33.0a1"))), (tokens, tokens));
    let answer = prompts.server.post("/v1/messages?beta=true", &body("1.fa9"));
    answer.ok();
    let told = answer.header("x-backstop-ignored");
    assert_eq!(told, Some("context_management, tools[2], thinking.display"));
}

#[test]
fn answers_go_on_from_those_that_are_kept() {
    let prompts = Prompts::new();
    let ask = |body: Value| {
        let body = with(body, json!({ "temperature": 0, "max_output_tokens": 6 }));
        prompts.server.post("/v1/responses", &body)
    };
    let first = ask(json!({ "input": "x", "instructions": "Be kind." })).ok();
    let said = first["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    let (id, item) = (first["id"].as_str().unwrap(), first["output"][0]["id"].as_str().unwrap());
    assert_eq!((&first["store"], &first["previous_response_id"]), (&json!(true), &json!(null)));

    // By the answer's id, without its instructions; by the item's; and as it was written.
    let whole = prompts
        .chat(&json!({ "messages": [user("x"), { "role": "assistant", "content": said }, user("y")] }))
        .1;
    let second = ask(json!({ "input": "y", "previous_response_id": id })).ok();
    assert_eq!(
        (second["usage"]["input_tokens"].as_u64().unwrap() as usize, &second["previous_response_id"]),
        (whole, &json!(id))
    );
    let items = json!([user("x"), { "type": "item_reference", "id": item }, user("y")]);
    assert_eq!(prompts.response(json!({ "input": items })), whole);
    let items = json!([user("x"), first["output"][0], user("y")]);
    assert_eq!(prompts.response(json!({ "input": items })), whole);
    // The second answer has both before it.
    let third = ask(json!({ "input": "z", "previous_response_id": second["id"] })).ok();
    assert!(third["usage"]["input_tokens"].as_u64().unwrap() as usize > whole);

    // A streamed one is kept, too; one that is not to be is not.
    let events = named_events(&ask(json!({ "input": "x", "stream": true })));
    let streamed = events.last().unwrap().1["response"]["id"].as_str().unwrap().to_owned();
    ask(json!({ "input": "y", "previous_response_id": streamed })).ok();
    let unkept = ask(json!({ "input": "x", "store": false })).ok();
    let refused = ask(json!({ "input": "y", "previous_response_id": unkept["id"] }));
    let id = unkept["id"].as_str().unwrap();
    let wanted = format!("previous_response_id: \"{id}\" is not kept: send the whole conversation");
    assert_eq!(refused.refusal(404), wanted);
    assert_eq!(refused.json()["error"]["code"], "previous_response_not_found");
    let refused = ask(json!({ "input": [{ "type": "item_reference", "id": "msg_0" }] }));
    assert_eq!(refused.refusal(404), "input[0].id: \"msg_0\" is not kept: send the item itself");
    let reference = json!({ "type": "item_reference", "id": item });
    let refused = ask(json!({ "input": [reference, reference] }));
    assert_eq!(refused.refusal(400), format!("input[1].id: \"{item}\" is there already"));
}

#[test]
fn items_of_codex_become_the_prompt_they_stand_for() {
    let prompts = Prompts::new();
    let parameters = json!({ "type": "object" });
    let function = |name: &str| json!({ "type": "function", "name": name, "description": "D.", "parameters": parameters });
    let body = json!({
        "instructions": "Be kind.",
        "reasoning": { "effort": "low", "summary": "auto" },
        "include": ["reasoning.encrypted_content"],
        "text": { "verbosity": "low" },
        "client_metadata": { "a": "b" },
        "store": false,
        "tools": [function("run"), { "type": "namespace", "name": "agents", "tools": [function("run"), function("close")] },
            { "type": "web_search" }],
        "input": [
            { "type": "additional_tools", "role": "developer", "tools": [{ "type": "custom", "name": "patch",
                "description": "P.", "format": { "type": "grammar", "syntax": "lark", "definition": "start: X" } }] },
            { "type": "configuration_update", "reasoning": { "effort": "high" } },
            { "type": "message", "role": "developer", "content": [{ "type": "input_text", "text": "Now." }] },
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "x" }],
                "internal_chat_message_metadata_passthrough": { "turn_id": "1" } },
            { "type": "reasoning", "id": "rs_1", "summary": [], "content": [{ "type": "reasoning_text", "text": "hm" }], "encrypted_content": null },
            { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "I do." }] },
            { "type": "function_call", "call_id": "1", "name": "run", "namespace": "agents", "arguments": "{\"a\": 1}" },
            { "type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "X" },
            { "type": "web_search_call", "id": "ws_1", "status": "completed" },
            { "type": "function_call_output", "call_id": "1", "output": "y" },
            { "type": "custom_tool_call_output", "call_id": "2", "output": [{ "type": "input_text", "text": "z" }] },
        ],
    });
    let shown = |name: &str, description: &str| json!({ "type": "function", "function": { "name": name, "description": description } });
    let call = |name: &str, arguments: Value| json!({ "id": "1", "type": "function", "function": { "name": name, "arguments": arguments } });
    let (prompt, tokens) = prompts.chat(&json!({
        "tools": [shown("run", "D."), shown("agents__run", "D."), shown("close", "D."),
            shown("patch", "P.\n\nThe input follows this grammar:\nstart: X")],
        "messages": [
            { "role": "system", "content": "Be kind.\n\nNow." },
            user("x"),
            { "role": "assistant", "content": "I do.", "reasoning_content": "hm",
                "tool_calls": [call("agents__run", json!("{\"a\": 1}")), call("patch", json!({ "input": "X" }))] },
            { "role": "tool", "content": "y" },
            { "role": "tool", "content": "z" },
        ],
    }));
    assert!(
        prompt
            .contains(r#"[assistant thought hm] I do.(agents__run {"a": 1})(patch {"input": "X"})[tool] y"#),
        "{prompt}"
    );
    assert_eq!(prompts.response(body), tokens);
    // Nothing that the service alone keeps.
    for (more, wanted) in [
        (json!({ "conversation": "c" }), "conversation: not supported: it is kept by the service alone"),
        (json!({ "prompt": { "id": "p" } }), "prompt: not supported: it is kept by the service alone"),
        (json!({ "background": true }), "background: true is not supported"),
        (
            json!({ "input": [{ "type": "picture" }] }),
            "input[0].type: items of type \"picture\" are not supported",
        ),
    ] {
        let answer = prompts.server.post("/v1/responses", &with(json!({ "input": "x" }), more));
        assert_eq!(answer.refusal(400), wanted);
    }
}

#[test]
fn an_assistant_that_says_nothing_is_none() {
    let prompts = Prompts::new();
    let asked = |content: &[Value]| {
        let said = content.iter().map(|content| json!({ "role": "assistant", "content": content }));
        let messages: Vec<Value> = [user("x")].into_iter().chain(said).collect();
        prompts.message(json!({ "messages": messages }))
    };
    let plain = asked(&[]);
    for content in [json!(""), json!([]), json!([{ "type": "text", "text": "" }])] {
        assert_eq!(asked(&[content]), plain);
    }
    assert_ne!(asked(&["a".into()]), plain);
}

#[test]
fn a_tool_of_no_group_keeps_its_name() {
    let prompts = Prompts::new();
    let group =
        json!({ "type": "namespace", "name": "agents", "tools": [{ "type": "function", "name": "run" }] });
    let call = json!({ "type": "function_call", "call_id": "1", "name": "run", "namespace": "agents", "arguments": "{}" });
    let body = json!({ "tools": [group, { "type": "function", "name": "run" }],
        "input": [user("x"), call, { "type": "function_call_output", "call_id": "1", "output": "y" }] });
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let call =
        json!({ "id": "1", "type": "function", "function": { "name": "agents__run", "arguments": "{}" } });
    let (prompt, tokens) = prompts.chat(&json!({ "tools": [tool("agents__run"), tool("run")], "messages": [
        user("x"), { "role": "assistant", "content": "", "tool_calls": [call] }, { "role": "tool", "content": "y" }] }));
    assert!(prompt.starts_with("{tool agents__run }{tool run }[user] x"), "{prompt}");
    assert_eq!(prompts.response(body), tokens);
}

#[test]
fn only_the_tools_that_are_allowed_are_shown() {
    let prompts = Prompts::new();
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let allowed = json!({ "mode": "auto", "tools": [tool("b")] });
    let (prompt, tokens) = prompts.chat(&json!({ "messages": [user("x")], "tools": [tool("a"), tool("b")],
        "tool_choice": { "type": "allowed_tools", "allowed_tools": allowed } }));
    assert_eq!(prompt, "{tool b }[user] x[assistant]");
    let tool = |name: &str| json!({ "type": "function", "name": name });
    let choice = json!({ "type": "allowed_tools", "mode": "auto", "tools": [tool("b")] });
    let body = json!({ "input": "x", "tools": [tool("a"), tool("b")], "tool_choice": choice });
    assert_eq!(prompts.response(body), tokens);
}

#[test]
fn a_template_that_does_not_take_an_effort_is_given_none() {
    let noise = Noise::new();
    let template = "{%- if reasoning_effort == 'minimal' -%}{{ raise_exception('no such effort') }}{%- endif -%}\
        {{ reasoning_effort or 'none' }}:{{ messages[0].content }}";
    let config = json!({ "chat_template": template }).to_string();
    fs::write(noise.0.path().join("tokenizer_config.json"), config).unwrap();
    let server = Server::start(&[noise.path()]);
    for (effort, prompt) in [("high", "high:x"), ("minimal", "none:x")] {
        let body = json!({ "messages": [user("x")], "reasoning_effort": effort });
        assert_eq!(server.post("/apply-template", &body).ok()["prompt"], prompt);
    }
}

#[test]
fn an_effort_says_whether_to_think() {
    let noise = Noise::new();
    let template = "{{ enable_thinking }}/{{ thinking }}/{{ reasoning_effort }}";
    let config = json!({ "chat_template": template }).to_string();
    fs::write(noise.0.path().join("tokenizer_config.json"), config).unwrap();
    let server = Server::start(&[noise.path()]);
    let asked = |more: Value| {
        let mut body = json!({ "messages": [user("x")] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/apply-template", &body).ok()["prompt"].clone()
    };
    assert_eq!(asked(json!({ "reasoning_effort": "high" })), "True/True/high");
    assert_eq!(asked(json!({ "reasoning_effort": "minimal" })), "//minimal");
    assert_eq!(asked(json!({ "reasoning_effort": "none" })), "False/False/");
    let variables = json!({ "enable_thinking": false, "reasoning_effort": "low" });
    assert_eq!(
        asked(json!({ "reasoning_effort": "high", "chat_template_kwargs": variables })),
        "False/True/low"
    );
}

#[test]
fn names_of_fields_that_are_passed_over_are_bounded() {
    let prompts = Prompts::new();
    let mut body = json!({ "messages": [user("x")], "max_tokens": 1 });
    for i in 0..2_000 {
        body[format!("field_{}_{}", "x".repeat(i % 80), i)] = i.into();
    }
    let answer = prompts.server.post("/v1/chat/completions", &body);
    answer.ok();
    assert_eq!(answer.header("x-backstop-ignored").unwrap().split(", ").count(), 16);
}

#[test]
fn calls_come_back_by_the_names_that_the_client_gave() {
    let scripts: &[(&str, &[&str])] = &[
        (
            "group",
            &["<tool_call>\n", r#"{"name": "close", "arg"#, r#"uments": {"id": 3}}"#, "\n</tool_call>"],
        ),
        (
            "patch",
            &[
                "<tool_call>",
                "\n{\"name\": \"patch\", ",
                r#""arguments": {"input": "a\n"#,
                "b\"}}",
                "\n</tool_",
                "call>",
            ],
        ),
    ];
    let script = Script::new(QWEN3, scripts);
    let server = script.serve();
    let body = |name: &str, stream: bool| {
        json!({ "input": name, "temperature": 0, "stream": stream, "tools": [
            { "type": "namespace", "name": "agents", "tools": [{ "type": "function", "name": "close" }] },
            { "type": "custom", "name": "patch", "format": { "type": "text" } },
        ] })
    };
    let item = |name: &str| {
        let whole = server.post("/v1/responses", &body(name, false)).ok();
        let mut item = whole["output"][0].clone();
        item.as_object_mut().unwrap().retain(|key, _| !["id", "call_id"].contains(&key.as_str()));
        item
    };
    let wanted = json!({ "type": "function_call", "status": "completed", "name": "close", "namespace": "agents",
        "arguments": "{\"id\": 3}" });
    assert_eq!(item("group"), wanted);
    let wanted =
        json!({ "type": "custom_tool_call", "status": "completed", "name": "patch", "input": "a\nb" });
    assert_eq!(item("patch"), wanted);
    let events = named_events(&server.post("/v1/responses", &body("patch", true)));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let wanted = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(names, wanted);
    assert_eq!((&events[3].1["input"], &events[4].1["item"]["input"]), (&json!("a\nb"), &json!("a\nb")));
    assert_eq!(events[2].1["item"]["input"], "");
}

/// A text is the same whether or not its tokens were guessed, and the answer tells whether they were.
#[test]
fn guesses_change_no_answer() {
    let story = "Tom had a red ball. Tom had a red ball. Tom had a red ball. Tom had";
    let ask = |server: &Server| -> Vec<Value> {
        let answers = (0..12).map(|seed| {
            let temperature = f64::from(seed % 3) / 2.0;
            let body =
                json!({ "prompt": story, "max_tokens": 120, "seed": seed, "temperature": temperature });
            server.post("/v1/completions", &body).ok()
        });
        answers.collect()
    };
    let [plain, guessed] = ["off", "on"].map(|drafts| ask(&Server::start(&["--drafts", drafts])));
    for (plain, guessed) in plain.iter().zip(&guessed) {
        assert_eq!(plain["choices"], guessed["choices"]);
        assert_eq!(plain["usage"], guessed["usage"]);
        assert_eq!(
            (&plain["timings"]["draft_n"], &plain["timings"]["draft_n_accepted"]),
            (&json!(0), &json!(0))
        );
    }
}
