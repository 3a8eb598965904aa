"""The page by its keys alone, by a mouse that points, and on a phone."""

import json
import unittest
import urllib.request

from browser import PATH, PHONE
from playwright.sync_api import expect
from test_page import Page

FOCUSED = "document.activeElement?.getAttribute('aria-label') || document.activeElement?.id || document.activeElement?.innerText"


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Keys(Page):
    def to(self, page, selector, key="Tab"):
        """Goes to a control as somebody without a mouse does."""
        for _ in range(120):
            if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
                return
            page.keyboard.press(key)
        self.fail(f"{selector} is not reached by {key}")

    def focused(self, page, what):
        page.wait_for_function(f"what => ({FOCUSED}).trim() === what", arg=what)

    def test_everything(self):
        page = self.open()
        press, type_ = page.keyboard.press, page.keyboard.type
        self.focused(page, "question")
        press("Control+,")
        page.wait_for_selector("dialog[open]")
        for name, value in (("temperature", "0"), ("max_tokens", "12")):
            self.to(page, f"#{name}")
            type_(value)
        press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        # The first stop of all leads to the message.
        page.evaluate("document.activeElement.blur()")
        self.to(page, ".skip")
        press("Enter")
        self.focused(page, "question")
        type_("Once upon a time")
        self.answered(page, lambda: press("Enter"))
        wanted = self.post(max_tokens=12, logprobs=True, top_logprobs=5)["logprobs"]["content"]

        # Another token in the place of one.
        self.to(page, "article.assistant .do-tokens", "Shift+Tab")
        press("Enter")
        page.wait_for_selector(".token")
        self.to(page, ".token", "Shift+Tab")
        for _ in range(3):
            press("ArrowRight")
        self.assertEqual(page.evaluate("document.activeElement.dataset.at"), "3")
        self.to(page, ".others button")
        token = page.evaluate("document.activeElement.querySelector('code').textContent").replace("·", " ")
        self.answered(page, lambda: press("Enter"))
        self.sees(page, "article.assistant .branches", "2/2")
        begun = "".join(one["token"] for one in wanted[:3]) + token
        self.assertTrue(self.answers(page)[0].startswith(begun.strip()), (begun, self.answers(page)))

        # The rest of it, a copy, and the end of it.
        self.to(page, "article.assistant .do-continue")
        self.answered(page, lambda: press("Enter"))
        self.sees(page, "article.assistant .branches", "3/3")
        self.to(page, "article.assistant [aria-label='Copy answer']")
        press("Enter")
        page.wait_for_function("navigator.clipboard.readText().then((text) => text.length > 0)")
        copied = page.evaluate("navigator.clipboard.readText()")
        self.assertEqual(copied.split(), self.answers(page)[0].split())
        self.to(page, "article.assistant .do-delete")
        press("Enter")
        self.focused(page, "Delete with all that follows?")
        press("Enter")
        self.sees(page, "article.assistant .branches", "2/2")

        # What opens takes the focus, and gives it back.
        self.to(page, "button.model")
        press("Enter")
        expect(page.get_by_role("menuitemradio", checked=True)).to_be_focused()
        press("Escape")
        expect(page.locator("button.model")).to_be_focused()
        self.assertEqual(page.locator("[role=menu]").count(), 0)
        more = "More of Once upon a time"
        self.to(page, f"[aria-label='{more}']", "Shift+Tab")
        press("Enter")
        self.focused(page, "Rename")
        press("Escape")
        self.focused(page, more)
        press("Enter")
        self.focused(page, "Rename")
        press("End")
        self.focused(page, "Delete…")
        press("Enter")
        self.focused(page, "Delete for good")
        press("Enter")
        page.wait_for_selector(".welcome")
        self.assertEqual(page.locator(".entry").count(), 0)
        self.assertEqual(page.complaints, [])

    def test_who_listens(self):
        page = self.open()
        self.set(page, max_tokens=3)
        self.ask(page, "Hi")
        expect(page.get_by_role("log", name="Conversation")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#said")).to_have_attribute("aria-live", "polite")
        self.assertRegex(page.locator("#said").inner_text(), r"^Answered, 3 tokens\. ")
        names = [of.get_attribute("aria-label") for of in page.get_by_role("article").all()]
        self.assertEqual(names, ["You", "stories"])
        page.keyboard.press("Escape")
        self.to(page, "button.model")
        page.keyboard.press("Enter")
        expect(page.get_by_role("menu", name="Models")).to_be_visible()
        self.assertEqual(page.get_by_role("menuitemradio").count(), 1)


class Pointer(Page):
    def test_alternatives_show_where_the_mouse_points(self):
        page = self.open()
        self.set(page, temperature=0, max_tokens=8)
        wanted = self.post(max_tokens=8, logprobs=True, top_logprobs=5)["logprobs"]["content"]
        self.ask(page, "Once upon a time")
        page.click("article.assistant .do-tokens")
        page.hover("[data-at='3']")
        shown = [text.replace("·", " ") for text in page.locator(".others code").all_text_contents()]
        self.assertEqual(shown, [one["token"] for one in wanted[3]["top_logprobs"]])
        page.hover("#question")
        expect(page.locator(".others")).to_have_count(0)

    def test_what_was_cached_is_told(self):
        page = self.open()
        self.set(page, temperature=0, max_tokens=4)
        text = " ".join(["Once upon a time there was a cat."] * 12)
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, text)
        body = {**sent.value.post_data_json, "stream": False}
        del body["stream_options"]
        request = urllib.request.Request(
            f"{self.server.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        prompt = json.load(urllib.request.urlopen(request))["usage"]["prompt_tokens"]
        self.assertGreater(prompt, 64)
        figures = page.locator("article.assistant .figures")
        self.assertRegex(figures.inner_text(), rf"prompt {prompt}\n")
        # Whole pages of it, of all but its last token.
        self.answered(page, lambda: page.click("article.assistant .do-again"))
        self.sees(page, "article.assistant .branches", "2/2")
        self.assertIn(f"prompt {prompt}, {(prompt - 1) // 64 * 64} cached", figures.inner_text())

    def test_a_conversation_has_a_system_prompt_of_its_own(self):
        page = self.open()
        self.set(page, max_tokens=2)
        self.ask(page, "Hi")
        page.click("details.system summary")
        page.fill("details.system textarea", "You are terse.")
        page.press("details.system textarea", "Tab")
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Who are you?")
        messages = sent.value.post_data_json["messages"]
        self.assertEqual(messages[0], {"role": "system", "content": "You are terse."})
        self.assertEqual([one["role"] for one in messages], ["system", "user", "assistant", "user"])

    def test_a_conversation_is_pinned(self):
        page = self.open()
        self.set(page, max_tokens=2)
        for question in ("A cat sat", "A dog ran", "The sun rose"):
            page.keyboard.press("Control+Shift+O")
            page.wait_for_selector(".welcome")
            self.ask(page, question)
        self.sees(page, ".entry .title", ["The sun rose", "A dog ran", "A cat sat"])
        page.get_by_label("More of A cat sat").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=menuitem]:focus")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        self.sees(page, ".entry .title", ["A cat sat", "The sun rose", "A dog ran"])
        self.sees(page, ".conversations h2", ["Pinned", "Today"])
        self.assertEqual(page.evaluate("document.activeElement.getAttribute('aria-label')"), "More of A cat sat")
        # What is said elsewhere comes below it.
        self.ask(page, "And then?")
        self.sees(page, ".entry .title", ["A cat sat", "The sun rose", "A dog ran"])
        self.visit_again(page)
        self.sees(page, ".entry .title", ["A cat sat", "The sun rose", "A dog ran"])
        page.locator(".entry").first.hover()
        page.get_by_label("More of A cat sat").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name="Export as JSON").click()
        held = json.loads(download.value.path().read_text())
        page.keyboard.press("Control+,")
        page.set_input_files("#import", download.value.path())
        page.get_by_text("1 conversation imported.").wait_for()
        page.keyboard.press("Escape")
        self.assertIs(held["conversations"][0]["pinned"], True)
        self.sees(page, ".entry .title", ["A cat sat", "A cat sat", "The sun rose", "A dog ran"])
        page.locator(".entry").last.hover()
        page.locator(".entry .menu > button").first.focus()
        page.keyboard.press("Enter")
        page.get_by_role("menuitem", name="Unpin").click()
        self.sees(page, ".entry .title", ["A cat sat", "The sun rose", "A dog ran", "A cat sat"])
        self.assertEqual(page.complaints, [])

    def test_other_names_of_a_model_are_no_models(self):
        page = self.open()
        self.set(page, max_tokens=2)
        self.ask(page, "Hi")
        figures = page.locator("article.assistant .figures")
        self.assertNotIn("stories", figures.inner_text())
        listed = []
        page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": listed}))
        one = lambda id, root: {"id": id, "root": root, "state": "loaded", "context_length": 512}
        def reload(*models):
            listed[:] = models
            self.visit_again(page)
            page.locator(".model .name").first.wait_for()
            page.click("button.model")
            return page.locator(".models .popup .row")
        both = (one("first", "first"), one("local", "first"))
        rows = reload(*both)
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("also local")
        self.assertEqual(rows.locator(".pick .name").inner_text(), "first")
        # Another model has answered before.
        self.assertIn("stories", figures.inner_text())
        rows = reload(*both, one("second", "second"))
        expect(rows).to_have_count(2)
        rows.last.locator(".pick").click()
        expect(page.locator("button.model .name")).to_have_text("second")
        # One that was chosen by another name stays chosen, as does one whose own name is not listed.
        rows = reload(one("first", "first"), one("third", "third"), one("second", "third"))
        expect(page.locator("button.model .name")).to_have_text("third")
        expect(rows).to_have_count(2)
        rows = reload(one("first", "first"), one("second", "unlisted"))
        expect(page.locator("button.model .name")).to_have_text("second")
        expect(rows).to_have_count(2)

    def test_long_text_that_is_pasted_is_a_file(self):
        page = self.open()
        self.set(page, max_tokens=2)
        # What the page does not take a field takes as it always does.
        taken = lambda text, picture=False: page.evaluate("""([text, picture]) => {
          const clipboardData = new DataTransfer();
          clipboardData.setData("text/plain", text);
          if (picture) clipboardData.items.add(new File(["\\x89PNG"], "image.png", { type: "image/png" }));
          const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
          return !document.getElementById("question").dispatchEvent(event);
        }""", [text, picture])
        summaries = ".composer .files summary"
        self.assertFalse(taken("x" * 4000))
        # As office programs copy it.
        self.assertFalse(taken("x" * 4000, picture=True))
        self.assertEqual(page.locator(".composer [role=alert]").count(), 0)
        self.assertTrue(taken("a\r\n" * 2000))
        self.assertTrue(taken("y" * 4001))
        self.sees(page, summaries, ["pasted.txt 4,000 characters", "pasted-2.txt 4,001 characters"])
        self.assertIn("pasted-2.txt", page.locator("#said").inner_text())
        page.get_by_label("Remove pasted-2.txt").click()
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "What is this?")
        lines = "a\n" * 2000
        self.assertEqual(sent.value.post_data_json["messages"][-1]["content"], f"pasted.txt:\n```\n{lines}```\n\nWhat is this?")
        # Unless somebody wants it otherwise.
        page.keyboard.press("Control+,")
        page.get_by_label("Long text that is pasted").uncheck()
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        self.assertFalse(taken("y" * 4001))
        self.sees(page, summaries, [])

    def test_a_file_is_pasted(self):
        page = self.open()
        page.evaluate("""() => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File(["pasted"], "paste.txt"));
          document.getElementById("question").dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""")
        self.sees(page, ".composer .files summary", ["paste.txt 6 characters"])

    def test_the_list_of_a_phone_is_a_drawer(self):
        page = self.open(size=PHONE)
        self.set(page, max_tokens=2)
        self.ask(page, "A cat sat")
        page.get_by_role("banner").get_by_label("New conversation").click()
        page.wait_for_selector(".welcome")
        expect(page.locator(".entry a")).to_be_hidden()
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator(".entry a")).to_be_visible()
        page.locator(".entry a").click()
        self.sees(page, "article.user .text", ["A cat sat"])
        expect(page.locator(".entry a")).to_be_hidden()
        # A touch beside it closes it, too.
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator(".entry a")).to_be_visible()
        page.locator(".veil").click(position={"x": 380, "y": 400})
        expect(page.locator(".entry a")).to_be_hidden()
        self.assertEqual(page.complaints, [])


if __name__ == "__main__":
    unittest.main()
