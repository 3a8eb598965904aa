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
