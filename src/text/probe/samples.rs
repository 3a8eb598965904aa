//! Formats of calls for tests, each told from calls as a template of its kind writes them.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;

/// The marks of gpt-oss's template, and what it refuses, without its instructions; as in llama.cpp's
/// `models/templates/openai-gpt-oss-120b.jinja`.
pub(crate) const HARMONY: &str = "{%- for m in messages -%}
{%- if m.role == 'assistant' and m.tool_calls -%}
{%- set call = m.tool_calls[0].function -%}
{%- set thought = m.content if m.content else m.thinking -%}
{%- if m.content and m.thinking -%}{{ raise_exception('content and thinking beside calls') }}{%- endif -%}
{%- if thought -%}<|start|>assistant<|channel|>analysis<|message|>{{ thought }}<|end|>{%- endif -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>{{ call.arguments | tojson }}<|call|>
{%- elif m.role == 'assistant' -%}
{%- set last = loop.last and not add_generation_prompt -%}
{%- if last and m.thinking -%}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{%- endif -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if last else '<|end|>' }}
{%- elif m.role == 'tool' -%}
<|start|>functions.tool to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";

/// The marks of Muse Glimmer's template, and what it refuses, without its instructions.
pub(crate) const ATEM: &str = r#"{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if m.reasoning_content -%}<|start|>assistant to=self<|message|>{{ m.reasoning_content }}<|eom|>{%- endif -%}
{%- for call in m.tool_calls or [] -%}
{%- set f = call.function -%}
{%- if f.arguments is not mapping -%}{{ raise_exception('arguments that are no mapping') }}{%- endif -%}
<|start|>assistant to={{ f.name }}<|message|>{{ '<atem:function_calls>\n<atem:invoke name="' + f.name + '">\n' }}
{%- for key, value in f.arguments.items() -%}
{{ '<atem:parameter name="' + key + '">' }}{{ value if value is string else value | tojson }}{{ '</atem:parameter>\n' }}
{%- endfor -%}
{{ '</atem:invoke>\n</atem:function_calls>' }}{{ '<|eot|>' if loop.last else '<|eom|>' }}
{%- endfor -%}
{%- if not m.tool_calls -%}<|start|>assistant to=user<|message|>{{ m.content }}<|eot|>{%- endif -%}
{%- elif m.role == 'tool' -%}
<|start|>tool {{ m.name }}<|message|>{{ m.content }}<|eot|>
{%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|eot|>
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"#;

/// A template without special tokens.
pub(crate) fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source(Path::new("t.jinja"), source, BTreeMap::new()).expect("it is one")
}

/// What a template shows.
pub(crate) fn shown(source: &str) -> ReplyFormat {
    template(source).reply_format(true)
}

/// The format of calls that are written like this. One call where there is no `separator`.
fn told(
    open: &str,
    write: impl Fn(&ProbeCall, usize) -> String,
    separator: Option<&str>,
    close: &str,
) -> Arc<ToolFormat> {
    let calls = calls(IDS[0].map(str::to_owned));
    let calls = &calls[..if separator.is_some() { 2 } else { 1 }];
    let written: Vec<String> = calls.iter().enumerate().map(|(i, call)| write(call, i)).collect();
    let answer = format!("<bot>{open}{}{close}<eos>\n<tool>", written.join(separator.unwrap_or_default()));
    let shown = Shown { header: "<bot>", ending: "<eos>\n", thoughts_end: None, answer: &answer, calls };
    Arc::new(read_back(&shown).unwrap_or_else(|| panic!("not read back: {answer:?}")))
}

fn object(call: &ProbeCall, arguments: &str, more: &str) -> String {
    format!("{{\"name\": \"{}\", \"{arguments}\": {}{more}}}", call.name, call.arguments)
}

/// Each argument between what comes before a key, between it and the value, and after the value.
fn tagged(call: &ProbeCall, tags: [&str; 4]) -> String {
    let [begin, string, other, end] = tags;
    let members = call.arguments.as_object().into_iter().flatten();
    let argument = |(key, value): (&String, &Json)| match value.as_str() {
        Some(text) => format!("{begin}{key}{string}{text}{end}"),
        None => format!("{begin}{key}{other}{value}{end}"),
    };
    members.map(argument).collect()
}

/// Hermes, Qwen, Granite 4.
pub(crate) fn hermes() -> Arc<ToolFormat> {
    let write =
        |call: &ProbeCall, _: usize| format!("<tool_call>\n{}\n</tool_call>", object(call, "arguments", ""));
    told("", write, Some("\n"), "")
}

/// Llama 3.
pub(crate) fn bare() -> Arc<ToolFormat> {
    told("", |call, _| object(call, "parameters", ""), None, "")
}

/// Mistral Nemo.
pub(crate) fn list() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| object(call, "arguments", &format!(", \"id\": \"{}\"", call.id));
    told("[TOOL_CALLS][", write, Some(", "), "]")
}

/// Mistral Small 3.2.
pub(crate) fn with_ids() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| {
        format!("[TOOL_CALLS]{}[CALL_ID]{}[ARGS]{}", call.name, call.id, call.arguments)
    };
    told("", write, Some(""), "")
}

/// Devstral, Ministral 3.
pub(crate) fn args() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| format!("[TOOL_CALLS]{}[ARGS]{}", call.name, call.arguments);
    told("", write, Some(""), "")
}

/// Kimi K2.
pub(crate) fn numbered() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, i: usize| {
        format!("<|call|>functions.{}:{i}<|args|>{}<|/call|>", call.name, call.arguments)
    };
    told("<|calls|>", write, Some(""), "<|/calls|>")
}

/// Functionary 3.1.
pub(crate) fn function() -> Arc<ToolFormat> {
    told("", |call, _| format!("<function={}>{}</function>", call.name, call.arguments), Some(""), "")
}

/// Qwen3-Coder, Qwen 3.5.
pub(crate) fn parameters() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| {
        let arguments = tagged(call, ["<parameter=", ">\n", ">\n", "\n</parameter>\n"]);
        format!("<tool_call>\n<function={}>\n{arguments}</function>\n</tool_call>", call.name)
    };
    told("", write, Some("\n"), "")
}

/// GLM 4.5.
pub(crate) fn pairs() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| {
        let middle = "</arg_key>\n<arg_value>";
        let arguments = tagged(call, ["<arg_key>", middle, middle, "</arg_value>\n"]);
        format!("<tool_call>{}\n{arguments}</tool_call>", call.name)
    };
    told("", write, Some("\n"), "")
}

/// DeepSeek 3.2, but for its marks.
pub(crate) fn typed() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| {
        let tags = ["<param name=\"", "\" string=\"true\">", "\" string=\"false\">", "</param>\n"];
        format!("<invoke name=\"{}\">\n{}</invoke>", call.name, tagged(call, tags))
    };
    told("<calls>\n", write, Some("\n"), "\n</calls>")
}

/// DeepSeek R1, but for its marks.
pub(crate) fn fenced() -> Arc<ToolFormat> {
    let write = |call: &ProbeCall, _: usize| {
        format!("<|call|>function<|sep|>{}\n```json\n{}\n```<|/call|>", call.name, call.arguments)
    };
    told("<|calls|>", write, Some("\n"), "<|/calls|>")
}

/// LFM 2, but for its marks.
pub(crate) fn python() -> Arc<ToolFormat> {
    told("<calls>[", |call, _| in_python(call), Some(", "), "]</calls>")
}

/// Llama 4 and others that are asked for a list.
pub(crate) fn bare_python() -> Arc<ToolFormat> {
    told("[", |call, _| in_python(call), Some(", "), "]")
}

fn in_python(call: &ProbeCall) -> String {
    let members = call.arguments.as_object().into_iter().flatten();
    let arguments: Vec<String> = members.map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}({})", call.name, arguments.join(", "))
}

/// All of them.
pub(crate) fn all() -> Vec<Arc<ToolFormat>> {
    vec![
        hermes(),
        bare(),
        list(),
        with_ids(),
        args(),
        numbered(),
        function(),
        parameters(),
        pairs(),
        typed(),
        fenced(),
        python(),
        bare_python(),
    ]
}
