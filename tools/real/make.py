"""Write tests/fixtures/real: what llama.cpp and Hugging Face's tokenizers make of the models that tests/real.rs runs.

    cargo xtask real-models --oracle                # the models, llama.cpp and the tokenizers; 0.9 GB
    pip install accelerate gguf jinja2 numpy tokenizers torch transformers
    python tools/real/make.py [NAME…]               # on one core: 1, 5 and 4 minutes

`texts.json` has the texts of texts.py, `<name>.json` for each model:

- `ids`: those texts' token ids, special tokens parsed and none added, by `ids_by`: `tokenizers` where a package has the model's
  tokenizer.json, else llama.cpp.
- `chats`: `messages`, or `text` for a base model; `prompt`, the ids of it; `ids`, what llama.cpp adds greedily; `top`, for each
  of these the two likeliest tokens and their logits; `exact`, what these two logits are where nothing is rounded: transformers'
  with the weights in f32. (llama.cpp's own are 0.012 off with Gemma 3, in part by its table of GELU in f16.)
- `docs`: the first `ids` of docs.txt, BOS not among them; `nll`, for each window of `window` ids the sum of the negative log-likelihoods of
  its ids, each given those before it in the window; `scored`, how many ids that are. Where texts of the model begin with BOS, it
  stands before each window; else a window's first id is not scored.

docs.txt is a part of docs/architecture.md as it once was. It stays as it is, and so do its perplexities.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

import jinja2
import numpy as np
from tokenizers import Tokenizer

import exact
import llama
from texts import texts

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS, OUT = ROOT / "target" / "real-models", ROOT / "tests" / "fixtures" / "real"
DOCS = (OUT / "docs.txt").read_text()

GENERATED = 64
SCORED, WINDOW = 4096, 1024  # twice Gemma 3's sliding window


def say(role, content):
    return {"role": role, "content": content}


CHATS = [
    [say("user", "Write a Python function that returns the n-th Fibonacci number.")],
    [
        say("system", "You tell stories to children."),
        say("user", "Who lives in the lighthouse?"),
        say("assistant", "An old keeper named Ada, with her cat."),
        say("user", "Tell me a long story about Ada, her cat and a storm."),
    ],
    [say("user", f"{DOCS[:2400]}\n\nSummarize this text in five long sentences.")],
]
# The last one is longer than Gemma 3's sliding window.
PROMPTS = ["The three largest cities of France are", "def fibonacci(n):\n    \"\"\"Return the n-th", DOCS[:3000]]

# Name: the tokenizer, and how many of its ids are the model's; whether it chats.
NAMES = {
    "smollm2-135m-instruct": (None, None, True),
    "qwen2.5-coder-0.5b-instruct": ("tokenizer-qwen3", 151665, True),
    "gemma-3-270m": ("tokenizer-gemma3", 262144, False),
}


def tokenizer(folder, size, model):
    """Hugging Face's, without the tokens that only a later model has; it must have the file's tokens."""
    data = json.loads((MODELS / folder / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < size]
    made = Tokenizer.from_str(json.dumps(data))
    other = [i for i in range(size) if (token := made.id_to_token(i)) is not None and token != model.text(i)]
    # What is added has no bytes in GGUF files' spelling of it.
    assert all(i in {token["id"] for token in data["added_tokens"]} for i in other), [(i, made.id_to_token(i), model.text(i)) for i in other[:9]]
    print(f"{folder}: {size} tokens, {len(other)} spelled otherwise")
    return made


def top(row):
    """The two likeliest tokens and their logits."""
    first, second = np.argsort(-row, kind="stable")[:2]
    return [int(first), round(float(row[first]), 4), int(second), round(float(row[second]), 4)]


def greedy(model, prompt):
    session = model.session(len(prompt) + GENERATED)
    *_, row = session.rows(prompt)
    steps = [top(row)]
    while len(steps) < GENERATED:
        (row,) = session.rows([steps[-1][0]])
        steps.append(top(row))
    session.free()
    ends = [i for i, step in enumerate(steps) if model.is_end(step[0])]
    assert not ends, f"a text ends after {ends[0]} of {GENERATED} tokens: ask for more"
    return steps


def chat(model, source):
    if isinstance(source, str):
        told, prompt = {"text": source}, model.bos() + model.tokenize(source)
    else:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(model.template()).render(messages=source, add_generation_prompt=True, tools=None)
        told, prompt = {"messages": source}, model.tokenize(text)
    steps = greedy(model, prompt)
    return told | {"prompt": prompt, "ids": [step[0] for step in steps], "top": steps}


def add_exact(path, chats):
    for told, pairs in zip(chats, exact.pairs(path, chats), strict=True):
        told["exact"] = [[round(logit, 4) for logit in pair] for pair in pairs]
        apart = [step[1] - step[3] - first + second for step, (first, second) in zip(told["top"], told["exact"])]
        print(f"gaps from exact ones: {np.sqrt(np.mean(np.square(apart))):.4f} rms, {np.abs(apart).max():.4f} at most")


def docs(model):
    ids = model.tokenize(DOCS)[:SCORED]
    assert len(ids) == SCORED, f"docs.txt has only {len(ids)} tokens"
    sums, scored = [], 0
    for start in range(0, SCORED, WINDOW):
        window = model.bos() + ids[start : start + WINDOW]
        session, total = model.session(len(window)), 0.0
        for row, following in zip(session.rows(window), window[1:]):
            row = row.astype(np.float64)
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[following]
            scored += 1
        session.free()
        sums.append(total)
    print(f"perplexity {np.exp(sum(sums) / scored):.4f}")
    return {"window": WINDOW, "scored": scored, "nll": [round(total, 6) for total in sums], "ids": ids}


def write(path, value):
    """JSON, a line for each id list, so that a change can be read."""
    compact = lambda value: json.dumps(value, ensure_ascii=True, separators=(",", ":"))  # noqa: E731
    line = lambda key, value: f"{compact(key)}:{compact(value)}"  # noqa: E731

    def shown(key, value):
        if key in ("ids", "chats") and isinstance(value[0], (list, dict)):
            return f"{compact(key)}:[\n" + ",\n".join(map(compact, value)) + "\n]"
        return line(key, value)

    path.write_text("{\n" + ",\n".join(shown(*item) for item in value.items()) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def make(library, name):
    folder, size, chats = NAMES[name]
    (path,) = (MODELS / name).glob("*.gguf")
    model = llama.Model(library, path)
    made_by = {"llama.cpp": llama.RELEASE} | {name: importlib.metadata.version(name) for name in ("gguf", "transformers")}
    if folder:
        reference = tokenizer(folder, size, model)
        encode = lambda text: reference.encode(text, add_special_tokens=False).ids  # noqa: E731
        made_by["tokenizers"] = importlib.metadata.version("tokenizers")
    else:
        encode = model.tokenize
    ids = [encode(text) for text in texts()]
    apart = [text for text, expected in zip(texts(), ids) if model.tokenize(text) != expected]
    print(f"{name}: {len(ids)} texts, llama.cpp has other ids of {apart}")
    told = [chat(model, source) for source in (CHATS if chats else PROMPTS)]
    add_exact(path, told)
    write(OUT / f"{name}.json", {
        "made_by": made_by, "ids_by": "tokenizers" if folder else "llama.cpp", "ids": ids, "chats": told, "docs": docs(model),
    })
    model.free()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} [default: all]")
    names = parser.parse_args().names or list(NAMES)
    (OUT / "texts.json").write_text("[\n" + ",\n".join(json.dumps(text) for text in texts()) + "\n]\n")
    library = llama.Library(MODELS / "llama.cpp")
    for name in names:
        make(library, name)


if __name__ == "__main__":
    main()
