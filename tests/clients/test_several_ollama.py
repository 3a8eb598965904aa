"""Ollama's own packages, of Python and JavaScript, with several models in one server."""

import os
import unittest

import ollama
from several import NAMES, NODE, PACKAGES, Several
from support import KEY, QUESTION


class Python(Several):
    def setUp(self):
        self.api = ollama.Client(host=self.server.url, headers={"authorization": f"Bearer {KEY}"})
        self.addCleanup(self.api.close)

    def test_texts(self):
        self.alternate(lambda name: self.api.chat(model=name, messages=QUESTION).message.content)
        self.alternate(lambda name: self.api.generate(model=name, prompt=QUESTION[0]["content"]).response)

        def streamed(name):
            parts = self.api.chat(model=name, messages=QUESTION, stream=True)
            return "".join(part.message.content for part in parts)

        self.alternate(streamed)

    def test_models(self):
        self.assertEqual([of.model for of in self.api.list().models], [f"{name}:latest" for name in NAMES])
        made = self.api.chat(model=NAMES[1], messages=QUESTION)
        self.assertGreater(made.load_duration, 0)
        self.assertEqual([of.model for of in self.api.ps().models], [f"{NAMES[1]}:latest"])
        # How people unload a model by this API.
        self.assertEqual(self.api.generate(model=NAMES[1], keep_alive=0).done_reason, "unload")
        self.assertEqual(self.api.ps().models, [])
        with self.assertRaisesRegex(ollama.ResponseError, "model 'fourth' not found"):
            self.api.chat(model="fourth", messages=QUESTION)
        with self.assertRaisesRegex(ollama.ResponseError, "pull is not allowed here"):
            self.api.pull("fourth")


@unittest.skipUnless(NODE, "node is not installed")
@unittest.skipUnless(os.path.isdir(os.path.join(PACKAGES, "ollama")), "the package ollama is not installed by npm")
class JavaScript(Several):
    def test_texts(self):
        for case in ("chat", "stream", "generate"):
            with self.subTest(case=case):
                self.alternate(self.by_node("ollama.mjs", case))

    def test_models(self):
        made = self.by_node("ollama.mjs", "models")(NAMES[1])
        tagged = [f"{name}:latest" for name in NAMES]
        self.assertEqual(made["there"], tagged)
        self.assertEqual((made["family"], made["loaded"], made["reason"]), ("llama", [tagged[1]], "unload"))
        self.assertEqual(made["left"], [])
