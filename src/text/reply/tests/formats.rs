//! Answers of models whose templates are followed here: what such a template shows, and that what it writes of calls is read.

use serde_json::json;

use super::*;
use crate::text::{Message, RenderOptions};

/// A template, and what is known of it.
struct Case {
    /// In the shape of a real one's: roles, thoughts and calls, without instructions.
    template: &'static str,
    /// What it shows of a call.
    call: &'static str,
    /// Around all calls, and between two.
    around: [&'static str; 3],
    /// What its calls begin and end with.
    first: &'static str,
    last: &'static str,
    /// A mark that ends an argument or a call, which a string may hold.
    end: &'static str,
}

/// GLM 4.5 and 4.6, as in llama.cpp's `models/templates/GLM-4.6.jinja`.
const GLM: Case = Case {
    template: r"{% for m in messages %}{% if m.role == 'assistant' -%}
<|assistant|>{{ '\n<think>' ~ (m.reasoning_content or '') ~ '</think>' }}{{ '\n' ~ m.content if m.content }}
{%- for c in m.tool_calls or [] %}{{ '\n<tool_call>' ~ c.function.name ~ '\n' }}
{%- for k, v in c.function.arguments.items() %}
{{- '<arg_key>' ~ k ~ '</arg_key>\n<arg_value>' ~ (v if v is string else v | tojson) ~ '</arg_value>\n' }}
{%- endfor %}{{ '</tool_call>' }}{% endfor %}
{%- elif m.role == 'tool' -%}<|observation|>{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' }}
{%- else -%}<|{{ m.role }}|>{{ '\n' ~ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt -%}<|assistant|>{% endif %}",
    call: "<tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>",
    around: ["", "\n", ""],
    first: "<tool_call>",
    last: "</tool_call>",
    end: "</arg_value>",
};

/// GLM 4.7, as in llama.cpp's `models/templates/GLM-4.7-Flash.jinja`: without line ends.
const GLM_4_7: Case = Case {
    template: r"{% for m in messages %}{% if m.role == 'assistant' -%}
<|assistant|>{{ '<think>' ~ m.reasoning_content if m.reasoning_content }}{{ '</think>' ~ (m.content or '') }}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>' ~ c.function.name }}
{%- for k, v in c.function.arguments.items() %}
{{- '<arg_key>' ~ k ~ '</arg_key><arg_value>' ~ (v if v is string else v | tojson) ~ '</arg_value>' }}
{%- endfor %}{{ '</tool_call>' }}{% endfor %}
{%- elif m.role == 'tool' -%}<|observation|>{{ '<tool_response>' ~ m.content ~ '</tool_response>' }}
{%- else -%}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt -%}<|assistant|><think>{% endif %}",
    call: "<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>",
    around: ["", "", ""],
    first: "<tool_call>",
    last: "</tool_call>",
    end: "</arg_value>",
};

/// Kimi K2, as in llama.cpp's `models/templates/moonshotai-Kimi-K2.jinja`.
const KIMI: Case = Case {
    template: r"{% for m in messages %}
{%- if m.role == 'user' -%}<|im_user|>user<|im_middle|>{% endif %}
{%- if m.role == 'assistant' -%}<|im_assistant|>assistant<|im_middle|>{% endif %}
{%- if m.role == 'tool' -%}<|im_system|>tool<|im_middle|>## Return of {{ m.tool_call_id ~ '\n' }}{% endif %}
{%- if m.content %}{{ m.content }}{% endif %}
{%- if m.tool_calls -%}<|tool_calls_section_begin|>{% for c in m.tool_calls -%}
<|tool_call_begin|>functions.{{ c.function.name ~ ':' ~ loop.index0 }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}
{{- '<|tool_call_end|>' }}{% endfor %}<|tool_calls_section_end|>{% endif %}<|im_end|>
{%- endfor %}{% if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{% endif %}",
    call: "<|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|>",
    around: ["<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>"],
    first: "<|tool_calls_section_begin|>",
    last: "<|tool_calls_section_end|>",
    end: "<|tool_call_end|>",
};

/// MiniMax M2, as in llama.cpp's `models/templates/MiniMax-M2.jinja`.
const MINIMAX: Case = Case {
    template: r#"{% for m in messages %}{% if m.role == 'assistant' -%}
]~b]ai{{ '\n' }}{{ '<think>\n' ~ m.reasoning_content ~ '\n</think>\n\n' if m.reasoning_content }}{{ m.content or '' }}
{%- if m.tool_calls %}{{ '\n<minimax:tool_call>\n' }}{% for c in m.tool_calls %}{{ '<invoke name="' ~ c.function.name ~ '">\n' }}
{%- for k, v in c.function.arguments.items() %}
{{- '<parameter name="' ~ k ~ '">' ~ (v if v is string else v | tojson) ~ '</parameter>\n' }}
{%- endfor %}{{ '</invoke>\n' }}{% endfor %}{{ '</minimax:tool_call>' }}{% endif %}[e~[{{ '\n' }}
{%- elif m.role == 'tool' -%}]~b]tool{{ '\n<response>' ~ m.content ~ '</response>[e~[\n' }}
{%- else -%}]~b]{{ m.role ~ '\n' ~ m.content ~ '[e~[\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ ']~b]ai\n<think>\n' }}{% endif %}"#,
    call: "<invoke name=\"NAME\">\n<parameter name=\"KEY\">VALUE</parameter>\n</invoke>",
    around: ["\n<minimax:tool_call>\n", "\n", "\n</minimax:tool_call>"],
    first: "<minimax:tool_call>",
    last: "</minimax:tool_call>",
    end: "</parameter>",
};

/// DeepSeek V3 and R1, as in llama.cpp's `models/templates/llama-cpp-deepseek-r1.jinja`.
const DEEPSEEK_R1: Case = Case {
    template: r"{% for m in messages %}{% if m.role == 'assistant' -%}
<｜Assistant｜>{{ m.content or '' }}{% if m.tool_calls -%}<｜tool▁calls▁begin｜>{% for c in m.tool_calls -%}
<｜tool▁call▁begin｜>{{ c.type ~ '<｜tool▁sep｜>' ~ c.function.name ~ '\n```json\n' ~ c.function.arguments | tojson ~ '\n```' }}
{{- '<｜tool▁call▁end｜>' }}{{ '\n' if not loop.last }}{% endfor %}<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>
{%- elif m.role == 'tool' -%}<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>
{%- else -%}<｜User｜>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    call: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>",
    around: ["<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>"],
    first: "<｜tool▁calls▁begin｜>",
    last: "<｜tool▁calls▁end｜>",
    end: "\n```<｜tool▁call▁end｜>",
};

/// DeepSeek V3.1, as in llama.cpp's `models/templates/deepseek-ai-DeepSeek-V3.1.jinja`.
const DEEPSEEK_V3_1: Case = Case {
    template: r"{% for m in messages %}{% if m.role == 'assistant' -%}
<｜Assistant｜><think></think>{{ m.content or '' }}{% if m.tool_calls -%}<｜tool▁calls▁begin｜>{% for c in m.tool_calls -%}
<｜tool▁call▁begin｜>{{ c.function.name ~ '<｜tool▁sep｜>' ~ c.function.arguments | tojson ~ '<｜tool▁call▁end｜>' }}
{%- endfor %}<｜tool▁calls▁end｜>{% endif %}<｜end▁of▁sentence｜>
{%- elif m.role == 'tool' -%}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>
{%- else -%}<｜User｜>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '<think></think>' }}{% endif %}",
    call: "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>",
    around: ["<｜tool▁calls▁begin｜>", "", "<｜tool▁calls▁end｜>"],
    first: "<｜tool▁calls▁begin｜>",
    last: "<｜tool▁calls▁end｜>",
    end: "<｜tool▁call▁end｜>",
};

/// DeepSeek V3.2, as in llama.cpp's `models/templates/deepseek-ai-DeepSeek-V3.2.jinja`.
const DSML: Case = Case {
    template: r#"{% for m in messages %}{% if m.role == 'assistant' -%}
<｜Assistant｜>{{ '<think>' ~ m.reasoning_content if m.reasoning_content }}</think>{{ m.content or '' }}
{%- if m.tool_calls %}{{ '\n\n<｜DSML｜function_calls>\n' }}{% for c in m.tool_calls %}
{{- '<｜DSML｜invoke name="' ~ c.function.name ~ '">\n' }}{% for k, v in c.function.arguments.items() %}
{{- '<｜DSML｜parameter name="' ~ k ~ '" string="' ~ ('true' if v is string else 'false') ~ '">' }}
{{- (v if v is string else v | tojson) ~ '</｜DSML｜parameter>\n' }}{% endfor %}{{ '</｜DSML｜invoke>\n' }}{% endfor %}
{{- '</｜DSML｜function_calls>' }}{% endif %}<｜end▁of▁sentence｜>
{%- elif m.role == 'tool' %}{{ '\n\n<function_results>\n<result>' ~ m.content ~ '</result>\n</function_results>' }}
{%- else -%}<｜User｜>{{ m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<｜Assistant｜>{{ '<think>' if thinking else '<think></think>' }}{% endif %}"#,
    call: "<｜DSML｜invoke name=\"NAME\">\n<｜DSML｜parameter name=\"KEY\" string=\"true\">VALUE</｜DSML｜parameter>\n\
           <｜DSML｜parameter name=\"KEY\" string=\"false\">JSON</｜DSML｜parameter>\n</｜DSML｜invoke>",
    around: ["\n\n<｜DSML｜function_calls>\n", "\n", "\n</｜DSML｜function_calls>"],
    first: "<｜DSML｜function_calls>",
    last: "</｜DSML｜function_calls>",
    end: "</｜DSML｜parameter>",
};

/// LFM 2.5, as in llama.cpp's `models/templates/LFM2.5-8B-A1B.jinja`: quotes within texts stand as they are.
const LFM: Case = Case {
    template: r#"{% for m in messages -%}<|im_start|>{{ m.role ~ '\n' }}{{ m.content or '' }}
{%- if m.tool_calls -%}<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}(
{%- for k, v in c.function.arguments.items() %}{{ k ~ '=' }}
{{- "'" ~ v ~ "'" if v is string else v | tojson if v is mapping else v | string }}{{ ', ' if not loop.last }}
{%- endfor -%}){{ ', ' if not loop.last }}{% endfor %}]<|tool_call_end|>{% endif %}{{ '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"#,
    call: "NAME(KEY=VALUE)",
    around: ["<|tool_call_start|>[", ", ", "]<|tool_call_end|>"],
    first: "<|tool_call_start|>",
    last: "<|tool_call_end|>",
    end: ")]<|tool_call_end|>",
};

/// Llama 4 with calls in Python, as in vLLM's `examples/tool_chat_template_llama4_pythonic.jinja`: all values are between quotes.
const LLAMA_4: &str = r#"{% for m in messages %}{% if m.tool_calls -%}<|header_start|>assistant<|header_end|>
{{- '\n\n' ~ (m.content or '') }}[{% for c in m.tool_calls %}{{ c.function.name }}(
{%- for k in c.function.arguments %}{{ k ~ '="' ~ c.function.arguments[k] ~ '"' }}{{ ', ' if not loop.last }}
{%- endfor -%}){{ ', ' if not loop.last }}{% endfor %}]<|eot|>
{%- elif m.role == 'tool' -%}<|header_start|>ipython<|header_end|>{{ '\n\n' ~ m.content | tojson }}<|eot|>
{%- else -%}<|header_start|>{{ m.role }}<|header_end|>{{ '\n\n' ~ m.content }}<|eot|>{% endif %}{% endfor %}
{%- if add_generation_prompt -%}<|header_start|>assistant<|header_end|>{{ '\n\n' }}{% endif %}"#;

/// Llama 4's own template: JSON behind the marks of code, of which there is none.
const LLAMA_4_JSON: &str = r#"{% for m in messages %}{% if m.tool_calls -%}<|header_start|>assistant<|header_end|>
{{- '\n\n<|python_start|>' ~ (m.content or '') ~ '<|python_end|>' }}{% for c in m.tool_calls %}
{{- '{"name": "' ~ c.function.name ~ '", "parameters": ' ~ c.function.arguments | tojson ~ '}' }}{% endfor %}<|eot|>
{%- elif m.role == 'tool' -%}<|header_start|>ipython<|header_end|>{{ '\n\n' ~ m.content | tojson }}<|eot|>
{%- else -%}<|header_start|>{{ m.role }}<|header_end|>{{ '\n\n' ~ m.content }}<|eot|>{% endif %}{% endfor %}"#;

/// Mistral Nemo, as in llama.cpp's `models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja`.
const MISTRAL_LIST: Case = Case {
    template: r#"{% for m in messages %}{% if m.tool_calls -%}[TOOL_CALLS][{% for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}
{{- (c.function | tojson)[:-1] ~ ', "id": "' ~ c.id ~ '"}' }}{{ ', ' if not loop.last }}{% endfor %}]</s>
{%- elif m.role == 'assistant' %}{{ m.content ~ '</s>' }}
{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else -%}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"#,
    call: "{\"name\": \"NAME\", \"arguments\": ARGUMENTS, \"id\": \"ID\"}",
    around: ["[TOOL_CALLS][", ", ", "]"],
    first: "[TOOL_CALLS]",
    last: "\"}]",
    end: "}]",
};

/// Mistral Small 3.2, as in llama.cpp's `models/templates/Mistral-Small-3.2-24B-Instruct-2506.jinja`.
const MISTRAL_IDS: Case = Case {
    template: r"{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls -%}[TOOL_CALLS]{{ c.function.name }}
{%- if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif -%}
[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>
{%- elif m.role == 'assistant' %}{{ m.content ~ '</s>' }}
{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.tool_call_id }}[TOOL_CONTENT]{{ m.content }}[/TOOL_RESULTS]
{%- else -%}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}",
    call: "[TOOL_CALLS]NAME[CALL_ID]ID[ARGS]ARGUMENTS",
    around: ["", "", ""],
    first: "[TOOL_CALLS]",
    last: "}",
    end: "[TOOL_CALLS]",
};

/// Ministral 3 and Devstral, as in llama.cpp's `models/templates/mistralai-Ministral-3-14B-Reasoning-2512.jinja`.
const MISTRAL_ARGS: Case = Case {
    template: r"{% for m in messages %}{% if m.role == 'assistant' %}
{{- '[THINK]' ~ m.reasoning_content ~ '[/THINK]' if m.reasoning_content }}{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}[TOOL_CALLS]{{ c.function.name ~ '[ARGS]' ~ c.function.arguments | tojson }}{% endfor %}</s>
{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else -%}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}",
    call: "[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
    around: ["", "", ""],
    first: "[TOOL_CALLS]",
    last: "}",
    end: "[ARGS]",
};

/// What is called in each test: nested, with quotes, line ends and the format's own mark in a text.
fn calls(end: &str) -> [(&'static str, serde_json::Value); 2] {
    let city = format!("Pa {end} \"é\"\n</b> {{'x': [1]}}, (y)");
    let list = json!([2.5, null, { "x": format!("y, \"z\" {end} \\") }]);
    [
        ("get_weather", json!({ "city": city, "days": null })),
        ("add", json!({ "a": -1, "b": list, "c": true, "d": "it's\nd" })),
    ]
}

/// The calls as the template writes them.
fn written(case: &Case, calls: &[(&str, serde_json::Value)]) -> String {
    let call = |(i, (name, arguments)): (usize, &(&str, serde_json::Value))| {
        let function = json!({ "name": name, "arguments": arguments });
        json!({ "id": format!("call{i:05}"), "type": "function", "function": function })
    };
    let mut assistant = Message::new("assistant", "");
    assistant.extra.insert("tool_calls".into(), calls.iter().enumerate().map(call).collect());
    let mut result = Message::new("tool", "Result.");
    result.extra.insert("tool_call_id".into(), "call00000".into());
    let messages = [Message::new("user", "Asked."), assistant, result];
    let rendered = samples::template(case.template).render(&messages, &RenderOptions::default()).unwrap();
    let text = rendered.text();
    let (from, to) = (text.find(case.first).unwrap(), text.rfind(case.last).unwrap());
    text[from..to + case.last.len()].to_owned()
}

fn read(reply: &Reply) -> Vec<(&str, serde_json::Value)> {
    let arguments = |call: &ToolCall| serde_json::from_str(&call.arguments).unwrap();
    reply.calls.iter().map(|call| (call.name.as_str(), arguments(call))).collect()
}

/// What a template shows is as it is known, and what it writes of calls is read, whatever is around them, and wherever it ends.
fn check(case: &Case) -> ReplyFormat {
    let format = samples::shown(case.template);
    let [open, separator, close] = case.around;
    let shown = format.tools.as_ref().unwrap_or_else(|| panic!("{} is not told", case.call)).to_string();
    assert_eq!(shown, format!("{open}{0}{separator}{0}{close}", case.call));
    let wanted = calls(case.end);
    let both = written(case, &wanted);
    let one = written(case, &wanted[..1]);
    for (text, content, count) in [
        (both.clone(), "", 2),
        (format!("So.\n{both}\n"), "So.", 2),
        (format!("{one} On."), " On.", 1),
        (format!("{one}\n{one}"), "", 2),
    ] {
        let told = cut_in_two(&format, false, &text);
        assert_eq!((told.content.as_str(), told.calls.len()), (content, count), "{text:?} {told:?}");
        if text.contains(&both) {
            assert_eq!(read(&told), wanted, "{text:?}");
        }
    }
    // What is said behind a thought, and what a thought says of calls.
    if let Some(marks) = &format.reasoning {
        let text = format!("{}Hm {one}{}\n{both}", marks.open, marks.close);
        let told = cut_in_two(&format, false, &text);
        assert_eq!((told.reasoning, told.content), (format!("Hm {one}"), String::new()));
        assert_eq!(told.calls.len(), 2);
    }
    // Without an end behind any mark: what comes is not looked at again and again.
    const MANY: usize = 4_000;
    for at in both.match_indices(['>', ']', '[', '(', '"']).map(|(at, _)| at + 1).take(24) {
        for filler in [" ", "x", "\n"] {
            let before = LOOKED_AT.get();
            parse(&format, false, &[&both[..at], &filler.repeat(MANY)]);
            let looked_at = LOOKED_AT.get() - before;
            assert!(
                looked_at < 1_000 * MANY,
                "{looked_at} bytes for {MANY} of {filler:?} behind {:?}",
                &both[..at]
            );
        }
    }
    // Cut off anywhere: whole calls stay, and of what is none, nothing is lost.
    let whole = cut_in_two(&format, false, &both);
    let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    for at in (0..both.len()).filter(|&at| both.is_char_boundary(at)) {
        let (_, told) = parse(&format, false, &[&both[..at]]);
        assert_eq!(told.calls, whole.calls[..told.calls.len()], "{:?}", &both[..at]);
        if told.calls.is_empty() {
            assert_eq!(visible(&told.content), visible(&both[..at]));
        }
    }
    format
}

/// What a template makes of two calls, and a result of the second, whose ids are a server's.
fn with_own_ids(template: &str) -> String {
    let function = json!({ "name": "add", "arguments": "{}" });
    let call = |id: &str| json!({ "id": id, "type": "function", "function": function });
    let mut assistant = Message::new("assistant", "");
    assistant.extra.insert("tool_calls".into(), json!([call("call_1f"), call("call_2e")]));
    let mut result = Message::new("tool", "Result.");
    result.extra.insert("tool_call_id".into(), "call_2e".into());
    let chat = crate::text::Chat::new(vec![Message::new("user", "Asked."), assistant, result]);
    chat.render(&samples::template(template)).unwrap().text().to_owned()
}

#[test]
fn glm() {
    for case in [GLM, GLM_4_7] {
        let format = check(&case);
        let told = |text: &str| cut_in_two(&format, false, text);
        // The other one's line ends, and a text that is no JSON where a number is wanted.
        let pair =
            |key: &str, value: &str| format!("<arg_key>{key}</arg_key>\n\n<arg_value>{value}</arg_value>");
        let text =
            format!("<tool_call>get_weather{}{}\n</tool_call>", pair("city", "Oslo"), pair("days", "soon"));
        assert_eq!(told(&text), of("", &[("get_weather", r#"{"city": "Oslo", "days": "soon"}"#)]));
        assert_eq!(told("<tool_call>add</tool_call>"), of("", &[("add", "{}")]));
        // What follows a whole number is an argument or the end.
        let broken = format!("<tool_call>get_weather{} more</tool_call>", pair("days", "3"));
        assert_eq!(told(&broken), of(&broken, &[]));
    }
    let thinking = samples::shown(GLM_4_7.template).reasoning.unwrap();
    assert!(thinking.is_open("<|user|>Hi<|assistant|><think>"));
    assert!(!thinking.is_open("<|user|>Hi<|assistant|></think>"));
}

#[test]
fn kimi() {
    let format = check(&KIMI);
    let told = |text: &str| cut_in_two(&format, false, text);
    let call = "<|tool_call_begin|>functions.add:7<|tool_call_argument_begin|>{}<|tool_call_end|>";
    assert_eq!(told(call), of("", &[("add", "{}")]), "without what is around all");
    let spaced = format!("<|tool_calls_section_begin|>\n{call}\n{call} <|tool_calls_section_end|>");
    assert_eq!(told(&spaced), of("", &[("add", "{}"), ("add", "{}")]));
    for text in [
        "<|tool_calls_section_begin|><|tool_calls_section_end|>",
        "<|tool_call_begin|>functions.remove:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>[]<|tool_call_end|>",
    ] {
        assert_eq!(told(text), of(text, &[]));
    }
    // Kimi K2's later templates refuse calls where lists cannot be changed, as in transformers: the marks are known by name.
    let refused = KIMI.template.replace("{% for c in", "{{ raise_exception('append') }}{% for c in");
    assert_eq!(samples::shown(&refused).tools, format.tools);
    // Others write ids in place of names, which are then in the model's form.
    let by_id = KIMI.template.replace("functions.{{ c.function.name ~ ':' ~ loop.index0 }}", "{{ c.id }}");
    assert_eq!(samples::shown(&by_id).tools, format.tools);
    let text = with_own_ids(&by_id);
    assert!(text.contains("<|tool_call_begin|>functions.add:0<|") && text.contains(":1<|"), "{text:?}");
    assert!(text.contains("## Return of functions.add:1\nResult."), "{text:?}");
}

#[test]
fn minimax() {
    let format = check(&MINIMAX);
    let told = |text: &str| cut_in_two(&format, false, text);
    let set = |key: &str, value: &str| format!("<parameter name=\"{key}\">{value}</parameter>");
    let call = |body: &str| format!("<invoke name=\"{body}</invoke>");
    let bare = call(&format!("add\">{}{}", set("a", "1"), set("b", "[{\"x\": \"</invoke>\"}]")));
    let added = ("add", r#"{"a": 1, "b": [{"x":"</invoke>"}]}"#);
    assert_eq!(told(&bare), of("", &[added]), "without what is around all");
    let text = format!("Hm.\n\n<minimax:tool_call>{bare}{}</minimax:tool_call> On.", call("add\">"));
    assert_eq!(told(&text), of("Hm. On.", &[added, ("add", "{}")]));
    for text in [call("remove\">\n"), call("add\"> because"), "<minimax:tool_call>\n".to_owned()] {
        assert_eq!(told(&text), of(&text, &[]));
    }
    assert!(format.reasoning.unwrap().is_open("]~b]ai\n<think>\n"));
}

#[test]
fn deepseek() {
    for case in [DEEPSEEK_R1, DEEPSEEK_V3_1, DSML] {
        let format = check(&case);
        let thinking = format.reasoning.as_ref().unwrap();
        assert!(thinking.is_open("<｜User｜>Hi<｜Assistant｜><think>\n"));
        assert!(!thinking.is_open("<｜User｜>Hi<｜Assistant｜><think></think>"));
        // What is called behind a thought that the prompt has begun.
        let [call, _] = calls("");
        let text = format!("Hm.\n</think>\n\n{}", written(&case, &[call]));
        let told = cut_in_two(&format, true, &text);
        assert_eq!((told.reasoning.as_str(), told.content.as_str(), told.calls.len()), ("Hm.", "", 1));
    }
    let told = |case: &Case, text: &str| cut_in_two(&samples::shown(case.template), false, text);
    // Without what is around all calls.
    let call = "<｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>";
    assert_eq!(told(&DEEPSEEK_V3_1, call), of("", &[("add", "{\"a\": 1}")]));
    let fenced =
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\n  \"a\": 1\n}\n```<｜tool▁call▁end｜>";
    assert_eq!(told(&DEEPSEEK_R1, fenced), of("", &[("add", "{\n  \"a\": 1\n}")]));
    for text in [
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>remove<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>a=1<｜tool▁call▁end｜>",
    ] {
        assert_eq!(told(&DEEPSEEK_V3_1, text), of(text, &[]));
    }
    // What a tag says goes before the schema.
    let set = |key: &str, string: bool, value: &str| {
        format!("<｜DSML｜parameter name=\"{key}\" string=\"{string}\">{value}</｜DSML｜parameter>\n")
    };
    let invoke = format!("<｜DSML｜invoke name=\"add\">\n{}{}", set("a", true, "1"), set("d", false, "[2]"));
    let text =
        format!("So.\n\n<｜DSML｜function_calls>\n{invoke}</｜DSML｜invoke>\n</｜DSML｜function_calls>");
    assert_eq!(told(&DSML, &text), of("So.", &[("add", r#"{"a": "1", "d": [2]}"#)]));
}

/// What Python writes of calls, and what of it is a call where it is the whole text.
fn python_is_read(format: &ReplyFormat, open: &str, close: &str) {
    let told = |calls: &str| cut_in_two(format, false, &format!("{open}{calls}{close}"));
    for (python, arguments) in [
        ("add()", "{}"),
        (" add ( a = 1 , ) ", r#"{"a": 1}"#),
        ("add(a=None, c=True)", r#"{"a": null, "c": true}"#),
        ("add(a=null, c=false)", r#"{"a": null, "c": false}"#),
        ("add(b=[1, 'x, )]', {'y': (2, -3.5)}])", r#"{"b": [1,"x, )]",{"y":[2,-3.5]}]}"#),
        (r#"add(b="[1, 2]", a="7")"#, r#"{"b": [1,2], "a": 7}"#),
        (r#"add(d="a\n\"b\" \u00e9\ud83d\ude00\\")"#, r#"{"d": "a\n\"b\" é😀\\"}"#),
        (r"add(d='it\'s', a=2)", r#"{"d": "it's", "a": 2}"#),
        ("add(d='it's', a=2)", r#"{"d": "it's", "a": 2}"#),
        ("add(d=\"a\nb\")", r#"{"d": "a\nb"}"#),
        (r#"add(d="say "hi", ok" )"#, r#"{"d": "say \"hi"#),
    ] {
        let reply = told(python);
        if arguments.ends_with('}') {
            assert_eq!(reply, of("", &[("add", arguments)]), "{python}");
        } else {
            // A quote and a comma end a text: what follows is no argument.
            assert_eq!((reply.content, reply.calls.len()), (format!("{open}{python}{close}"), 0));
        }
    }
    let two = told("add(a=1), get_weather(city=\"Oslo\", days=2)");
    let oslo = ("get_weather", r#"{"city": "Oslo", "days": 2}"#);
    assert_eq!(two, of("", &[("add", r#"{"a": 1}"#), oslo]));
    for python in [
        "remove()",
        "add",
        "add(1)",
        "add(a)",
        "add(a=1",
        "add(a=1, a=2)",
        "add(a=b)",
        "add(a=[1)",
        "add(a=1]",
        "add(a=)",
        "add(d='x)",
        "1, 2",
        "\"add()\"",
        "",
    ] {
        assert_eq!(told(python), of(&format!("{open}{python}{close}"), &[]), "{python}");
    }
}

#[test]
fn lfm() {
    let format = check(&LFM);
    python_is_read(&format, "<|tool_call_start|>[", "]<|tool_call_end|>");
    let told = |text: &str| cut_in_two(&format, false, text);
    // A text behind calls, and calls that are apart.
    let call = "<|tool_call_start|>[add(a=1)]<|tool_call_end|>";
    let added = ("add", r#"{"a": 1}"#);
    assert_eq!(told(&format!("{call}Adding.")), of("Adding.", &[added]));
    assert_eq!(told(&format!("So. {call}\n{call}")), of("So.", &[added, added]));
    assert_eq!(told("[add(a=1)]"), of("[add(a=1)]", &[]), "without its mark");
    // Earlier templates write no calls, and name the marks of tools; or the vocabulary does.
    let silent = "{% for m in messages %}<|im_start|>{{ m.role ~ '\\n' ~ m.content }}<|im_end|>{% endfor %}";
    assert_eq!(samples::shown(silent).tools, None);
    let lists = format!("{{% if tools %}}<|tool_list_start|>{{{{ tools | tojson }}}}{{% endif %}}{silent}");
    assert_eq!(samples::shown(&lists).tools, format.tools);
    let named = format!("{{% if tools %}}List of tools: {{{{ tools | tojson }}}}{{% endif %}}{silent}");
    assert_eq!(samples::shown(&named).tools, None);
    let mut template = samples::template(&named);
    template.protect(["<|im_start|>", "<|tool_call_start|>"]).unwrap();
    assert_eq!(template.reply_format(true).tools, format.tools);
    assert_eq!(template.reply_format(false).tools, None);
}

#[test]
fn llama_4() {
    let format = samples::shown(LLAMA_4);
    let shown = format.tools.as_ref().unwrap().to_string();
    assert_eq!(shown, "[NAME(KEY=VALUE), NAME(KEY=VALUE)]");
    python_is_read(&format, "[", "]");
    let told = |text: &str| cut_in_two(&format, false, text);
    assert_eq!(told("\n[add()]\n"), of("", &[("add", "{}")]));
    // A list is a call at the beginning alone.
    for text in ["Here: [add(a=1)]", "[1, 2] and [add()]", "[", "[]", "[add(a=1", "[[add()]]"] {
        assert_eq!(told(text), of(text, &[]));
    }
    // The model's own template writes JSON behind code that is none.
    let format = samples::shown(LLAMA_4_JSON);
    let call = "{\"name\": \"NAME\", \"parameters\": ARGUMENTS}";
    assert_eq!(format.tools.as_ref().unwrap().to_string(), call.repeat(2));
    let told = |text: &str| cut_in_two(&format, false, text);
    assert_eq!(told(r#"{"name": "add", "parameters": {"a": 1}}"#), of("", &[("add", r#"{"a": 1}"#)]));
}

#[test]
fn mistral() {
    for case in [MISTRAL_LIST, MISTRAL_IDS, MISTRAL_ARGS] {
        check(&case);
    }
    let told = |case: &Case, text: &str| cut_in_two(&samples::shown(case.template), false, text);
    let added = ("add", "{\"a\": 1}");
    // With and without an identifier, and white space that templates do not write.
    for text in [
        "[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{\"a\": 1}",
        "[TOOL_CALLS]add[ARGS]{\"a\": 1}",
        "[TOOL_CALLS] add[CALL_ID]a1b2c3d4e[ARGS] {\"a\": 1}\n",
    ] {
        assert_eq!(told(&MISTRAL_IDS, text), of("", &[added]), "{text:?}");
    }
    let text = "So.\n[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]add[ARGS]{} [TOOL_CALLS]add[ARGS]{} On.";
    assert_eq!(told(&MISTRAL_ARGS, text), of("So. On.", &[added, ("add", "{}"), ("add", "{}")]));
    let listed = "{\"name\": \"add\", \"arguments\": {\"a\": 1}}";
    assert_eq!(told(&MISTRAL_LIST, &format!("[TOOL_CALLS] [{listed}, {listed}]")), of("", &[added, added]));
    assert_eq!(told(&MISTRAL_LIST, &format!("[TOOL_CALLS][{listed}] On.")), of(" On.", &[added]));
    for (case, text) in [
        (&MISTRAL_ARGS, "[TOOL_CALLS]remove[ARGS]{}"),
        (&MISTRAL_ARGS, "[TOOL_CALLS]add[ARGS]{\"a\": [1}"),
        (&MISTRAL_IDS, "[TOOL_CALLS]add[CALL_ID][ARGS]{}"),
        (&MISTRAL_LIST, "[TOOL_CALLS][]"),
        (&MISTRAL_LIST, "[TOOL_CALLS]add[ARGS]{}"),
    ] {
        assert_eq!(told(case, text), of(text, &[]), "{text:?}");
    }
    // Ids of a server's own, which the templates refuse, are told in their form.
    let text = with_own_ids(MISTRAL_IDS.template);
    let wanted = "[TOOL_CALLS]add[CALL_ID]call00000[ARGS]{}[TOOL_CALLS]add[CALL_ID]call00001[ARGS]{}</s>\
                  [TOOL_RESULTS]call00001[TOOL_CONTENT]Result.[/TOOL_RESULTS]";
    assert!(text.ends_with(wanted), "{text:?}");
    let thinking = samples::shown(MISTRAL_ARGS.template).reasoning.unwrap();
    assert_eq!([&thinking.open, &thinking.close], ["[THINK]", "[/THINK]"]);
}
