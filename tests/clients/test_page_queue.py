"""What is written while an answer is: it is sent when that has ended, or is in the box again."""

import os
import unittest

from browser import NARROW, PATH, PHONE
from playwright.sync_api import expect
from test_page import ANSWER, DONE, SHOTS, Page as OnPage
from test_page_tabs import CHAT, Halting

BOX, FILES = "#question", ".box .files .name"
ASKED, WAITING = "article.user .text", ".queue .name"
AGAIN = "in the box again"
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

    def attach(self, page, name="notes.txt"):
        file = {"name": name, "mimeType": "text/plain", "buffer": b"text"}
        page.set_input_files("input[type=file][aria-label=Files]", file)
        page.locator(".box .files", has_text=name).wait_for()

    def fresh(self, page):
        page.keyboard.press("Control+Shift+O")
        page.locator(".welcome").wait_for()

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
            self.attach(page)
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
        self.fresh(page)
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
        self.attach(page)
        self.ahead(page, "Four")
        page.fill(BOX, "Five")
        self.fresh(page)
        page.fill(BOX, "Elsewhere")
        halting.on.set()
        expect(page.locator(".entry .busy")).to_have_count(0)
        # Nothing is said of a box that is not there.
        expect(page.locator("#said")).to_contain_text("No answer")
        expect(page.locator("#said")).not_to_contain_text(AGAIN)
        expect(page.locator(BOX)).to_have_value("Elsewhere")
        expect(page.locator(FILES)).to_have_count(0)
        page.locator(".entry a").click()
        expect(page.locator(BOX)).to_have_value("Four\n\nFive")
        self.sees(page, FILES, ["notes.txt"])
        self.sees(page, ASKED, ["One", "Two", "Three"])
        self.fresh(page)
        expect(page.locator(BOX)).to_have_value("Elsewhere")

    def test_a_conversation_that_is_deleted(self):
        for elsewhere in (False, True):
            page, halting = self.writing()
            self.attach(page)
            self.ahead(page, "Two")
            if elsewhere:
                self.fresh(page)
            page.evaluate("""() => {
                self.heard = [];
                const say = () => heard.push(document.querySelector("#said").textContent);
                new MutationObserver(say).observe(document.querySelector("#said"), { childList: true, characterData: true, subtree: true });
            }""")
            page.locator(".entry").hover()
            page.locator(".entry .menu > button").click()
            page.get_by_role("menuitem", name="Delete…").click()
            page.get_by_role("menuitem", name="Delete for good").click()
            page.locator(".welcome").wait_for()
            expect(page.locator(".entry")).to_have_count(0)
            expect(page.locator("#said")).to_contain_text("Stopped")
            self.assertNotIn(AGAIN, " ".join(page.evaluate("heard")))
            for _ in range(2):
                expect(page.locator(BOX)).to_have_value("")
                expect(page.locator(FILES)).to_have_count(0)
                self.assertNotIn("Two", page.evaluate("JSON.stringify({ ...sessionStorage })"))
                self.visit_again(page)
            self.assertEqual(page.sent, [["One"]])

    def test_after_a_reload_they_are_in_the_box(self):
        page, halting = self.writing()
        self.attach(page)
        self.ahead(page, "Two", "Three")
        self.attach(page, "more.txt")
        page.fill(BOX, "Four")
        for _ in range(2):
            self.visit_again(page)
            page.get_by_text("Not written to its end.").wait_for()
            expect(page.locator(BOX)).to_have_value("Two\n\nThree\n\nFour")
            self.sees(page, FILES, ["notes.txt", "more.txt"])
            self.sees(page, WAITING, [])
            self.sees(page, ASKED, ["One"])
        self.assertEqual(page.sent, [["One"]])
        self.fresh(page)
        expect(page.locator(BOX)).to_have_value("")
        page.locator(".entry a").click()
        halting.on.set()
        expect(page.locator(BOX)).to_have_value("Two\n\nThree\n\nFour")
        self.answered(page, lambda: page.click("#send"))
        self.sees(page, ASKED, ["One", "Two\n\nThree\n\nFour"])
        self.visit_again(page)
        self.sees(page, ASKED, ["One", "Two\n\nThree\n\nFour"])
        expect(page.locator(BOX)).to_have_value("")
        expect(page.locator(FILES)).to_have_count(0)
        self.assertEqual(page.complaints, [])

    def test_more_than_the_tab_keeps(self):
        page, halting = self.writing()
        file = {"name": "large.txt", "mimeType": "text/plain", "buffer": b"many words " * 300_000}
        for _ in range(2):
            page.set_input_files("input[type=file][aria-label=Files]", file)
        expect(page.locator(FILES)).to_have_count(2)
        self.ahead(page, "Two")
        self.visit_again(page)
        # The words are there without the files.
        expect(page.locator(BOX)).to_have_value("Two")
        expect(page.locator(FILES)).to_have_count(0)
        self.assertEqual(page.complaints, [])

    def test_files_stay_with_their_conversation(self):
        page, halting = self.writing()
        halting.on.set()
        page.wait_for_selector(DONE)
        self.attach(page)
        page.fill(BOX, "Two")
        self.fresh(page)
        expect(page.locator(FILES)).to_have_count(0)
        self.attach(page, "other.txt")
        page.fill(BOX, "Else")
        self.answered(page, lambda: page.press(BOX, "Enter"))
        self.sees(page, "article.user .files .name", ["other.txt"])
        page.locator(".entry a", has_text="One").click()
        self.sees(page, ASKED, ["One"])
        self.sees(page, FILES, ["notes.txt"])
        expect(page.locator(BOX)).to_have_value("Two")
        page.locator(".box .files").get_by_role("button").click()
        expect(page.locator(FILES)).to_have_count(0)

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
