"""The page at `/`, in Chromium: it is skipped where there is none."""

import json
import os
import unittest
import urllib.request

from browser import DESKTOP, PATH, PHONE, Browser
from playwright.sync_api import expect
from support import QUESTION, Server

SHOTS = os.environ.get("SCREENSHOTS")
DONE, ANSWER = "#send", "article.assistant .markdown"


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Page(unittest.TestCase):
    """Tests on the page of a server with the built-in model."""

    key = None

    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()
        cls.server = cls.server_of()

    @classmethod
    def server_of(cls):
        return Server(key=cls.key)

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        assert cls.server.stop() == 0

    def open(self, **options):
        page = self.browser.open(self.server.url, **options)
        self.addCleanup(page.context.close)
        page.locator(".model .name").first.wait_for()
        return page

    def set(self, page, **fields):
        page.keyboard.press("Control+,")
        for name, value in fields.items():
            page.fill(f"#{name}", str(value))
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")

    def ask(self, page, text):
        page.fill("#question", text)
        # Enter begins a new line on a phone.
        desktop = (page.viewport_size["width"], page.viewport_size["height"]) == DESKTOP
        self.answered(page, lambda: page.press("#question", "Enter") if desktop else page.click("#send"))

    def answered(self, page, work):
        """Does what asks for an answer, until that is there."""
        with page.expect_request("**/v1/chat/completions"):
            work()
        page.wait_for_selector(DONE)

    def sees(self, page, selector, texts):
        """What is drawn comes to be this."""
        expect(page.locator(selector)).to_have_text(texts, use_inner_text=True)

    def visit_again(self, page):
        """Reloads the page once what it has changed is stored: transactions of a store come one after the other."""
        page.evaluate(
            """() => new Promise((resolve, reject) => {
                const opened = indexedDB.open("backstop");
                opened.onerror = () => reject(opened.error);
                opened.onupgradeneeded = () => opened.transaction.abort();
                opened.onsuccess = () => {
                    const transaction = opened.result.transaction("conversations", "readwrite");
                    transaction.objectStore("conversations").count();
                    transaction.onerror = () => reject(transaction.error);
                    transaction.oncomplete = () => { opened.result.close(); resolve(); };
                };
            })"""
        )
        page.reload()

    def answers(self, page):
        return page.locator(ANSWER).all_inner_texts()

    def post(self, **fields):
        body = {"messages": QUESTION, "temperature": 0, "max_tokens": 30, **fields}
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        return json.load(urllib.request.urlopen(request))["choices"][0]


class Conversations(Page):
    def test_by_the_keyboard_alone(self):
        wanted = self.post()["message"]["content"].split()
        for dark in (False, True):
            page = self.open(dark=dark)
            self.assertEqual(page.evaluate("document.activeElement.id"), "question")
            self.set(page, temperature=0, max_tokens=30)
            page.keyboard.type("Once upon")
            page.keyboard.press("Shift+Enter")
            self.assertEqual(page.input_value("#question"), "Once upon\n")
            page.fill("#question", "")
            self.ask(page, "Once upon a time")
            self.assertEqual(self.answers(page)[0].split(), wanted)
            figures = page.locator("article.assistant .figures").inner_text()
            self.assertRegex(figures, r"30 tokens\s+[\d.,]+ tok/s\s+prompt 5")
            self.assertIn("Cut at the limit of tokens.", page.locator("article.assistant").inner_text())
            self.assertEqual(page.evaluate("document.activeElement.id"), "question")
            self.assertEqual(page.locator(".context .count").inner_text(), "35 / 512")
            self.assertIn("30 tokens", page.locator("#said").inner_text())
            self.assertEqual(page.title(), "Once upon a time · backstop")
            # It is there again in the next visit.
            self.visit_again(page)
            page.locator("article.assistant .markdown").wait_for()
            self.assertEqual(self.answers(page)[0].split(), wanted)
            self.assertEqual(page.complaints, [])
            self.assertEqual([url for url in page.asked if not url.startswith((self.server.url, "data:"))], [])
            if SHOTS:
                page.screenshot(path=os.path.join(SHOTS, f"page-{'dark' if dark else 'light'}.png"))

    def test_versions_of_messages(self):
        page = self.open()
        self.set(page, max_tokens=6)
        self.ask(page, "Once upon a time")
        first = self.answers(page)
        self.answered(page, lambda: page.click("article.assistant .do-again"))
        self.sees(page, "article.assistant .branches", "2/2")
        page.get_by_label("Previous version").click()
        self.sees(page, "article.assistant .branches", "1/2")
        self.sees(page, ANSWER, first)
        # The last message, edited by the keyboard, is a version of its own, with answers of its own.
        page.press("#question", "ArrowUp")
        self.assertEqual(page.input_value(".editor textarea"), "Once upon a time")
        page.fill(".editor textarea", "The cat")
        self.answered(page, lambda: page.keyboard.press("Enter"))
        self.sees(page, "article.user .branches", "2/2")
        self.sees(page, "article.user .text", ["The cat"])
        self.sees(page, "article.assistant .branches", [])
        page.locator("article.user").get_by_label("Previous version").click()
        self.sees(page, ANSWER, first)
        self.visit_again(page)
        page.locator("article.assistant .markdown").wait_for()
        self.sees(page, ANSWER, first)
        # The rest of an answer that was cut begins with it.
        self.answered(page, lambda: page.click("article.assistant .do-continue"))
        self.sees(page, "article.assistant .branches", "3/3")
        self.assertTrue(self.answers(page)[0].startswith(first[0]) and len(self.answers(page)[0]) > len(first[0]))
        # Deleted by two clicks.
        page.click("article.assistant .do-delete")
        page.click("article.assistant .do-delete")
        self.sees(page, "article.assistant .branches", "2/2")
        self.assertEqual(page.complaints, [])

    def slowed(self, page, speed=4000):
        """What is answered comes slowly, until what this gives is called."""
        wire = page.context.new_cdp_session(page)
        wire.send("Network.enable")
        at = lambda bytes: wire.send("Network.emulateNetworkConditions", {
            "offline": False, "latency": 0, "uploadThroughput": -1, "downloadThroughput": bytes})
        at(speed)
        return lambda: at(-1)

    def delete(self, page):
        """Deletes the last answer that is shown."""
        page.locator("article.assistant .do-delete").last.click()
        page.locator("article.assistant .do-delete").last.click()

    def test_two_tabs(self):
        # A tab that hears nothing, and one in which something is deleted.
        one = self.open()
        self.set(one, max_tokens=6)
        deaf = one.context.new_page()
        deaf.add_init_script("delete self.BroadcastChannel")
        tabs = lambda: (self.visit_again(one), self.visit_again(deaf))

        def begin(text):
            """A question with two answers, the second of which is shown in both tabs."""
            one.keyboard.press("Control+Shift+O")
            one.wait_for_selector(".welcome")
            self.ask(one, text)
            self.answered(one, lambda: one.click("article.assistant .do-again"))
            self.sees(one, "article.assistant .branches", "2/2")
            self.visit_again(one)
            deaf.goto(one.url)
            deaf.reload()
            self.sees(deaf, "article.assistant .branches", "2/2")
            return self.answers(deaf)[0]

        # What was deleted does not come back by a tab that still has it, and goes on in another branch.
        begin("Once upon a time")
        self.delete(one)
        self.sees(one, "article.assistant .branches", [])
        first = self.answers(one)[0]
        deaf.get_by_label("Previous version").click()
        self.sees(deaf, ANSWER, [first])
        self.ask(deaf, "The cat")
        wanted = self.answers(deaf)
        self.sees(deaf, ".branches", [])
        tabs()
        for tab in (one, deaf):
            self.sees(tab, "article.user .text", ["Once upon a time", "The cat"])
            self.sees(tab, ANSWER, wanted)
            self.sees(tab, ".branches", [])

        # Nor while that tab is being answered.
        begin("A dog ran")
        deaf.get_by_label("Previous version").click()
        usual = self.slowed(deaf, 100)
        with deaf.expect_request("**/v1/chat/completions"):
            deaf.fill("#question", "The sun")
            deaf.press("#question", "Enter")
        self.sees(one, "article.assistant .branches", "2/2")
        self.delete(one)
        self.assertEqual(deaf.locator(DONE).count(), 0)
        usual()
        deaf.wait_for_selector(DONE)
        wanted = self.answers(deaf)
        tabs()
        for tab in (one, deaf):
            self.sees(tab, "article.user .text", ["A dog ran", "The sun"])
            self.sees(tab, ANSWER, wanted)
            self.sees(tab, ".branches", [])

        # What was said below it in the meantime keeps it, whatever the other tab does next.
        second = begin("My name is")
        self.delete(one)
        self.ask(deaf, "Goodbye")
        wanted = self.answers(deaf)
        self.assertEqual(wanted[0], second)
        self.ask(one, "Hello")
        self.sees(one, "article.user .text", ["My name is", "Hello"])
        tabs()
        self.sees(one, "article.user .text", ["My name is", "Hello"])
        one.get_by_label("Next version").first.click()
        self.sees(one, "article.user .text", ["My name is", "Goodbye"])
        self.sees(one, ANSWER, wanted)
        self.assertEqual(one.complaints, [])

    def test_what_is_stopped_stays(self):
        page = self.open()
        usual = self.slowed(page)
        page.fill("#question", "Once upon a time")
        page.press("#question", "Enter")
        page.wait_for_selector("article.assistant .markdown")
        self.assertEqual(page.get_attribute(".thread", "aria-busy"), "true")
        page.keyboard.press("Escape")
        page.wait_for_selector(DONE)
        usual()
        self.assertIn("Stopped.", page.locator("article.assistant").inner_text())
        self.assertEqual(page.get_attribute(".thread", "aria-busy"), "false")
        text = self.answers(page)
        self.visit_again(page)
        page.locator("article.assistant .markdown").wait_for()
        self.sees(page, ANSWER, text)

    def test_the_list(self):
        page = self.open()
        self.set(page, max_tokens=2)
        for text in ("A cat sat", "A dog ran", "The sun rose"):
            self.ask(page, text)
            page.keyboard.press("Control+Shift+O")
            page.wait_for_selector(".welcome")
        self.sees(page, ".entry .title", ["The sun rose", "A dog ran", "A cat sat"])
        page.keyboard.press("Control+k")
        page.wait_for_selector("#search:focus")
        page.keyboard.type("DOG")
        self.sees(page, ".entry .title", ["A dog ran"])
        page.keyboard.press("ArrowDown")
        page.keyboard.press("F2")
        page.keyboard.type("About a dog")
        page.keyboard.press("Enter")
        page.fill("#search", "")
        # A change of the title moves nothing.
        self.sees(page, ".entry .title", ["The sun rose", "About a dog", "A cat sat"])
        entry = page.locator(".entry", has_text="The sun rose")
        entry.hover()
        entry.get_by_label("More of The sun rose").click()
        page.get_by_role("menuitem", name="Delete…").click()
        page.get_by_role("menuitem", name="Delete for good").click()
        self.sees(page, ".entry .title", ["About a dog", "A cat sat"])
        self.visit_again(page)
        page.locator(".entry .title").first.wait_for()
        self.sees(page, ".entry .title", ["About a dog", "A cat sat"])
        self.assertEqual(page.complaints, [])

    def test_files_of_conversations(self):
        page = self.open()
        self.set(page, max_tokens=4)
        self.ask(page, "A cat sat")
        said = self.answers(page)
        page.keyboard.press("Control+,")
        with page.expect_download() as download:
            page.get_by_role("button", name="Export all").click()
        text = download.value.path().read_text()
        held = json.loads(text)
        self.assertEqual((held["format"], [one["title"] for one in held["conversations"]]), ("backstop-conversations", ["A cat sat"]))
        page.get_by_role("button", name="Delete all…").click()
        page.get_by_role("button", name="Delete all 1 for good?").click()
        file = lambda name, text: page.set_input_files("#import", {"name": name, "mimeType": "application/json", "buffer": text.encode()})
        file("mine.json", text)
        page.get_by_text("1 conversation imported.").wait_for()
        # Again, it comes in beside itself.
        file("mine.json", text)
        page.locator(".entry").nth(1).wait_for()
        theirs = {"conv": {"id": "x", "name": "Of llama.cpp", "lastModified": 5, "currNode": "3"}, "messages": [
            {"id": "1", "type": "root", "role": "system", "content": "", "parent": None},
            {"id": "2", "type": "text", "role": "user", "content": "Hello", "parent": "1", "timestamp": 1},
            {"id": "3", "type": "text", "role": "assistant", "content": "Hi there", "parent": "2", "timestamp": 2},
            {"id": "4", "type": "text", "role": "assistant", "content": "Hi again", "parent": "2", "timestamp": 3},
        ]}
        file("llama.json", json.dumps([theirs]))
        page.locator(".entry").nth(2).wait_for()
        for wrong in ("no JSON", "[]", '{"format": "backstop-conversations", "version": 1, "conversations": [{"turns": 5}, null]}', "null"):
            file("wrong.json", wrong)
            page.get_by_text("Not imported: wrong.json").wait_for()
        page.keyboard.press("Escape")
        page.locator(".entry a", has_text="A cat sat").first.click()
        page.locator("article.assistant .markdown").wait_for()
        self.sees(page, ANSWER, said)
        page.locator(".entry a", has_text="Of llama.cpp").click()
        page.get_by_text("Hi there").wait_for()
        self.sees(page, "article.assistant .branches", "1/2")
        entry = page.locator(".entry", has_text="Of llama.cpp")
        entry.get_by_label("More of").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name="Export as Markdown").click()
        self.assertEqual(download.value.path().read_text(), "# Of llama.cpp\n\n## You\n\nHello\n\n## Assistant\n\nHi there\n")
        self.assertEqual(page.complaints, [])

    def test_files_in_messages(self):
        page = self.open()
        self.set(page, max_tokens=2)
        attach = lambda name, data: page.set_input_files("input[type=file][aria-label=Files]", {"name": name, "mimeType": "text/plain", "buffer": data})
        attach("picture.png", b"\x89PNG\r\n\x1a\n\0\0")
        self.assertIn("picture.png is no text", page.locator(".composer [role=alert]").inner_text())
        attach("notes.md", "a ```` b\n````\nc".encode())
        page.get_by_text("notes.md").wait_for()
        # Another by dropping it.
        page.evaluate("""() => {
          const data = new DataTransfer();
          data.items.add(new File(["dropped"], "drop.txt"));
          for (const type of ["dragover", "drop"]) dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""")
        page.get_by_text("drop.txt").wait_for()
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "What is this?")
        content = sent.value.post_data_json["messages"][-1]["content"]
        self.assertEqual(content, "notes.md:\n`````\na ```` b\n````\nc\n`````\n\ndrop.txt:\n```\ndropped\n```\n\nWhat is this?")
        self.assertEqual(page.locator("article.user .files summary").count(), 2)

    def test_what_is_set_is_sent(self):
        page = self.open()
        self.set(page, temperature=0.5, top_k=20, top_p=0.9, min_p=0.05, repeat_penalty=1.1, max_tokens=3, seed=7)
        page.keyboard.press("Control+,")
        page.fill("#presence_penalty", "17")
        self.assertEqual(page.get_attribute("#presence_penalty", "aria-invalid"), "true")
        page.fill("#system", "You are terse.")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Hi")
        body = sent.value.post_data_json
        self.assertEqual(body, {
            "model": "stories", "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 5,
            "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Hi"}],
            "temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "max_tokens": 3, "seed": 7,
        })

    def test_more_fields_are_sent(self):
        page = self.open()
        page.keyboard.press("Control+,")
        summary = page.locator("dialog summary", has_text="More fields of requests")
        summary.click()
        page.fill("#fields", '{"stop": ["qqq"], "min_tokens": 2, "n": 2, "model": "none", "max_tokens": 50, "messages": []')
        self.assertEqual(page.get_attribute("#fields", "aria-invalid"), "true")
        self.assertIn("left out", summary.inner_text())
        page.locator("#fields").press_sequentially("}")
        self.assertEqual(page.get_attribute("#fields", "aria-invalid"), "false")
        self.assertIn("set", summary.inner_text())
        # A field of its own is the last word.
        page.fill("#max_tokens", "3")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Hi")
        self.assertEqual(sent.value.post_data_json, {
            "model": "stories", "stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 5,
            "messages": [{"role": "user", "content": "Hi"}], "stop": ["qqq"], "min_tokens": 2, "max_tokens": 3,
        })
        self.assertEqual(page.locator("article.assistant .alert").count(), 0)
        page.keyboard.press("Control+,")
        page.get_by_role("button", name="Reset to the model's").click()
        self.assertEqual((page.input_value("#fields"), page.input_value("#max_tokens")), ("", ""))
        # What is no object is left out.
        summary.click()
        page.fill("#fields", "[1]")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        self.set(page, max_tokens=3)
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Hi")
        self.assertNotIn("stop", sent.value.post_data_json)
        self.assertEqual(page.complaints, [])

    def test_tokens_and_their_alternatives(self):
        page = self.open()
        self.set(page, temperature=0, max_tokens=12)
        wanted = self.post(max_tokens=12, logprobs=True, top_logprobs=5)["logprobs"]["content"]
        self.ask(page, "Once upon a time")
        page.click("article.assistant .do-tokens")
        page.wait_for_selector(".token")
        self.assertEqual(page.locator(".token").all_text_contents(), [one["token"] for one in wanted])
        page.focus("[data-at='0']")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        # The pointer passes by, and closes nothing.
        page.locator(".tokens .note").hover()
        page.mouse.move(1, 1)
        shown = [text.replace("·", " ") for text in page.locator(".others code").all_text_contents()]
        self.assertEqual(shown, [one["token"] for one in wanted[3]["top_logprobs"]])
        # Another token, and the answer goes on from it.
        other = page.locator(".others button:enabled").first
        token = other.locator("code").inner_text().replace("·", " ")
        self.answered(page, lambda: other.click())
        begun = "".join(one["token"] for one in wanted[:3]) + token
        self.assertTrue(self.answers(page)[0].startswith(begun.strip()), (begun, self.answers(page)))
        self.sees(page, "article.assistant .branches", "2/2")
        self.assertEqual(page.complaints, [])


class Looks(Page):
    def test_every_control_has_a_name_and_enough_contrast(self):
        for dark in (False, True):
            for size in ({}, {"size": PHONE}):
                page = self.open(dark=dark, **size)
                self.set(page, max_tokens=3)
                self.ask(page, "Hi")
                for view in (None, "Control+,", "Control+/"):
                    if view:
                        page.keyboard.press("Escape")
                        page.keyboard.press(view)
                        page.locator("dialog[open] h2").wait_for()
                    self.assertEqual(page.evaluate(NAMELESS), [])
                    ratios = page.evaluate(CONTRAST)
                    self.assertGreater(len(ratios), 5)
                    self.assertEqual([pair for pair in ratios if pair[1] < 4.5], [])
                    wide = page.evaluate("[document.documentElement.scrollWidth, document.querySelector('.thread').scrollWidth]")
                    self.assertLessEqual(max(wide), page.viewport_size["width"])

    def test_the_theme_follows_the_system_unless_it_is_chosen(self):
        page = self.open(dark=True)
        ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = ground()
        page.emulate_media(color_scheme="light")
        light = ground()
        self.assertNotEqual(dark, light)
        page.keyboard.press("Control+,")
        page.select_option("#theme", "dark")
        self.assertEqual(ground(), dark)
        page.reload()
        self.assertEqual(ground(), dark)

    def test_nothing_foreign_runs(self):
        page = self.open()
        page.evaluate("{ const s = document.createElement('script'); try { s.textContent = 'window.ran = 1' } catch {} document.body.append(s); } 0")
        self.assertIsNone(page.evaluate("window.ran"))
        markup = "(() => { try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); return 'taken' } catch (e) { return e.name } })()"
        self.assertEqual(page.evaluate(markup), "TypeError")
        refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        self.assertEqual(refused, "refused")
        self.assertIn("Content Security Policy", " ".join(page.complaints))


# Controls without a name.
NAMELESS = """[...document.querySelectorAll('button, input, textarea, select, a, [role=button]')].filter(e => e.checkVisibility() &&
  !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)"""
# The contrast of every text with what is behind it, by WCAG's formula; what is not seen or off has none.
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const parse = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 250) return c; } return [255, 255, 255]; };
  const texts = [...document.body.querySelectorAll('*')].filter(e => !['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(e.tagName) &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && !e.closest(':disabled, .hidden') &&
    e.checkVisibility({ visibilityProperty: true }));
  return texts.map(e => { const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
    return [e.className + ' ' + e.tagName + ' ' + e.textContent.slice(0, 20), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]; });
})()"""


if __name__ == "__main__":
    unittest.main()
