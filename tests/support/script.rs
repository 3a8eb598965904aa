//! A model that says what it is told to: each token has one successor, so that a text is known to the letter.
//!
//! Its layer adds nothing, so that the last hidden state is the last token's embedding, one-hot; the head maps it to the token
//! that follows. The template ends with the token that begins the script whose name the user says.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::header;

/// Names of scripts and their tokens. No token may be in two of them, nor twice in one; the end of the sequence follows. A name
/// `=X` is that of a script which goes on after the token `X`, whoever wrote it.
pub type Scripts<'a> = [(&'a str, &'a [&'a str])];

/// Tokens of the fixture whose tokenizer is extended, and the id of its `<|im_end|>`.
const BASE: usize = 305;
const END: usize = 302;
const HIDDEN: usize = 128;

/// How a template writes calls as Qwen 3 does, with the marks of its thoughts in a comment: a template's own calls and marks are
/// what is parsed.
pub const QWEN3: &str = r#"{#- <think> </think> -#}{%- for c in m.tool_calls -%}
{{- '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}\n</tool_call>' -}}
{{- '\n' if not loop.last -}}{%- endfor -%}"#;
/// As Qwen3-Coder does.
pub const QWEN3_CODER: &str = r#"{%- for c in m.tool_calls -%}{{- '<tool_call>\n<function=' + c.function.name + '>\n' -}}
{%- for key, value in c.function.arguments | items -%}
{{- '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' -}}
{%- endfor -%}{{- '</function>\n</tool_call>' + ('' if loop.last else '\n') -}}{%- endfor -%}"#;

/// A whole template, in the shape of gpt-oss's.
pub const HARMONY: &str = "{%- for m in messages -%}{%- if m.role == 'assistant' and m.tool_calls -%}\
    {%- set call = m.tool_calls[0].function -%}<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>\
    {{- call.arguments | tojson }}<|call|>{%- elif m.role == 'assistant' -%}\
    {%- if loop.last and m.thinking -%}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{%- endif -%}\
    <|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}\
    {%- else -%}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}\
    {%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";

pub struct Script {
    dir: tempfile::TempDir,
    /// Ids of the tokens that begin the scripts.
    begin: HashMap<String, usize>,
}

impl Script {
    /// A model that goes on with `scripts`, and whose template writes calls by `calls`.
    pub fn new(calls: &str, scripts: &Scripts) -> Self {
        let template = format!(
            "{{%- for m in messages -%}}<|im_start|>{{{{ m.role }}}}\n{{% if m.tool_calls -%}}{calls}{{%- else -%}}\
             {{{{ m.content }}}}{{%- endif -%}}<|im_end|>\n{{%- endfor -%}}{{%- if add_generation_prompt -%}}<|im_start|>assistant\n{{%- endif -%}}"
        );
        Self::of(&template, scripts)
    }

    /// A model that goes on with `scripts`, and has this template.
    pub fn of(template: &str, scripts: &Scripts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text/chatml");
        let mut tokenizer: Value =
            serde_json::from_slice(&fs::read(fixture.join("tokenizer.json")).unwrap()).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object().unwrap().clone();
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        // Each token and its successor, by id.
        let (mut pairs, mut begin, mut size) = (Vec::new(), String::new(), BASE);
        let mut ids = HashMap::new();
        for (name, tokens) in scripts {
            let first = match name.strip_prefix('=') {
                Some(token) => token.to_owned(),
                None => {
                    begin += &format!(
                        "{{%- if messages[-1].content == '{name}' and add_generation_prompt -%}}<|{name}|>{{%- endif -%}}"
                    );
                    ids.insert((*name).to_owned(), size);
                    format!("<|{name}|>")
                }
            };
            let mut last = None;
            for token in std::iter::once(&first.as_str()).chain(*tokens) {
                let known = added.iter().find(|one| one["content"] == *token).map(|one| &one["id"]);
                let id = match known.or(vocab.get(*token)) {
                    Some(id) => id.as_u64().unwrap() as usize,
                    None => {
                        added.push(
                            json!({ "id": size, "content": token, "single_word": false, "lstrip": false,
                            "rstrip": false, "normalized": false, "special": last.is_none() }),
                        );
                        size += 1;
                        size - 1
                    }
                };
                pairs.extend(last.map(|last| (last, id)));
                last = Some(id);
            }
            pairs.extend(last.map(|last| (last, END)));
        }
        assert!(pairs.len() < HIDDEN, "more tokens than there are hidden units");
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = json!({ "chat_template": format!("{template}{begin}") });
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let config = json!({ "model_type": "llama", "vocab_size": size, "hidden_size": HIDDEN, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
            "max_position_embeddings": 4096, "bos_token_id": null, "eos_token_id": END });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let tensors = [
            ("model.embed_tokens.weight".to_owned(), vec![size, HIDDEN]),
            ("lm_head.weight".to_owned(), vec![size, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
            (layer("input_layernorm"), vec![HIDDEN]),
            (layer("post_attention_layernorm"), vec![HIDDEN]),
            (layer("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
            (layer("self_attn.k_proj"), vec![32, HIDDEN]),
            (layer("self_attn.v_proj"), vec![32, HIDDEN]),
            (layer("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
            (layer("mlp.gate_proj"), vec![16, HIDDEN]),
            (layer("mlp.up_proj"), vec![16, HIDDEN]),
            (layer("mlp.down_proj"), vec![HIDDEN, 16]),
        ];
        // Hidden unit 0 is every token's that no script has: any of them may follow it, the first is the likeliest.
        let (mut embedding, mut head) = (vec![0.0_f32; size * HIDDEN], vec![0.0_f32; size * HIDDEN]);
        for id in 0..size {
            let unit = pairs.iter().position(|(from, _)| *from == id).map_or(0, |at| at + 1);
            embedding[id * HIDDEN + unit] = 1.0;
        }
        for (at, (_, to)) in pairs.iter().enumerate() {
            head[to * HIDDEN + at + 1] = 1.0;
        }
        let (mut file, bytes) = header("F32", 4, &tensors);
        let ones = vec![1.0; 3 * HIDDEN];
        let mut values = [embedding, head, ones].concat();
        values.resize(bytes / 4, 0.0);
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        Self { dir, begin: ids }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The token that begins a script.
    pub fn id(&self, name: &str) -> usize {
        self.begin[name]
    }
}
