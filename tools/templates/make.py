"""Write target/templates/expected.json: what transformers makes of real models' chat templates, for tests/templates.rs.

    pip install -r tools/templates/requirements.txt
    python3 tools/templates/make.py            # fetches the templates first where they are absent (fetch.py)
    python3 tools/templates/make.py FOLDER     # every *.jinja and tokenizer_config.json under it

conversations.json has the conversations, and the special tokens of a template that comes without a tokenizer. Each case lists
what was tried, in the order in which backstop tries it; the first that is a text is the one it is to render:

    content    of messages without one: `dropped`, the key is absent, as transformers leaves it; `null`; `empty`, the text ""
    arguments  of calls: `objects`, or `text`, as json.dumps writes them where they are objects
    text       an index into the template's `texts`; else `error`

`as_given` is the index of the attempt that is transformers' own answer, through `apply_chat_template`.
"""

import datetime
import json
import os
import sys
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_NO_ADVISORY_WARNINGS="1", TRANSFORMERS_VERBOSITY="error")
sys.dont_write_bytecode = True

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

import fetch

HERE = Path(__file__).resolve().parent
NOW = datetime.datetime(2024, 7, 5, 9, 8, 7)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def outcome(render):
    """The text, or in whose words it fails: a template can end in any exception of Python's."""
    try:
        return {"text": render()}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def options_of(chat):
    given = {name: chat.get(name) for name in ("tools", "documents")}
    switches = {name: chat.get(name, False) for name in ("add_generation_prompt", "continue_final_message")}
    return given | switches | chat.get("variables", {})


def as_transformers(template, specials, chat):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), chat_template=template, **specials)
    return outcome(lambda: tokenizer.apply_chat_template(chat["messages"], tokenize=False, **options_of(chat)))


def with_arguments(message, form):
    """The message with the arguments of its calls as objects, where they are the text of one, or as text."""
    def convert(arguments):
        if form == "text":
            return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments) if arguments.strip() else {}
            except ValueError:
                return arguments
            return parsed if isinstance(parsed, dict) else arguments
        return arguments

    calls = []
    for call in message.get("tool_calls", []):
        call = json.loads(json.dumps(call))
        holder = call.get("function", call)
        if "arguments" in holder:
            holder["arguments"] = convert(holder["arguments"])
        calls.append(call)
    return message | ({"tool_calls": calls} if calls else {})


def with_content(message, form):
    if form == "dropped" or "content" in message:
        return message
    # Beside the role, where clients write it.
    return {"role": message["role"], "content": None if form == "null" else "", **message}


def attempts(template, specials, chat):
    """(what was tried and came of it, each message list once; the index of the one that was given)."""
    given = _normalize_chat_messages(chat["messages"])
    tried, rows, as_given = [], [], None
    for content in ("dropped", "null", "empty"):
        for arguments in ("objects", "text"):
            messages = [with_content(with_arguments(message, arguments), content) for message in given]
            if messages in tried:
                continue
            if messages == given:
                as_given = len(tried)
            tried.append(messages)

            def render():
                if not messages:
                    raise ValueError("Cannot apply chat template to an empty conversation. Provide at least one message.")
                return render_jinja_template([messages], chat_template=template, **specials, **options_of(chat))[0][0]

            rows.append({"content": content, "arguments": arguments, **outcome(render)})
    return rows, as_given


def case(name, template, specials, chat):
    rows, as_given = attempts(template, specials, chat)
    own = as_transformers(template, specials, chat)
    if as_given is None:
        # Some arguments are objects and some are text.
        rows.append({"content": "dropped", "arguments": "given", **own})
        as_given = len(rows) - 1
    got = {key: value for key, value in rows[as_given].items() if key in ("text", "error")}
    assert own == got, (name, own, got)
    return {"conversation": name, "as_given": as_given, "attempts": rows}


def shared(cases):
    """The cases' texts, each once; they are replaced by their index."""
    texts = {}
    for row in (row for case in cases for row in case["attempts"] if "text" in row):
        row["text"] = texts.setdefault(row["text"], len(texts))
    return list(texts)


def main():
    start = time.monotonic()
    versions = {m.__name__: m.__version__ for m in (jinja2, tokenizers, transformers)}
    pinned = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().split())
    for name, version in versions.items():
        if pinned[name] != version:
            print(f"warning: {name} is {version}, requirements.txt says {pinned[name]}", file=sys.stderr)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch.SOURCES
    if len(sys.argv) == 1 and not folder.exists():
        fetch.fetch()
    given = json.loads((HERE / "conversations.json").read_text())
    chat_template_utils.datetime = Clock
    results, count = [], 0
    for name, (template, specials) in fetch.templates(folder, given["specials"]).items():
        cases = [case(f"{name}, {chat_name}", template, specials, chat) | {"conversation": chat_name} for chat_name, chat in given["conversations"].items()]
        rendered = sum(any("text" in row for row in case["attempts"]) for case in cases)
        count += sum(len(case["attempts"]) for case in cases)
        texts = shared(cases)
        results.append({"name": name, "template": template, "specials": specials, "texts": texts, "cases": cases})
        print(f"{name}: {rendered} of {len(cases)} are rendered")
    expected = {"versions": versions, "now": int(NOW.replace(tzinfo=datetime.UTC).timestamp()), "conversations": given["conversations"], "templates": results}
    path = fetch.TARGET / "expected.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    print(f"{path}: {len(results)} templates, {count} renderings, {path.stat().st_size} bytes, {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
