"""The page before a server with several real models, of which one is loaded at a time and one is broken."""

import json
import os
import shutil
import tempfile
import unittest
import urllib.request
from pathlib import Path

from browser import PATH
from playwright.sync_api import expect
from scripted import make
from support import Server, rule
from test_page import ANSWER, Page

NAMES = ["broken", "first", "org/second", "third"]
ROW = ".models .popup .row"


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Several(Page):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        folder = Path(cls.folder)
        for name in NAMES:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            make(path, {"rules": [rule(f"I am {name.rpartition('/')[2]}.")]})
        (folder / "broken/model.safetensors").write_bytes(b"none")
        (folder / "org/second/generation_config.json").write_text(
            json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20})
        )
        super().setUpClass()

    @classmethod
    def server_of(cls):
        # 512 MiB are kept free: there is room for one.
        memory = ("--memory", "560MiB", "--kv-memory", "32MiB", "--ctx", "4096")
        return Server("--models-dir", cls.folder, *memory, key=None)

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.folder)

    def states(self):
        with urllib.request.urlopen(f"{self.server.url}/v1/models") as answer:
            return {model["id"]: model["state"] for model in json.load(answer)["data"]}

    def loaded(self):
        return [name for name, state in self.states().items() if state == "loaded"]

    def menu(self, page):
        if not page.locator(".models .popup").count():
            page.click("button.model")
        return lambda name: page.locator(ROW, has=page.locator(".pick .name", has_text=name))

    def test_one_is_chosen_asked_loaded_and_unloaded(self):
        page = self.open()
        row = self.menu(page)
        self.sees(page, f"{ROW} .pick .name", NAMES)
        for name in NAMES:
            self.assertIn("not loaded", row(name).inner_text())
        # One that is not loaded is asked: it says so, and answers.
        page.evaluate("""() => {
            window.heard = new Set();
            const said = document.getElementById("said");
            new MutationObserver(() => heard.add(said.textContent)).observe(said, { childList: true, characterData: true, subtree: true });
        }""")
        row("org/second").locator(".pick").click()
        self.ask(page, "Who are you?")
        self.sees(page, ANSWER, ["I am second."])
        self.assertIn("Loading org/second…", page.evaluate("[...heard]"))
        self.assertEqual(self.loaded(), ["org/second"])
        self.assertIn("org/second", page.locator("article.assistant .figures").inner_text())
        page.keyboard.press("Control+,")
        self.assertEqual(page.get_attribute("#temperature", "placeholder"), "0.6")
        self.assertEqual(page.get_attribute("#top_k", "placeholder"), "20")
        page.keyboard.press("Escape")
        row = self.menu(page)
        expect(row("org/second").locator(".dot")).to_have_class("dot is-loaded")
        # Another takes its place.
        row("first").locator(".pick").click()
        self.ask(page, "And you?")
        self.sees(page, ANSWER, ["I am second.", "I am first."])
        self.assertEqual(self.loaded(), ["first"])
        row = self.menu(page)
        expect(row("org/second").locator(".dot")).to_have_class("dot is-unloaded")
        row("third").locator(".pick").click()
        self.ask(page, "And the third?")
        self.sees(page, ANSWER, ["I am second.", "I am first.", "I am third."])
        self.assertEqual(self.loaded(), ["third"])
        self.menu(page)("first").locator(".pick").click()
        self.answered(page, lambda: page.locator("article.assistant .do-again").last.click())
        self.sees(page, ANSWER, ["I am second.", "I am first.", "I am first."])
        row = self.menu(page)
        # By hand.
        page.get_by_label("Unload first").click()
        expect(row("first").locator(".dot")).to_have_class("dot is-unloaded")
        self.assertEqual(self.states()["first"], "unloaded")
        page.get_by_label("Load org/second").click()
        page.get_by_label("Unload org/second").wait_for()
        self.assertEqual(self.loaded(), ["org/second"])
        # What was chosen stays so.
        page.keyboard.press("Escape")
        self.visit_again(page)
        expect(page.locator("button.model .name")).to_have_text("first")
        self.assertEqual(page.complaints, [])

    def test_one_that_is_broken_fails_alone(self):
        page = self.open()
        row = self.menu(page)
        row("broken").locator(".pick").click()
        self.ask(page, "Are you there?")
        said = page.locator("article.assistant .alert").inner_text()
        self.assertIn("model.safetensors", said)
        row = self.menu(page)
        expect(row("broken").locator(".alarm")).to_contain_text("model.safetensors")
        row("first").locator(".pick").click()
        self.answered(page, lambda: page.click("article.assistant .do-again"))
        self.sees(page, ANSWER, ["I am first."])


if __name__ == "__main__":
    unittest.main()
