"""A server in a process of its own, with the built-in model unless told otherwise."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import subprocess
import tempfile
import threading
import unittest
import urllib.request
from collections import Counter
from pathlib import Path

from scripted import make

BACKSTOP = os.environ["BACKSTOP"]
KEY = "sesame"
# An alias of the scripted model.
MODEL = "local"
# What would have a server offer models of the person whose machine this is, or say more than is expected.
FOREIGN = {"RUST_LOG", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"}
QUESTION = [{"role": "user", "content": "Once upon a time"}]


class Server:
    def __init__(self, *args, key=KEY):
        command = [BACKSTOP, "serve", "--port", "0", *(["--api-key", key] if key else []), *args]
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        environment["HOME"] = environment["OLLAMA_MODELS"] = "/nonexistent"
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.url = None
        for line in self.process.stderr:
            if line.startswith("listening on "):
                self.url = line.removeprefix("listening on ").strip()
                break
        assert self.url, "the server did not start"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def answered(self):
        """How many requests of each route and status it has answered."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request) as answer:
            text = answer.read().decode()
        found = re.findall(r'^backstop_requests_total\{route="(.*)",status="(\d+)"\} (\d+)$', text, re.MULTILINE)
        return Counter({(route, int(status)): int(count) for route, status, count in found if route != "/metrics"})

    def stop(self):
        """Ends it, and says how it ended."""
        self.process.terminate()
        code = self.process.wait(timeout=120)
        self.process.stderr.close()
        return code


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # In this mode the loop tells of every callback that takes long, as on a busy machine each does.
        asyncio.get_running_loop().set_debug(False)


def scripted(rules, *args, key=KEY):
    """A server whose model writes what the first of `rules` that holds for a conversation says."""
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder) / "scripted", {"rules": rules})
        return Server(str(model), "--alias", MODEL, *args, key=key)


def rule(answer, role="user", **when):
    """`when`: `contains`, a part of the last message; `calls`, how many results of tools there are."""
    return {"when": {"last_role": role, **when}, "answer": answer}


def call(name, /, **arguments):
    """A call as models write it that were trained on Hermes' format."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class Scripted(unittest.TestCase):
    """Tests against a server with a script."""

    rules = ()
    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = scripted(cls.rules, *cls.options)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def setUp(self):
        self.before = self.server.answered()

    @contextlib.contextmanager
    def part(self, **what):
        """A part of a test, whose requests are counted from its beginning."""
        with self.subTest(**what):
            self.before = self.server.answered()
            yield

    def asked(self):
        """What the server has answered since the test began: a count for each route and status."""
        return dict(self.server.answered() - self.before)


def needs(*packages):
    """Skips the module that asks where a package is missing, by its name."""
    for package in packages:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            # One that it is within is missing.
            found = None
        if found is None:
            raise unittest.SkipTest(f"the package {package} is not installed")
