"""What is written while an answer is: it is sent when that has ended, or is in the box again."""

import os
import unittest

from browser import NARROW, PATH, PHONE
from playwright.sync_api import expect
from test_page import ANSWER, DONE, SHOTS, Page as OnPage
from test_page_tabs import CHAT, Halting

ASKED, WAITING = "article.user .text", ".queue .name"
WHOLE = "Half of an answer, and the rest."


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Queue(OnPage):
    def writing(self, **options):
        """A page on which half of an answer is there, and what has it go on."""
        page = self.open(**options)
        halting = Halting("Half of an answer", ", and the rest.")
        self.addCleanup(halting.stop)
        page.sent = []

        def goes(route):
            page.sent.append([one["content"] for one in route.request.post_data_json["messages"]])
            route.continue_(url=halting.url)

        page.route(CHAT, goes)
        page.fill("#question", "One")
        page.click("#send")
        self.sees(page, ANSWER, ["Half of an answer"])
        return page, halting

    def ahead(self, page, *texts):
        for text in texts:
            page.fill("#question", text)
            page.press("#question", "Enter")
        self.assertEqual(page.input_value("#question"), "")

    def test_one_after_the_other(self):
        page, halting = self.writing()
        self.ahead(page, "Two", "Not this", "Three")
        self.sees(page, WAITING, ["Two", "Not this", "Three"])
        expect(page.get_by_role("region", name="Sent when the answer ends")).to_have_count(1)
        expect(page.locator("#said")).to_have_text("It is sent when the answer ends.")
        self.sees(page, ASKED, ["One"])
        # One of them is taken back to the box, which has the focus.
        page.locator(".queue li", has_text="Not this").get_by_role("button").click()
        self.sees(page, WAITING, ["Two", "Three"])
        self.assertEqual(page.input_value("#question"), "Not this")
        self.assertEqual(page.evaluate("document.activeElement.id"), "question")
        halting.on.set()
        self.sees(page, ASKED, ["One", "Two", "Three"])
        self.sees(page, ANSWER, [WHOLE] * 3)
        page.wait_for_selector(DONE)
        self.sees(page, WAITING, [])
        self.assertEqual(page.input_value("#question"), "Not this")
        self.assertEqual(page.sent, [["One"], ["One", WHOLE, "Two"], ["One", WHOLE, "Two", WHOLE, "Three"]])
        self.assertEqual(page.complaints, [])

    def test_after_a_stop_or_an_error_they_are_in_the_box(self):
        for ends in ("stop", "error"):
            page, halting = self.writing()
            page.set_input_files("input[type=file][aria-label=Files]", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"})
            page.locator(".box .files").wait_for()
            self.ahead(page, "Two", "Three")
            expect(page.locator(".box .files")).to_have_count(0)
            expect(page.locator(".queue li").first).to_contain_text("1 file")
            page.fill("#question", "Four")
            if ends == "stop":
                page.keyboard.press("Escape")
            else:
                halting.breaks = True
                halting.on.set()
            page.wait_for_selector(DONE)
            self.sees(page, WAITING, [])
            expect(page.locator("#question")).to_have_value("Two\n\nThree\n\nFour")
            expect(page.locator(".box .files .name")).to_have_text("notes.txt")
            expect(page.locator("#said")).to_contain_text("What was to be sent is in the box again.")
            self.sees(page, ASKED, ["One"])
            self.assertEqual(page.sent, [["One"]])

    def test_another_conversation_is_open_meanwhile(self):
        page, halting = self.writing()
        self.ahead(page, "Two")
        page.keyboard.press("Control+Shift+O")
        page.locator(".welcome").wait_for()
        self.sees(page, WAITING, [])
        halting.on.set()
        expect(page.locator(".entry .busy")).to_have_count(0)
        page.locator(".welcome").wait_for()
        page.locator(".entry a").click()
        self.sees(page, ASKED, ["One", "Two"])
        self.sees(page, ANSWER, [WHOLE] * 2)
        # What comes back waits for its conversation, too.
        halting.on.clear()
        halting.breaks = True
        self.ahead(page, "Three")
        self.sees(page, ASKED, ["One", "Two", "Three"])
        self.ahead(page, "Four")
        page.keyboard.press("Control+Shift+O")
        page.locator(".welcome").wait_for()
        halting.on.set()
        expect(page.locator(".entry .busy")).to_have_count(0)
        self.assertEqual(page.input_value("#question"), "")
        page.locator(".entry a").click()
        expect(page.locator("#question")).to_have_value("Four")
        self.sees(page, ASKED, ["One", "Two", "Three"])

    def test_by_its_button(self):
        for size in ({}, {"size": PHONE}, {"size": NARROW, "dark": True}):
            page, halting = self.writing(**size)
            expect(page.locator("#later")).to_have_count(0)
            for text in ("Two", "Three, which is so long that its end is not to be seen in the one line that there is for it on any screen."):
                page.fill("#question", text)
                page.click("#later")
            expect(page.locator(WAITING)).to_have_count(2)
            page.fill("#question", "Four")
            inside = page.viewport_size["width"]
            for at in ("#later", "#stop", ".queue .quiet"):
                box = page.locator(at).first.bounding_box()
                self.assertLessEqual(box["x"] + box["width"], inside)
            if SHOTS:
                page.screenshot(path=os.path.join(SHOTS, f"queue-{inside}.png"))
            page.fill("#question", "")
            halting.on.set()
            expect(page.locator("article.assistant")).to_have_count(3)
            page.wait_for_selector(DONE)
            page.context.close()


if __name__ == "__main__":
    unittest.main()
