"""Vercel's AI SDK: its providers of OpenAI's APIs, of those like them, and of Anthropic's."""

import json
import os
import shutil
import subprocess
import unittest

from support import KEY, MODEL, Scripted, call, rule
from weather import CHAT, MESSAGES, PET, RESPONSES, RULES

HERE = os.path.dirname(os.path.abspath(__file__))
# Where `cargo xtask` has npm put its packages.
PACKAGES = os.environ.get("NODE_PACKAGES", os.path.join(HERE, "..", "..", "target", "clients", "node_modules"))
NODE = shutil.which("node")
PROVIDERS = {"openai": RESPONSES, "chat": CHAT, "compatible": CHAT, "anthropic": MESSAGES}
ANSWERS = [("It rains.", 2), ("It is sunny.", 2), ("You are welcome.", 1)]


@unittest.skipUnless(NODE, "node is not installed")
@unittest.skipUnless(os.path.isdir(os.path.join(PACKAGES, "ai")), "the package ai is not installed by npm")
class Sdk(Scripted):
    # Of Anthropic's API, the provider asks for a schema by a tool that has to be called.
    rules = [rule(call("json", **json.loads(PET)), contains="pet", tool="json"), *RULES]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # Modules are looked for beside the file that asks for them.
        cls.program = os.path.join(PACKAGES, "..", "ai_sdk.mjs")
        shutil.copy(os.path.join(HERE, "ai_sdk.mjs"), cls.program)

    def run_case(self, provider, case):
        command = [NODE, self.program, provider, case, self.server.url, KEY, MODEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def converse(self, provider, case):
        made = self.run_case(provider, case)
        self.assertEqual([(answer["text"], answer["steps"]) for answer in made["answers"]], ANSWERS)
        self.assertEqual({answer["reason"] for answer in made["answers"]}, {"stop"})
        self.assertTrue(all(answer["whole"] for answer in made["answers"]), made)
        self.assertEqual(made["asked"], [["Rome", 1], ["Paris", 2]])
        self.assertEqual(self.asked(), {(PROVIDERS[provider], 200): 5})

    def test_loops(self):
        for provider in PROVIDERS:
            for case in ("loop", "stream"):
                with self.part(provider=provider, case=case):
                    self.converse(provider, case)

    def test_responses_that_are_not_to_be_kept(self):
        # Without it, the SDK names the items of earlier answers by their ids.
        self.converse("openai", "unkept")

    def test_schemas(self):
        for provider, route in PROVIDERS.items():
            with self.part(provider=provider):
                self.assertEqual(self.run_case(provider, "schema"), json.loads(PET))
                self.assertEqual(self.asked(), {(route, 200): 1})


if __name__ == "__main__":
    unittest.main()
