"""What the page makes of answers and errors: whatever a model writes is text, and whatever fails is said in words."""

import json
import unittest

from browser import PATH
from support import KEY, rule, scripted
from test_page import DONE, Page as OnPage

HOSTILE = r"""<script>window.ran = 1</script> <img src=x onerror="window.ran = 2"> <svg onload="window.ran = 3"><a xlink:href="javascript:window.ran=4">x</a></svg>

<iframe srcdoc="<script>parent.ran = 5</script>"></iframe>

<math><mtext><table><mglyph><style><img src onerror=window.ran=6></style></mglyph></table></mtext></math>

<style>body { display: none }</style><base href="http://127.0.0.1:9/"><meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/">

[a](javascript:window.ran=7) [b](JaVaScRiPt:window.ran=8) [c](data:text/html,<script>window.ran=9</script>) [d](vbscript:x) [e](java&#115;cript:window.ran=10) [f](/v1/models) [g](blob:http://127.0.0.1/x)

[good](https://example.com/a "title\" onmouseover=\"window.ran=11") <https://example.com/b> <javascript:window.ran=12>

![elsewhere](http://127.0.0.1:9/pixel.png) ![svg](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+) ![dot](data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7)

```"><script>window.ran=13</script> onclick=window.ran=14
<script>window.ran = 15</script>
```

$\href{javascript:window.ran=16}{x}$ $\htmlId{page}{y}$ $\includegraphics{http://127.0.0.1:9/p.png}$ $\unicode{x3cscript}$

| <img src=x onerror=window.ran=17> | `<b>` |
|---|---|
| <form action="http://127.0.0.1:9/"><input name=body></form> | <b onclick="window.ran=18">z</b> <b>bold</b> |
"""
RICH = r"""# Title

- [x] one
- two

| a | b |
|--:|---|
| 1 | **2** |

```rust
fn main() {}
```

```nonsense
plain
```

Inline $x^2$ and $$\frac{1}{2}$$ but $5 and $6. H<sub>2</sub>O &amp; more.
"""


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Written(OnPage):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.stop()
        rules = [
            rule(HOSTILE, contains="hostile"),
            rule(RICH, contains="rich"),
            rule([{"reasoning": "Let me <b>think</b>."}, {"text": "Done *so*."}], contains="think"),
        ]
        cls.server = scripted(rules, key=None)

    def test_hostile_markdown_is_text(self):
        page = self.open()
        self.ask(page, "hostile")
        kinds = page.evaluate("[...new Set([...document.querySelectorAll('article.assistant .markdown *')].map(e => e.localName))].sort()")
        allowed = {"p", "a", "span", "img", "figure", "figcaption", "button", "svg", "path", "pre", "code", "table", "thead", "tbody", "tr",
                   "th", "td", "div", "b", "strong", "math", "mrow", "mi", "mo", "mn", "semantics", "annotation", "mtext", "mstyle"}
        self.assertEqual(set(kinds) - allowed, set())
        self.assertEqual(page.locator("article.assistant svg *:not(path)").count(), 0)
        attributes = page.evaluate(
            "[...new Set([...document.querySelectorAll('article.assistant .markdown *')].flatMap(e => e.getAttributeNames()))]")
        self.assertEqual([name for name in attributes if name.startswith("on") or name in ("id", "srcdoc", "action", "xlink:href")], [])
        links = page.evaluate("[...document.querySelectorAll('article.assistant .markdown a')].map(a => [a.href, a.rel, a.target])")
        rest = ["noopener noreferrer nofollow", "_blank"]
        self.assertEqual(links, [
            ["https://example.com/a", *rest], ["https://example.com/b", *rest], ["http://127.0.0.1:9/pixel.png", *rest]])
        images = page.evaluate("[...document.querySelectorAll('article.assistant img')].map(e => e.src.slice(0, 15))")
        self.assertEqual(images, ["data:image/gif;"])
        shown = page.locator("article.assistant .markdown").inner_text()
        for part in ("<script>window.ran = 1</script>", "<style>body { display: none }</style>", "<iframe srcdoc="):
            self.assertIn(part, shown)
        # All that can be pointed at is.
        for dead in page.locator("article.assistant .dead").all():
            dead.click()
        page.wait_for_timeout(300)
        self.assertIsNone(page.evaluate("window.ran ?? null"))
        self.assertEqual([url for url in page.asked if not url.startswith((self.server.url, "data:image/"))], [])
        self.assertEqual(page.complaints, [])

    def test_markdown(self):
        page = self.open()
        self.ask(page, "rich")
        inside = page.locator("article.assistant .markdown")
        self.assertEqual(inside.locator("h3.h1").inner_text(), "Title")
        self.assertEqual(inside.locator("li input[type=checkbox]").count(), 1)
        self.assertEqual(inside.locator("td.to-right").inner_text(), "1")
        self.assertEqual(inside.locator("td strong").inner_text(), "2")
        self.assertEqual(inside.locator("pre .hljs-keyword").all_inner_texts(), ["fn"])
        self.assertEqual(inside.locator("figcaption > span").all_inner_texts(), ["rust", "nonsense"])
        self.assertEqual(inside.locator("math").count(), 2)
        self.assertEqual(inside.locator("math mfrac").count(), 1)
        self.assertIn("but $5 and $6. H2O & more.", inside.inner_text())
        inside.get_by_label("Copy code").first.click()
        inside.get_by_text("Copied").wait_for()
        self.assertEqual(page.evaluate("navigator.clipboard.readText()"), "fn main() {}")
        page.get_by_label("Copy answer").click()
        self.assertEqual(page.evaluate("navigator.clipboard.readText()"), RICH)
        self.assertEqual(page.complaints, [])

    def test_thoughts_are_folded(self):
        page = self.open()
        self.ask(page, "think")
        thoughts = page.locator("details.thoughts")
        self.assertFalse(thoughts.evaluate("e => e.open"))
        self.assertEqual(page.locator("article.assistant > .markdown").inner_text(), "Done so.")
        thoughts.locator("summary").click()
        self.assertEqual(thoughts.locator(".markdown").inner_text(), "Let me <b>think</b>.".replace("<b>", "").replace("</b>", ""))


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Failing(OnPage):
    def models(self, page, *models):
        """From now on the server has these."""
        body = json.dumps({"object": "list", "data": models})
        page.unroute("**/v1/models")
        page.route("**/v1/models", lambda route: route.fulfill(body=body, content_type="application/json"))
        page.evaluate("dispatchEvent(new Event('focus'))")

    def test_a_full_context(self):
        page = self.open()
        self.ask(page, "Again " * 5000)
        said = page.locator("article.assistant .alert").inner_text()
        self.assertIn("maximum context length is 512 tokens", said)
        self.assertIn("Start a new conversation", said)
        # The question is there, to be made shorter; what is asked next goes with it, since templates want turns that alternate.
        self.assertEqual(page.locator("article.user .text").inner_text().split(), ["Again"] * 5000)
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "More")
        wanted = [{"role": "user", "content": ("Again " * 5000).strip() + "\n\nMore"}]
        self.assertEqual(sent.value.post_data_json["messages"], wanted)

    def test_a_server_that_is_gone_and_comes_back(self):
        page = self.open()
        page.route("**/v1/**", lambda route: route.abort())
        self.ask(page, "Hi")
        page.locator(".banner .alert").wait_for()
        self.assertIn("Start it again with", page.locator(".banner").inner_text())
        page.unroute("**/v1/**")
        page.wait_for_selector(".banner .alert", state="detached")
        page.get_by_role("button", name="Try again").click()
        page.locator("article.assistant .markdown").wait_for()
        page.wait_for_selector(DONE)

    def test_a_connection_that_breaks(self):
        page = self.open()
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]})
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=f"data: {chunk}\n\n", content_type="text/event-stream"))
        self.ask(page, "Hi")
        self.assertEqual(self.answers(page), ["Half"])
        self.assertIn("before the answer was whole", page.locator("article.assistant .alert").inner_text())

    def test_several_models(self):
        page = self.open()
        one = {"id": "one", "state": "loaded", "context_length": 4096, "size": 3 << 30, "capabilities": ["completion"],
               "defaults": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repeat_penalty": 1}}
        two = {"id": "two", "state": "unloaded", "context_length": None, "size": 5 << 20, "capabilities": ["completion", "thinking"], "defaults": None}
        bad = {"id": "bad", "state": "failed", "context_length": None, "size": None, "reason": "weights.bin is cut short", "defaults": None}
        embedder = {"id": "vectors", "state": "unloaded", "context_length": None, "size": 1, "capabilities": ["embedding"], "defaults": None}
        self.models(page, one, two, bad, embedder)
        button = page.locator("button.model")
        button.get_by_text("one").wait_for()
        button.click()
        self.assertEqual(page.locator(".models .pick .name").all_text_contents(), ["one", "two", "bad"])
        self.assertIn("3.0 GiB", page.locator(".models .popup").inner_text())
        self.assertIn("weights.bin is cut short", page.locator(".models .popup").inner_text())
        # One is loaded, another cannot be.
        asked = []
        def load(route):
            asked.append((route.request.url.rsplit("/", 1)[1], route.request.post_data_json))
            name = route.request.post_data_json["model"]
            if name == "bad":
                error = {"error": {"message": "weights.bin is cut short"}}
                route.fulfill(status=500, body=json.dumps(error), content_type="application/json")
            else:
                self.models(page, {**one, "state": "unloaded", "defaults": None}, {**two, "state": "loaded"}, bad)
                route.fulfill(body="{}", content_type="application/json")
        page.route("**/v1/models/*load", load)
        page.get_by_label("Load two").click()
        page.get_by_label("Unload two").wait_for()
        page.get_by_label("Load bad").click()
        page.locator(".banner .alert").wait_for()
        said = page.locator(".banner").inner_text()
        self.assertIn("The model could not be loaded", said)
        self.assertIn("weights.bin is cut short", said)
        self.assertEqual(asked, [("load", {"model": "two"}), ("load", {"model": "bad"})])
        # The chosen one is asked, and is said to load while it does.
        page.locator(".models .pick", has_text="one").click()
        self.assertEqual(page.evaluate("document.querySelector('button.model .name').textContent"), "one")
        page.keyboard.press("Control+,")
        self.assertEqual(page.get_attribute("#temperature", "placeholder"), "model's")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        def slow(route):
            page.wait_for_selector("text=Loading one…")
            chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]})
            route.fulfill(body=f": loading\n\ndata: {chunk}\n\ndata: [DONE]\n\n", content_type="text/event-stream")
        page.route("**/v1/chat/completions", slow)
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Hi")
        self.assertEqual(sent.value.post_data_json["model"], "one")
        self.assertEqual(self.answers(page), ["Yes"])
        self.models(page, one, two)
        page.keyboard.press("Control+,")
        page.wait_for_selector("#temperature[placeholder='0.6']")

    def test_one_model_without_a_state_has_no_buttons(self):
        page = self.open()
        self.models(page, {"id": "alone", "context_length": 512})
        button = page.locator("button.model")
        button.get_by_text("alone").wait_for()
        button.click()
        self.assertEqual(page.locator(".models .pick").count(), 1)
        self.assertEqual(page.locator(".models .plain").count(), 0)


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Locked(OnPage):
    key = KEY

    def test_the_key_is_asked_for(self):
        page = self.browser.open(self.server.url)
        self.addCleanup(page.context.close)
        page.fill("#key", "open")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("The key is wrong.").wait_for()
        page.fill("#key", KEY)
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#key", state="detached")
        self.set(page, max_tokens=3)
        self.ask(page, "Once upon a time")
        self.assertEqual(len(self.answers(page)), 1)
        self.visit_again(page)
        page.locator(".model .name").first.wait_for()
        self.assertEqual(page.locator("#key").count(), 0)
        page.keyboard.press("Control+,")
        page.get_by_role("button", name="Forget the API key").click()
        page.keyboard.press("Escape")
        page.locator("#key").wait_for()


if __name__ == "__main__":
    unittest.main()
