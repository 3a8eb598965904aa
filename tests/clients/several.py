"""Three models in one server, with room for one: each question to another has one unloaded and one loaded."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from scripted import make
from support import KEY, Server, rule

NAMES = ("first", "org/second", "third")
ROUNDS = 3
HERE = os.path.dirname(os.path.abspath(__file__))
# Where `cargo xtask` has npm put its packages.
PACKAGES = os.environ.get("NODE_PACKAGES", os.path.join(HERE, "..", "..", "target", "clients", "node_modules"))
NODE = shutil.which("node")


def answer(name):
    return f"I am {name.rpartition('/')[2]}."


class Several(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        for name in NAMES:
            path = Path(cls.folder) / name
            path.parent.mkdir(exist_ok=True)
            make(path, {"rules": [rule(answer(name))]})
        # 512 MiB are kept free.
        memory = ("--memory", "560MiB", "--kv-memory", "32MiB", "--ctx", "4096")
        cls.server = Server("--models-dir", cls.folder, *memory)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0
        shutil.rmtree(cls.folder)

    def alternate(self, ask):
        """Asks the three in turn: `ask` takes a model's name and says its answer."""
        for _ in range(ROUNDS):
            for name in NAMES:
                self.assertEqual(ask(name), answer(name))
                self.assertEqual(self.loaded(), [name])

    @classmethod
    def loaded(cls):
        """The models that are loaded."""
        request = urllib.request.Request(f"{cls.server.url}/v1/models", headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request) as answer:
            return [model["id"] for model in json.load(answer)["data"] if model["state"] == "loaded"]

    def by_node(self, program, *args):
        """What a program for Node.js says to each model, in turn."""
        # Modules are looked for beside the file that asks for them.
        copy = os.path.join(PACKAGES, "..", program)
        shutil.copy(os.path.join(HERE, program), copy)

        def ask(name):
            command = [NODE, copy, *args, self.server.url, KEY, name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)

        return ask
