//! Inputs to begin with, made of the fixtures in `tests/`, so that none is kept twice.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::input::joined;
use super::tokenizers;

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn list(inputs: &[&str]) -> Vec<Vec<u8>> {
    inputs.iter().map(|input| input.as_bytes().to_vec()).collect()
}

/// A safetensors file of these tensors, of zeros.
fn zeros(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, dtype, shape, size)| {
        let start = end;
        end += size * shape.iter().product::<usize>();
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
    });
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.collect::<Vec<_>>().join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    file
}

pub(super) fn safetensors() -> Vec<Vec<u8>> {
    vec![
        zeros(&[("a", "F32", &[2, 3], 4), ("b", "BF16", &[5], 2), ("c", "U8", &[], 1)]),
        zeros(&[("model.embed_tokens.weight", "F16", &[0, 8], 2), ("x", "I64", &[1, 1, 1], 8)]),
        zeros(&[("a", "F8_E4M3", &[3], 1), ("é\\u0041", "BOOL", &[2], 1)]),
        read("models/granite-bf16/model.safetensors"),
    ]
}

pub(super) fn gguf() -> Vec<Vec<u8>> {
    let files = [
        "vocab-chatml",
        "vocab-gpt-2",
        "vocab-llama2",
        "vocab-sentencepiece",
        "whole",
        "qwen2_5_vl-flat",
        "granite-scales",
        "phi3-bf16",
        "gpt2-plain",
        "gemma2-caps",
    ];
    files.iter().map(|name| read(&format!("gguf/{name}.gguf"))).collect()
}

pub(super) fn model() -> Vec<Vec<u8>> {
    let models = [
        "models/granite-bf16",
        "models/glm4-bf16",
        "models/olmo2-bf16",
        "models/llama-f16",
        "models/phi3-bf16",
        "models/gpt2-plain",
        "models/gemma3-nested",
        "quantized/llama-affine4",
        "quantized/llama-gptq4-order",
        "quantized/llama-awq4",
        "quantized/llama-mxfp4",
        "quantized/llama-fp8",
        "quantized/llama-pack4",
        "quantized/llama-nvfp4-pack",
        "quantized/qwen3-modelopt-nvfp4",
    ];
    let files = ["config.json", "model.safetensors", "generation_config.json"];
    let made = models.iter().map(|name| {
        let files = files.map(|file| std::fs::read(fixture(name).join(file)).unwrap_or_default());
        joined(&files.each_ref().map(Vec::as_slice))
    });
    made.collect()
}

pub(super) fn tokenizer() -> Vec<Vec<u8>> {
    let text = "<s>Hello, world!<|im_end|>\n\n 1234 na\u{ef}ve \u{1f600} \u{4f60}\u{597d}</s>";
    let dirs = [
        "text/chatml",
        "text/llama2",
        "text/llama3",
        "converted/gpt2",
        "converted/qwen2",
        "converted/llama",
        "converted/unigram",
        "converted/user-defined",
        "converted/tekken",
        "converted/tiktoken",
    ];
    let made = dirs.iter().filter_map(|dir| {
        let file = |name: &str| std::fs::read(fixture(dir).join(name)).ok();
        let (name, tokens) = tokenizers::FILES.iter().find_map(|name| Some((*name, file(name)?)))?;
        let config = file("tokenizer_config.json").unwrap_or_default();
        let merges = file("merges.txt").unwrap_or_default();
        Some(tokenizers::joined(name, [&tokens, &config, text.as_bytes(), &merges]))
    });
    made.collect()
}

/// What transformers rendered templates of, with its conversations.
fn expected() -> Json {
    serde_json::from_slice(&read("text/expected.json")).expect("a fixture")
}

pub(super) fn template() -> Vec<Vec<u8>> {
    let expected = expected();
    let chats: Vec<String> = expected["chats"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, chat)| chat["messages"].to_string())
        .collect();
    let templates = expected["templates"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(expected["snippets"].as_array().into_iter().flatten());
    let sources = templates.filter_map(|case| case["template"].as_str());
    sources
        .enumerate()
        .map(|(i, source)| joined(&[source.as_bytes(), chats[i % chats.len()].as_bytes()]))
        .collect()
}

pub(super) fn json() -> Vec<Vec<u8>> {
    let mut inputs = list(&[
        r#"{"a":[1,-2,3.5e7,true,null,"\u00e9\n"],"b":{"c":{}}}"#,
        r#"{"a":1,"\u0061":2}"#,
        "[[[[]]]]",
        "-0.0",
        "18446744073709551616",
        r#""\ud83d\ude00""#,
        " 1 2",
    ]);
    inputs.push(read("models/gemma3-nested/config.json"));
    inputs
}

pub(super) fn sentinel() -> Vec<Vec<u8>> {
    let texts: [[&str; 2]; 4] = [
        ["<s>\n</s>\n<|im_end|>", "a <s>b</s><|im_end|"],
        ["ab\nabc\nb", "aabcab"],
        ["<s>", "\u{fdd0}<s>\u{fdd1}\u{fdd2}0\u{fdd3} "],
        ["\u{fdd2}\na", "a\u{fdd2}1"],
    ];
    texts.iter().map(|texts| joined(&texts.map(str::as_bytes))).collect()
}

pub(super) fn reply() -> Vec<Vec<u8>> {
    let answers = [
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "{\"name\": \"add\", \"parameters\": {\"a\": {\"b\": [\"}\"]}}}; {\"name\": \"get_weather\"}",
        "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {}}]",
        "[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{\"a\": 1}",
        "[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]get_weather[ARGS]{}",
        "<|calls|><|call|>functions.add:0<|args|>{\"a\": 1}<|/call|><|/calls|>",
        "<function=add>{\"a\": 1}</function>",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        "<calls>\n<invoke name=\"get_weather\">\n<param name=\"city\" string=\"true\">Oslo</param>\n</invoke>\n</calls>",
        "<|calls|><|call|>function<|sep|>add\n```json\n{\"a\": 1}\n```<|/call|><|/calls|>",
        "<calls>[add(a=[1, None], b=\"x\\\"\"), get_weather(city='O\\u0073lo')]</calls>",
        "[add(a={'b': (1, 2)}), get_weather(city=\"it's\")]",
    ];
    let made = answers.iter().enumerate().flat_map(|(i, answer)| {
        let of = |flags: u8, text: &str| [&[i as u8 + 1, flags], text.as_bytes()].concat();
        [
            of(0, answer),
            of(5, &format!("<think>So.</think>\n{answer} On.")),
            of(3, &format!("Hm.</think>{answer}")),
        ]
    });
    let harmony = [
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": \"<|end|>\"}<|call|>",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{}",
    ];
    let atem = [
        " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Yes.<|eot|>",
        " to=add<|message|><atem:function_calls>\n<atem:invoke name=\"add\">\n<atem:parameter name=\"a\">[1, \"<|eom|>\"]</atem:parameter>\n\
         </atem:invoke>\n</atem:function_calls><|eom|><|start|>assistant to=get_weather<|message|><atem:invoke name=\"get_weather\"></atem:invoke>",
        "<|message|>I look.<|start|>assistant to=nobody<|message|>No.<|eot|>",
    ];
    let channels = harmony.iter().map(|answer| (8, answer)).chain(atem.iter().map(|answer| (16, answer)));
    made.chain(channels.map(|(flags, answer)| [&[0, flags], answer.as_bytes()].concat())).collect()
}

pub(super) fn stop() -> Vec<Vec<u8>> {
    let texts = [
        ["ab", "xab"],
        ["aab\nb", "aaab"],
        ["\u{2022}\u{2022}c\n\u{2022}b", "a\u{2022}b\u{2022}\u{2022}c"],
        ["abcd\nbc", "aabcabcd"],
    ];
    texts.iter().map(|texts| joined(&texts.map(str::as_bytes))).collect()
}

pub(super) fn grammar() -> Vec<Vec<u8>> {
    let grammars = [
        (
            0,
            r#"{"type":"object","properties":{"a":{"type":"integer","minimum":3},"b":{"enum":["x",null]}},"required":["a"]}"#,
        ),
        (
            0,
            r##"{"$defs":{"t":{"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}]}},"$ref":"#/$defs/t"}"##,
        ),
        (0, r#"{"type":"string","pattern":"^[a-c]{2,4}$","minLength":2}"#),
        (0, r#"{"type":"string","format":"date-time"}"#),
        (
            0,
            r#"{"type":"object","additionalProperties":{"type":"number","exclusiveMaximum":1.5},"minProperties":1}"#,
        ),
        (0, r#"{"oneOf":[{"type":"boolean"},{"const":{"k":[1,"\u00e9"]}}]}"#),
        (1, "[0-9]{4}-(0[1-9]|1[0-2])"),
        (1, r"(\w+ ){1,3}\p{Lu}"),
        (
            2,
            "start: greeting (\",\" name)* END\ngreeting: \"hi\" | \"hello\"i\nname: /[A-Z][a-z]{1,9}/\nEND: \"!\" | \"?\"\n",
        ),
        (
            2,
            "start: %json { \"type\": \"object\", \"properties\": { \"a\": { \"$ref\": \"#\" } } }\n%ignore /[ ]+/\n",
        ),
    ];
    grammars
        .iter()
        .map(|(kind, text)| [&[*kind, 1, 2, 3, 40, 5, 66, 7, 8], text.as_bytes()].concat())
        .collect()
}

/// Bytes that follow no pattern.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub(super) fn blocks() -> Vec<Vec<u8>> {
    (0..40).map(|i| [&[i, 16, 0, 2, 1][..], &noise(u64::from(i) + 1, 400)].concat()).collect()
}

pub(super) fn engine() -> Vec<Vec<u8>> {
    (0..12).map(|i| [&[i as u8][..], &noise(i + 100, 120)].concat()).collect()
}

pub(super) fn bits() -> Vec<Vec<u8>> {
    (0..12).map(|i| [&[i as u8][..], &noise(i + 200, 24)].concat()).collect()
}

#[cfg(feature = "server")]
/// The routes that take a body; inputs name them by their place here.
pub(super) const ROUTES: [&str; 17] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/completion",
    "/infill",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/api/embed",
    "/api/embeddings",
];

/// Bodies of each route, whose place in the list of routes the first byte is.
#[cfg(feature = "server")]
pub(super) fn request() -> Vec<Vec<u8>> {
    let bodies = [
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"logprobs":true,"top_logprobs":2,"n":2}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"system","content":[{"type":"text","text":"x"}]},{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":3,"stop":["a"],"seed":1,"temperature":0.5}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"a","content":"1"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto","max_tokens":4}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"Hi"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"integer"}}},"max_tokens":4}"#,
        ),
        (
            "/v1/completions",
            r#"{"prompt":["Hi",[1,2]],"max_tokens":4,"echo":true,"logprobs":1,"logit_bias":{"3":-5},"min_tokens":1}"#,
        ),
        (
            "/v1/completions",
            r#"{"prompt":"Hi","max_tokens":4,"stream":true,"best_of":1,"suffix":null,"min_p":0.1,"top_k":4,"repeat_penalty":1.1}"#,
        ),
        (
            "/completion",
            r#"{"prompt":"Hi","n_predict":4,"stream":true,"samplers":["top_k","temperature"],"logit_bias":[[3,-5],[4,false]],"n_probs":2,"return_tokens":true,"stop":["a"],"n_indent":1}"#,
        ),
        (
            "/infill",
            r#"{"input_prefix":"a","input_suffix":"b","input_extra":[{"text":"c","filename":"d"}],"prompt":"e","n_predict":2,"t_max_predict_ms":9,"response_fields":["content","timings/prompt_n"]}"#,
        ),
        (
            "/api/chat",
            r#"{"messages":[{"role":"user","content":"Hi"}],"options":{"num_predict":4,"temperature":0.5,"stop":["a"]},"tools":[{"type":"function","function":{"name":"f"}}],"think":false,"keep_alive":"1m"}"#,
        ),
        (
            "/api/generate",
            r#"{"prompt":"Hi","suffix":"","stream":false,"raw":true,"options":{"num_predict":4},"format":"json"}"#,
        ),
        ("/api/show", r#"{"verbose":true}"#),
        ("/api/embed", r#"{"input":["Hi","Ho"],"truncate":false,"dimensions":4}"#),
        ("/api/embeddings", r#"{"prompt":"Hi"}"#),
        (
            "/v1/responses",
            r#"{"input":"Hi","max_output_tokens":16,"instructions":"x","store":true,"stream":true}"#,
        ),
        (
            "/v1/responses",
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}],"max_output_tokens":16,"text":{"format":{"type":"text"}},"tools":[{"type":"function","name":"f","parameters":{"type":"object"}}]}"#,
        ),
        ("/v1/embeddings", r#"{"input":["Hi","you"],"encoding_format":"base64"}"#),
        (
            "/v1/messages",
            r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"system":[{"type":"text","text":"x"}],"stream":true,"stop_sequences":["a"]}"#,
        ),
        (
            "/v1/messages",
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]},{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"1"}]}],"max_tokens":4,"tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"any"},"thinking":{"type":"enabled","budget_tokens":1024}}"#,
        ),
        (
            "/v1/rerank",
            r#"{"query":"Hi","documents":["you",{"text":"me"}],"top_n":1,"return_documents":true}"#,
        ),
        ("/v1/messages/count_tokens", r#"{"messages":[{"role":"user","content":"Hi"}],"system":"x"}"#),
        ("/tokenize", r#"{"content":"Hi <s>","add_special":true,"with_pieces":true}"#),
        ("/detokenize", r#"{"tokens":[1,2,3]}"#),
        ("/apply-template", r#"{"messages":[{"role":"user","content":"Hi"}]}"#),
    ];
    let number = |route: &str| ROUTES.iter().position(|known| *known == route).expect("a route") as u8;
    bodies.iter().map(|(route, body)| [&[number(route)], body.as_bytes()].concat()).collect()
}

#[cfg(feature = "server")]
pub(super) fn http() -> Vec<Vec<u8>> {
    list(&[
        "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"content\":\"Hi\"}",
        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"conten\r\n8\r\nt\":\"Hi\"}\r\n0\r\n\r\n",
        "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://x\r\nAccess-Control-Request-Method: GET\r\n\r\n",
        "HEAD /v1/v1/models/x%20y?z HTTP/1.1\r\nHost: 127.0.0.1:80\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: evil\r\nSec-Fetch-Site: cross-site\r\nAuthorization: Bearer x\r\nUpgrade: websocket\r\n\r\n",
    ])
}
