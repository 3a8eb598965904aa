"""A server that answers by a script, or passes on to another one, and writes down every request whole.

    python3 tests/clients/mock.py SCRIPT.json [--port N] [--record DIR] [--fail PATH=STATUS[xTIMES][:JSON]]...
    python3 tests/clients/mock.py --relay URL [--port N] [--record DIR] [--fail PATH=STATUS[xTIMES][:JSON]]...

Rules are tried in order, and the first that fits answers: see scripts/README.md.
"""

import argparse
import contextlib
import gzip
import http.client
import itertools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import wire

MODELS = {"/v1/models", "/models"}
ROUTES = {
    "/v1/messages": "messages",
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/responses": "responses",
    "/responses": "responses",
}


def texts(content):
    """The text of a content in any API's form."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(texts(part) for part in content)
    if isinstance(content, dict):
        return texts(content.get("text") or content.get("content") or content.get("output") or "")
    return ""


class Conversation:
    """What rules look at: the tools on offer, and the turns as (role, text) with results of tools as turns of their own."""

    def __init__(self, api, body):
        self.turns = []
        tools = [*(body.get("tools") or [])]
        if api == "responses":
            self.turns += [("system", texts(body.get("instructions")))]
            items = body.get("input")
            items = [{"role": "user", "content": items}] if isinstance(items, str) else items or []
            for item in items:
                kind = item.get("type", "message")
                if kind == "message":
                    self.turns.append((item["role"].replace("developer", "system"), texts(item["content"])))
                elif kind.endswith("_call_output"):
                    self.turns.append(("tool", texts(item.get("output"))))
                elif kind.endswith("_call"):
                    self.turns.append(("assistant", ""))
                elif kind == "additional_tools":
                    tools += item.get("tools") or []
        else:
            self.turns += [("system", texts(body["system"]))] if "system" in body else []
            for message in body.get("messages") or []:
                role, content = message["role"].replace("developer", "system"), message.get("content")
                blocks = content if isinstance(content, list) else [content]
                results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
                rest = [b for b in blocks if b not in results]
                self.turns += [("tool", texts(block)) for block in results]
                if rest or not results:
                    self.turns.append((role, texts(rest)))
        self.tools = set(itertools.chain.from_iterable(names(tool) for tool in tools))

    def fits(self, when):
        """Whether every condition of a rule holds."""
        asked = [text for role, text in self.turns if role == "user"]
        last = max((i for i, (role, _) in enumerate(self.turns) if role == "assistant"), default=-1)
        new = self.turns[last + 1 :]
        results = [text for role, text in new if role == "tool"]
        holds = {
            "tool": lambda name: name in self.tools,
            "system": lambda text: any(text in t for role, t in self.turns if role == "system"),
            "user": lambda text: any(text in t for t in asked),
            "result": lambda text: any(text in t for t in results),
            "answers": lambda count: sum(role == "assistant" for role, _ in self.turns) == count,
        }
        return all(holds[name](value) for name, value in when.items())


def names(tool):
    """The names by which a tool, or those within a namespace, are called."""
    if tool.get("type") == "namespace":
        return [name for inner in tool["tools"] for name in names(inner)]
    return [tool.get("name") or tool.get("function", {}).get("name") or tool.get("type")]


def parts_of(script, api, body):
    """What the first rule that fits answers."""
    conversation = Conversation(api, body)
    for rule in script["rules"]:
        if conversation.fits(rule.get("when", {})):
            return rule["then"]
    raise LookupError("no rule fits")


class Failing:
    """Statuses and bodies that paths are to answer with, each so many times."""

    def __init__(self, specs):
        self.left = []
        for spec in specs:
            path, status, times, body = re.fullmatch(r"([^=]+)=(\d+)(?:x(\d+))?(?::(.*))?", spec).groups()
            error = {"type": "invalid_request_error", "message": f"made to fail with {status}"}
            body = json.loads(body) if body else {"type": "error", "error": error}
            self.left.append([path, int(times or 1 << 30), (int(status), body)])

    def answer(self, path):
        for entry in self.left:
            if entry[0] == path and entry[1]:
                entry[1] -= 1
                return entry[2]
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        # A client may go away at any time.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def read(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            raw = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def answer(self):
        tester, raw = self.server.mock, self.read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = {"_raw": raw[:2000].decode("latin1")}
        # A client that takes this for its proxy asks for another host: it gets there neither.
        split = urlsplit("" if self.command == "CONNECT" or "://" in self.path else self.path)
        record = {
            "method": self.command,
            "path": split.path or self.path,
            "query": split.query,
            "headers": list(self.headers.items()),
            "bytes": len(raw),
            "body": body,
        }
        failing = tester.failing.answer(split.path)
        if failing:
            self.whole(record, *failing)
        elif not split.path:
            self.whole(record, 403, {})
        elif tester.upstream:
            self.relay(record, raw)
        elif split.path in ROUTES and self.command == "POST":
            self.generate(record, ROUTES[split.path], body)
        elif split.path.endswith("/messages/count_tokens"):
            self.whole(record, 200, {"input_tokens": len(raw) // 4})
        elif split.path in MODELS:
            names = tester.script.get("models", ["mock"])
            models = [{"id": name, "object": "model", "type": "model", "created": 0} for name in names]
            self.whole(record, 200, {"object": "list", "data": models, "has_more": False})
        elif split.path == "/":
            self.whole(record, 200, {})
        else:
            self.whole(record, 404, {"error": {"message": "there is no such route"}})

    def generate(self, record, api, body):
        """Answers by the script."""
        try:
            parts = parts_of(self.server.mock.script, api, body)
        except LookupError as error:
            return self.whole(record, 400, {"error": {"type": "invalid_request_error", "message": str(error)}})
        model = body.get("model")
        usage = (body.get("stream_options") or {}).get("include_usage")
        if not body.get("stream"):
            whole = {
                "messages": lambda: wire.messages_whole(parts, model),
                "chat": lambda: wire.chat_whole(parts, model),
                "responses": lambda: wire.response_whole(parts, body),
            }
            return self.whole(record, 200, whole[api]())
        events = {
            "messages": lambda: wire.messages_stream(parts, model),
            "chat": lambda: wire.chat_stream(parts, model, usage),
            "responses": lambda: wire.response_stream(parts, body),
        }
        self.begin(record, 200, "text/event-stream")
        for number, event in enumerate(events[api]()):
            name = f"event: {event['type']}\n" if "type" in event else ""
            if api == "responses":
                event = {**event, "sequence_number": number}
            self.chunk(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.chunk(b"data: [DONE]\n\n" if api == "chat" else b"")
        return self.chunk(b"", last=True)

    def relay(self, record, raw):
        """Asks the server behind this one, and passes its answer on as it comes."""
        upstream = urlsplit(self.server.mock.upstream)
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=600)
        hop = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "accept-encoding"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        connection.request(self.command, self.path, body=raw or None, headers=headers)
        answer = connection.getresponse()
        kind = answer.getheader("Content-Type") or "application/json"
        if answer.status == 200 and kind.startswith("text/event-stream"):
            self.begin(record, 200, kind)
            while data := answer.read1(1 << 16):
                self.chunk(data)
            self.chunk(b"", last=True)
        else:
            data = answer.read()
            if answer.status >= 400:
                record["refusal"] = data[:4000].decode("utf-8", "replace")
            self.begin(record, answer.status, kind, len(data))
            self.wfile.write(data)
        connection.close()

    def whole(self, record, status, payload):
        data = json.dumps(payload).encode()
        if status >= 400:
            record["refusal"] = data.decode()
        self.begin(record, status, "application/json", len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin(self, record, status, kind, length=None):
        self.server.mock.keep({**record, "status": status})
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def chunk(self, data, last=False):
        # An empty chunk is the end.
        if data or last:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_CONNECT = answer


class Mock:
    """The server, as a context: it serves until its end."""

    def __init__(self, script=None, upstream=None, record=None, fail=(), port=0):
        self.script, self.upstream, self.failing, self.lock = script, upstream, Failing(fail), threading.Lock()
        self.begin_record(record)
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.mock = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def begin_record(self, folder):
        """Forgets what was asked, and writes down what is asked from now on."""
        self.folder, self.requests = folder, []
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, record):
        with self.lock:
            record = {"number": len(self.requests), "time": round(time.time(), 3), **record}
            self.requests.append(record)
        if self.folder:
            name = re.sub(r"\W+", "-", record["path"]).strip("-") or "root"
            path = self.folder / f"{record['number']:03}-{record['method']}-{name}.json"
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, nargs="?")
    parser.add_argument("--relay", metavar="URL")
    parser.add_argument("--record", type=Path, metavar="DIR")
    parser.add_argument("--fail", action="append", default=[], metavar="PATH=STATUS[xTIMES][:JSON]")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if bool(options.script) == bool(options.relay):
        parser.error("either a script or --relay")
    script = json.loads(options.script.read_text()) if options.script else None
    mock = Mock(script, options.relay, options.record, options.fail, options.port)
    print(f"listening on {mock.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        mock.server.serve_forever()


if __name__ == "__main__":
    main()
