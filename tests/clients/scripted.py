"""A model that answers by the rules of a script: a real one for the real server, with nothing of the server replaced.

    python3 tests/clients/scripted.py SCRIPT.json DIR

Its chat template reads the conversation and ends the prompt with the token of the first rule that fits. Its layer adds
nothing, so that the last hidden state is the last token's embedding, one-hot, which the head maps to the one token that
follows: the answer is known to the letter. Of the messages, the prompt has the assistant's and short ones alone.
"""

import json
import struct
import sys
from pathlib import Path

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures/text/chatml"
# The turns as Qwen 3 has them, long texts left out: the server reads calls and thoughts as the template writes them.
TURNS = r"""{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' -%}
{%- if m.reasoning_content -%}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{%- endif -%}
{{- m.content or '' -}}
{%- for c in m.tool_calls or [] -%}
{{- ('\n' if m.content or not loop.first else '') + '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' -}}
{{- (c.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{%- elif (m.content or '') | length < 32 -%}{{ m.content }}{%- endif -%}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
# What is said where no rule fits.
NONE = "No rule of the script fits."
HEAD_DIM = 32
# Scales the logit of the token that follows: no temperature that clients send makes another one likely.
CERTAIN = 8.0


def written(parts):
    """An answer as Qwen 3 writes it."""
    if isinstance(parts, str):
        return parts
    out = []
    for part in parts:
        if "reasoning" in part:
            out.append(f"<think>\n{part['reasoning']}\n</think>\n\n")
        elif "text" in part:
            out.append(part["text"])
        else:
            call = {"name": part["call"], "arguments": part["arguments"]}
            out.append(f"\n<tool_call>\n{json.dumps(call)}\n</tool_call>")
    text = "".join(out)
    assert text and text.isascii(), "an answer is ASCII: a token's text is its bytes"
    return text


def pieces(text, taken, size=8):
    """The text in tokens that no other answer has, since each has one successor."""
    out = []
    while text:
        end = min(size, len(text))
        while text[:end] in taken and end < len(text):
            end += 1
        piece, text = text[:end], text[end:]
        while piece in taken:
            # Only the rest of the text can be: it joins what is before it.
            assert out, f"the answer {piece!r} is a part of another one"
            taken.discard(out[-1])
            piece = out.pop() + piece
        taken.add(piece)
        out.append(piece)
    return out


def template(rules, begins):
    """The chat template that picks the rule."""
    quoted = json.dumps
    kinds = {"system": "system", "user": "user", "result": "tool"}
    texts = sorted({(kind, rule["when"][kind]) for rule in rules for kind in kinds if kind in rule.get("when", {})})
    names = sorted({rule["when"]["tool"] for rule in rules if "tool" in rule.get("when", {})})
    flags = {pair: f"t{i}" for i, pair in enumerate(texts)} | {name: f"n{i}" for i, name in enumerate(names)}
    out = [TURNS, "{%- set s = namespace(answers=0, calls=0"]
    out += [f", {flag}=false" for flag in flags.values()]
    out.append(") -%}{%- for m in messages -%}{%- if m.role == 'assistant' -%}{%- set s.answers = s.answers + 1 -%}"
               "{%- elif m.role == 'tool' -%}{%- set s.calls = s.calls + 1 -%}")
    # Results count until the assistant has answered them.
    out += [f"{{%- set s.{flags[pair]} = false -%}}" for pair in texts if pair[0] == "result"]
    out.append("{%- endif -%}")
    for kind, text in texts:
        holds = f"m.role == '{kinds[kind]}' and {quoted(text)} in (m.content or '')"
        out.append(f"{{%- if {holds} -%}}{{%- set s.{flags[kind, text]} = true -%}}{{%- endif -%}}")
    out.append("{%- endfor -%}{%- for t in tools or [] -%}")
    for name in names:
        out.append(f"{{%- if t.function.name == {quoted(name)} -%}}{{%- set s.{flags[name]} = true -%}}{{%- endif -%}}")
    out.append("{%- endfor -%}")
    for i, (rule, begin) in enumerate(zip(rules, begins)):
        when = rule.get("when", {})
        holds = [f"s.{flags[kind, when[kind]]}" for kind in kinds if kind in when]
        holds += [f"s.{flags[when['tool']]}"] if "tool" in when else []
        holds += [f"s.answers == {when['answers']}"] if "answers" in when else []
        holds += [f"s.calls == {when['calls']}"] if "calls" in when else []
        holds += [f"messages[-1].role == {quoted(when['last_role'])}"] if "last_role" in when else []
        holds += [f"{quoted(when['contains'])} in (messages[-1].content or '')"] if "contains" in when else []
        assert len(holds) == len(when), f"a condition is none: {when}"
        holds.insert(0, "add_generation_prompt")
        out.append(f"{{%- {'elif' if i else 'if'} {' and '.join(holds)} -%}}{begin}")
    out.append(f"{{%- elif add_generation_prompt -%}}{begins[-1]}{{%- endif -%}}")
    return "".join(out)


def make(folder, script):
    """Writes the model's directory."""
    folder.mkdir(parents=True)
    tokenizer = json.loads((FIXTURE / "tokenizer.json").read_text())
    known = {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}
    end, vocab = known["<|im_end|>"], 1 + max(known.values())
    taken, answers, pairs, begins = set(known), {}, [], []
    for rule in [*script["rules"], {"then": NONE}]:
        text = written(rule["then"] if "then" in rule else rule["answer"])
        if text not in answers:
            answers[text] = f"<|answer {len(answers)}|>"
            tokens = [answers[text], *pieces(text, taken)]
            ids = range(vocab, vocab + len(tokens))
            vocab += len(tokens)
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            for i, content in zip(ids, tokens):
                tokenizer["added_tokens"].append({"id": i, "content": content, **flags, "special": i == ids[0]})
            pairs += zip(ids, [*ids[1:], end])
        begins.append(answers[text])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template(script["rules"], begins)}))
    # A hidden unit for each pair; unit 0 is that of all other tokens.
    heads = len(pairs) // HEAD_DIM + 1
    hidden = heads * HEAD_DIM
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": 1, "head_dim": HEAD_DIM,
        "max_position_embeddings": 1 << 17, "bos_token_id": None, "eos_token_id": end,
    }
    (folder / "config.json").write_text(json.dumps(config))
    unit = {token: at + 1 for at, (token, _) in enumerate(pairs)}
    follows = {to: [] for _, to in pairs}
    for at, (_, to) in enumerate(pairs):
        follows[to].append(at + 1)
    layer = "model.layers.0."
    weights(folder / "model.safetensors", {
        "model.embed_tokens": rows(vocab, hidden, lambda token: [unit.get(token, 0)]),
        "lm_head": rows(vocab, hidden, lambda token: follows.get(token, [])),
        "model.norm": ([hidden], struct.pack(f"<{hidden}f", *[CERTAIN] * hidden)),
        layer + "input_layernorm": zeros(hidden),
        layer + "post_attention_layernorm": zeros(hidden),
        layer + "self_attn.q_proj": zeros(hidden, hidden),
        layer + "self_attn.k_proj": zeros(HEAD_DIM, hidden),
        layer + "self_attn.v_proj": zeros(HEAD_DIM, hidden),
        layer + "self_attn.o_proj": zeros(hidden, hidden),
        layer + "mlp.gate_proj": zeros(16, hidden),
        layer + "mlp.up_proj": zeros(16, hidden),
        layer + "mlp.down_proj": zeros(hidden, 16),
    })
    return folder


def rows(count, width, ones):
    """A matrix of zeros with ones in the columns that `ones` names for each row."""
    out = bytearray()
    for row in range(count):
        values = [0.0] * width
        for column in ones(row):
            values[column] = 1.0
        out += struct.pack(f"<{width}f", *values)
    return [count, width], bytes(out)


def zeros(*shape):
    count = 1
    for size in shape:
        count *= size
    return list(shape), bytes(4 * count)


def weights(path, tensors):
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name + ".weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


if __name__ == "__main__":
    make(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()))
