"""The program `llm` with a model of `extra-openai-models.yaml`: tools, schemas, and conversations that go on."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

from support import KEY, MODEL, Scripted, needs, rule
from weather import CHAT, RULES

needs("llm")
FUNCTIONS = """
def weather(city: str, days: int) -> str:
    "Tells the weather."
    return {"Paris": "sunny", "Rome": "rainy"}[city]
"""
WHO = rule('{"name": "Tom", "age": 3}', contains="Who is")


class Program(Scripted):
    rules = [WHO, *RULES]

    def setUp(self):
        super().setUp()
        home = tempfile.TemporaryDirectory()
        self.addCleanup(home.cleanup)
        self.home = home.name
        model = {"model_id": "here", "model_name": MODEL, "api_base": f"{self.server.url}/v1"}
        model |= {"api_key_name": "here", "supports_tools": True, "supports_schema": True}
        # JSON is YAML.
        for name, content in (("extra-openai-models.yaml", [model]), ("keys.json", {"here": KEY})):
            with open(os.path.join(self.home, name), "w") as file:
                json.dump(content, file)

    def llm(self, *args):
        environment = {**os.environ, "LLM_USER_PATH": self.home}
        done = subprocess.run(
            [sys.executable, "-m", "llm", *args],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def test_conversations(self):
        self.assertEqual(self.llm("-m", "here", "--functions", FUNCTIONS, "Weather in Paris?"), "It is sunny.")
        # The conversation goes back with its call and its result.
        self.assertEqual(self.llm("-c", "Thanks"), "You are welcome.")
        self.assertEqual(self.asked(), {(CHAT, 200): 3})

    def test_text_before_a_call_unstreamed(self):
        said = self.llm("-m", "here", "--no-stream", "--functions", FUNCTIONS, "Weather in Rome?")
        self.assertTrue(said.startswith("Let me see.") and said.endswith("It rains."), said)
        self.assertEqual(self.asked(), {(CHAT, 200): 2})

    def test_a_schema(self):
        said = self.llm("-m", "here", "--schema", "name, age int", "Who is he?")
        self.assertEqual(json.loads(said), {"name": "Tom", "age": 3})


if __name__ == "__main__":
    unittest.main()
