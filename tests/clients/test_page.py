"""The page at `/`, in Chromium: it is skipped where there is none."""

import json
import os
import unittest
import urllib.request

from browser import PATH, Browser
from support import KEY, QUESTION, Server

SHOTS = os.environ.get("SCREENSHOTS")


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Page(unittest.TestCase):
    def setUp(self):
        self.server = Server(key=None)
        self.browser = None

    def tearDown(self):
        if self.browser:
            self.browser.close()
        self.assertEqual(self.server.stop(), 0)

    def open(self, **options):
        self.browser = Browser(self.server.url, **options)
        self.browser.wait("document.readyState === 'complete' && document.title.includes('stories')")
        return self.browser

    def expected(self):
        body = {"messages": QUESTION, "temperature": 0, "max_tokens": 30}
        request = urllib.request.Request(f"{self.server.url}/v1/chat/completions", json.dumps(body).encode())
        return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]

    def metric(self, name):
        text = urllib.request.urlopen(f"{self.server.url}/metrics").read().decode()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))

    def answers(self):
        return self.browser.evaluate("[...document.querySelectorAll('article.assistant .text')].map(e => e.textContent)")

    def test_a_conversation(self):
        for dark in (False, True):
            page = self.open(dark=dark)
            self.assertIn("cpu", page.evaluate("document.getElementById('backend').textContent").lower())
            page.evaluate("document.querySelector('details.settings').open = true")
            # By the keyboard alone: the question has the focus from the start.
            self.assertEqual(page.evaluate("document.activeElement.id"), "question")
            for field, value in (("temperature", 0), ("max_tokens", 30)):
                self.browser.evaluate(f"{{ const e = document.getElementById('{field}'); e.value = '{value}'; }} 0")
            page.type("Once upon")
            page.press("Enter", 13, modifiers=8)
            page.evaluate("document.getElementById('question').value = 'Once upon a time'; 0")
            page.press("Enter", 13)
            page.wait("document.querySelector('article.assistant .note') && !document.getElementById('send').disabled")
            self.assertEqual(self.answers(), [self.expected()])
            self.assertRegex(page.evaluate("document.getElementById('rate').textContent"), r"^\d+\.\d tok/s$")
            self.assertEqual(page.evaluate("document.activeElement.id"), "question")
            if SHOTS:
                page.type("And what did she find there?")
                page.screenshot(os.path.join(SHOTS, f"page-{'dark' if dark else 'light'}.png"))
            self.assertEqual(page.complaints(), [])
            self.browser.close()
        self.browser = None

    def test_stop_errors_and_a_new_conversation(self):
        page = self.open()
        # Slow enough to be stopped.
        page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=2000, uploadThroughput=-1)
        page.type("Once upon a time")
        page.press("Enter", 13)
        page.wait("document.querySelector('article.assistant .text')?.textContent.length > 0")
        self.assertTrue(page.evaluate("document.getElementById('log').getAttribute('aria-busy') === 'true'"))
        page.evaluate("document.getElementById('stop').click()")
        page.wait("document.querySelector('article.assistant .note')?.textContent === 'stopped'")
        page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        # What the server refuses is said, and the question is not lost.
        page.evaluate("document.getElementById('question').value = 'Again '.repeat(9000); document.getElementById('send').click()")
        page.wait("document.querySelector('[role=alert]').textContent.includes('tokens')")
        self.assertEqual(page.evaluate("document.getElementById('question').value.length"), 54000)
        page.evaluate("document.getElementById('fresh').click()")
        self.assertEqual(page.evaluate("document.querySelectorAll('article').length"), 0)
        # Text of a model is text, whatever it says.
        page.evaluate("show('assistant', '<img src=x onerror=alert(1)>'); 0")
        self.assertEqual(page.evaluate("document.querySelectorAll('#log img').length"), 0)

    def test_every_control_has_a_name_and_enough_contrast(self):
        for dark in (False, True):
            page = self.open(dark=dark)
            page.evaluate("show('user', 'a'); note(show('assistant', 'b'), 'c'); 0")
            nameless = page.evaluate(
                "[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).map(e => e.id)"
            )
            self.assertEqual(nameless, [])
            ratios = page.evaluate(CONTRAST)
            self.assertTrue(ratios)
            self.assertEqual([pair for pair in ratios if pair[1] < 4.5], [])
            self.browser.close()
        self.browser = None

    def test_nothing_foreign_runs(self):
        page = self.open()
        page.evaluate("{ const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); } 0")
        self.assertIsNone(page.evaluate("window.ran"))
        refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        self.assertEqual(refused, "refused")
        said = " ".join(json.dumps(entry) for entry in page.complaints())
        self.assertIn("Content Security Policy", said)

    def test_with_a_key_as_a_password(self):
        self.server.stop()
        self.server = Server()
        page = self.open(password=KEY)
        page.evaluate("document.getElementById('max_tokens').value = 5")
        page.evaluate("document.getElementById('question').value = 'Hi'; document.getElementById('send').click()")
        page.wait("document.querySelector('article.assistant .note')")


# The contrast of every text with what is behind it, by WCAG's formula.
CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    const p = parse(c); if (p.length < 4 || p[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
  const texts = [...document.body.querySelectorAll('*')].filter(e => !['SCRIPT', 'STYLE'].includes(e.tagName) &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.disabled);
  return texts.map(e => { const a = light(getComputedStyle(e).color), b = light(behind(e));
    return [e.id || e.className || e.tagName, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]; });
})()"""


if __name__ == "__main__":
    unittest.main()
