use std::collections::BTreeMap;
use std::path::Path;

use super::*;

fn template(source: &str) -> ChatTemplate {
    let special = [("eos_token".to_owned(), "<end>".to_owned())];
    ChatTemplate::from_source(Path::new("t.jinja"), source, BTreeMap::from(special)).unwrap()
}

/// What calls look like in a template that writes the assistant's turn like this.
fn calls_of(answer: &str) -> Option<String> {
    let source = format!(
        "{{%- for m in messages -%}}[[{{{{ m.role }}}}]]{{%- if m.role == 'assistant' and m.tool_calls -%}}{answer}\
         {{%- else -%}}{{{{ m.content }}}}{{%- endif -%}}{{{{ eos_token }}}}{{%- endfor -%}}"
    );
    template(&source).reply_format(true).tools.map(|tools| tools.to_string())
}

/// Calls one after the other, as `call` writes each.
fn each(call: &str) -> String {
    format!("{{%- for c in m.tool_calls -%}}{{%- set f = c.function -%}}{call}{{%- endfor -%}}")
}

#[test]
fn calls_are_told_from_what_is_written() {
    let object = r#"{{ '{"name": "' + f.name + '", "arguments": ' + (f.arguments | tojson) + '}' }}"#;
    let shown = r#"{"name": "NAME", "arguments": ARGUMENTS}"#;
    let tagged = each(&format!("<call>{object}</call>"));
    assert_eq!(calls_of(&tagged).unwrap(), format!("<call>{shown}</call>").repeat(2));
    let listed = each(&format!("{object}{{{{ ', ' if not loop.last }}}}"));
    assert_eq!(
        calls_of(&format!("<calls>[{listed}]</calls>")).unwrap(),
        format!("<calls>[{shown}, {shown}]</calls>")
    );
    let lines = each(&format!("{{{{ '\\n' }}}}{object}"));
    assert_eq!(
        calls_of(&format!("<calls>{lines}{{{{ '\\n' }}}}</calls>")).unwrap(),
        format!("<calls>\n{shown}\n{shown}\n</calls>")
    );
    let numbered = each("<call>{{ f.name }}:{{ loop.index0 }}<args>{{ f.arguments | tojson }}</call>");
    assert_eq!(
        calls_of(&format!("<calls>{numbered}</calls>")).unwrap(),
        "<calls><call>NAME:INDEX<args>ARGUMENTS</call><call>NAME:INDEX<args>ARGUMENTS</call></calls>"
    );
    let with_id = each("<call>{{ f.name }}<id>{{ c.id }}<args>{{ f.arguments | tojson }}");
    assert_eq!(calls_of(&with_id).unwrap(), "<call>NAME<id>ID<args>ARGUMENTS".repeat(2));
    let named_by_id = each("<call>{{ c.id }}<args>{{ f.arguments | tojson }}");
    assert_eq!(calls_of(&named_by_id).unwrap(), "<call>functions.NAME:INDEX<args>ARGUMENTS".repeat(2));
    let arguments = "{%- for k, v in f.arguments | items -%}<k>{{ k }}</k><v>\
                     {{ v if v is string else v | tojson }}</v>{%- endfor -%}";
    let pairs = each(&format!("<call>{{{{ f.name }}}}{arguments}</call>"));
    assert_eq!(calls_of(&pairs).unwrap(), "<call>NAME<k>KEY</k><v>VALUE</v></call>".repeat(2));
}

#[test]
fn what_is_not_read_back_is_not_known() {
    for answer in [
        // No call, no arguments, no mark, an unknown notation, and a list without an end.
        "{{ m.content }}",
        &each("<call>{{ f.name }}</call>"),
        &each("{{ f.name }}: {{ f.arguments | tojson }}; "),
        &each("<call>{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}={{ v }}, {% endfor %})"),
        &format!(
            "<calls>[{}",
            each("{\"name\": \"{{ f.name }}\", \"arguments\": {{ f.arguments | tojson }}},")
        ),
        // Calls that are refused.
        "{{ raise_exception('no calls') }}",
        // A message of its own.
        &each(
            "{{ eos_token }}[[call]]{\"name\": \"{{ f.name }}\", \"arguments\": {{ f.arguments | tojson }}}",
        ),
    ] {
        assert_eq!(calls_of(answer), None, "{answer}");
    }
    // A second call that is refused.
    let one = "{%- if m.tool_calls | length > 1 -%}{{ raise_exception('one') }}{%- endif -%}\
               {%- set f = m.tool_calls[0].function -%}<call>{{ f.name }}<args>{{ f.arguments | tojson }}";
    assert_eq!(calls_of(one).unwrap(), "<call>NAME<args>ARGUMENTS");
}

/// A template that can write nothing else is given arguments as text.
#[test]
fn arguments_may_be_text() {
    let call = "{{ '<call>' + f.name + '<args>' + f.arguments + '</call>' }}";
    assert_eq!(calls_of(&each(call)).unwrap(), "<call>NAME<args>ARGUMENTS</call>".repeat(2));
}

#[test]
fn thoughts_are_told_from_what_is_written() {
    let marks = |thoughts: &str| {
        let source = format!(
            "{{%- for m in messages -%}}<<{{{{ m.role }}}}>>{{%- if m.role == 'assistant' -%}}{thoughts}{{%- endif -%}}\
             {{{{ m.content }}}}<end>{{%- endfor -%}}"
        );
        let reasoning = template(&source).reply_format(false).reasoning;
        reasoning.map(|format| (format.open, format.close))
    };
    let pair = |open: &str, close: &str| Some((open.to_owned(), close.to_owned()));
    let written =
        "{% if m.reasoning_content %}<muse>{{ '\\n' + m.reasoning_content + '\\n' }}</muse>{% endif %}";
    assert_eq!(marks(written), pair("<muse>", "</muse>"));
    assert_eq!(marks("{% if m.thinking %}[M]{{ m.thinking }}[/M]<answer>{% endif %}"), pair("[M]", "[/M]"));
    assert_eq!(marks("{# </think> #}"), pair("<think>", "</think>"), "named, and not written");
    assert_eq!(marks("{{ m.reasoning_content }}<answer>"), None, "begun by what begins every turn");
    assert_eq!(marks("{% if m.thinking %}<t>{{ m.thinking }}<end>assistant<a>{% endif %}"), None);
    assert_eq!(marks(""), None);
}

#[test]
fn harmony_is_told_from_what_is_written() {
    let format = samples::shown(samples::HARMONY);
    let tools = format.tools.as_ref().unwrap().to_string();
    assert_eq!(tools, " to=functions.NAME<|channel|>commentary json<|message|>ARGUMENTS<|call|>");
    let thoughts = format.reasoning.as_ref().unwrap();
    assert_eq!([&thoughts.open, &thoughts.close], ["<|channel|>analysis<|message|>", "<|end|>"]);
    assert_eq!(format.channels, Some(crate::text::Channels::Harmony));
    let template = samples::template(samples::HARMONY);
    assert_eq!(template.reply_format(false), ReplyFormat { tools: None, ..format.clone() });
    // Its template shows what ends an answer, and not that a call does.
    let tokens = ["<|end|>", "<|return|>", "<|call|>"].map(str::to_owned);
    assert_eq!(template.turn_ends(&tokens), ["<|return|>"]);
    assert_eq!(format.ends(), ["<|return|>", "<|call|>"]);
    // One that writes no calls.
    let none = samples::HARMONY.replace("m.tool_calls -", "m.no_calls -");
    assert_eq!(samples::shown(&none), ReplyFormat { tools: None, ..format });
}

#[test]
fn atem_is_told_from_what_is_written() {
    let format = samples::shown(samples::ATEM);
    let one = "<atem:function_calls>\n<atem:invoke name=\"NAME\">\n<atem:parameter name=\"KEY\">VALUE</atem:parameter>\n\
               </atem:invoke>\n</atem:function_calls>";
    assert_eq!(format.tools.as_ref().unwrap().to_string(), one.repeat(2));
    let thoughts = format.reasoning.as_ref().unwrap();
    assert_eq!([&thoughts.open, &thoughts.close], ["to=self<|message|>", "<|eom|>"]);
    assert_eq!((format.channels, format.ends()), (Some(crate::text::Channels::Atem), &["<|eot|>"][..]));
    let template = samples::template(samples::ATEM);
    assert_eq!(template.reply_format(false), ReplyFormat { tools: None, ..format.clone() });
    let tokens = ["<|eom|>", "<|eot|>"].map(str::to_owned);
    assert_eq!(template.turn_ends(&tokens), ["<|eot|>"]);
    // One that writes no calls, and one whose calls are to nobody.
    for (from, to) in [("m.tool_calls", "m.no_calls"), (" to={{ f.name }}", "")] {
        assert_eq!(
            samples::shown(&samples::ATEM.replace(from, to)),
            ReplyFormat { tools: None, ..format.clone() }
        );
    }
}

/// Templates of llama.cpp, where `tools/templates/fetch.py` has put them, against a table of what their models write.
#[test]
fn known_templates_show_what_their_models_write() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read(root.join("tests/fixtures/text/tool_formats.json")).unwrap();
    let table: Map<String, Json> = serde_json::from_slice(&table).unwrap();
    let (mut differ, mut found) = (Vec::new(), 0);
    for (name, wanted) in &table {
        let path = format!("target/templates/sources/llama.cpp/{name}.jinja");
        let Ok(source) = std::fs::read_to_string(root.join(&path)) else {
            eprintln!("skipped: {path} is not there");
            continue;
        };
        found += 1;
        let tokens = [("bos_token", "<BOS>"), ("eos_token", "<EOS>")];
        let special = tokens.map(|(key, token)| (key.to_owned(), token.to_owned()));
        let shown = match ChatTemplate::from_source(Path::new(name), &source, BTreeMap::from(special)) {
            Ok(template) => template.reply_format(true),
            Err(error) => {
                eprintln!("skipped: {error}");
                continue;
            }
        };
        let calls = shown.tools.map_or(Json::Null, |tools| tools.to_string().into());
        let thoughts = shown.reasoning.map_or(Json::Null, |marks| json!([marks.open, marks.close]));
        if calls != wanted["calls"] || thoughts != wanted["thoughts"] {
            differ.push(format!("{name}: {calls} {thoughts}, expected {wanted}"));
        }
    }
    assert!(differ.is_empty(), "{} of {found} differ:\n{}", differ.len(), differ.join("\n"));
}
