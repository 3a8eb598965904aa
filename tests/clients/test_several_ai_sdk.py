"""Vercel's AI SDK with several models in one server."""

import os
import unittest

from several import NODE, PACKAGES, Several


@unittest.skipUnless(NODE, "node is not installed")
@unittest.skipUnless(os.path.isdir(os.path.join(PACKAGES, "ai")), "the package ai is not installed by npm")
class Sdk(Several):
    def test_each_provider(self):
        for provider in ("openai", "chat", "compatible", "anthropic"):
            with self.subTest(provider=provider):
                self.alternate(self.by_node("ai_sdk.mjs", provider, "ask"))
