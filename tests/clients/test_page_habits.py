"""What people are used to from other pages: the end is followed, answers are edited, and a phone's keyboard writes lines."""

import json
import unittest

from browser import PATH, PHONE
from playwright.sync_api import expect
from support import rule, scripted
from test_page import ANSWER, Page as OnPage

LONG = "\n\n".join(f"Paragraph {n} of an answer." for n in range(60))
THOUGHTS = "\n\n".join(f"Thought {n} of many." for n in range(60))
AT_END = "(() => { const t = document.querySelector('.thread'); return t.scrollHeight - t.scrollTop - t.clientHeight < 2; })()"
# The text grows, and what was scrolled before is told of only then, as it is where an answer comes fast.
GROWN = """(() => { const t = document.querySelector('.thread'); t.querySelector('.column').style.minHeight = '%dpx';
  t.dispatchEvent(new Event('scroll')); })()"""
# The page has been laid out and drawn since.
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Reading(OnPage):
    @classmethod
    def server_of(cls):
        rules = [
            rule([{"reasoning": THOUGHTS}, {"text": "Done."}], contains="think"),
            rule(LONG, contains="long"),
        ]
        return scripted(rules, key=None)

    def at_end(self, page):
        for _ in range(600):
            if page.evaluate(AT_END):
                return
            page.wait_for_timeout(100)
        self.fail("the end is not seen")

    def test_the_end_is_followed_until_somebody_goes_up(self):
        page = self.open()
        self.ask(page, "long")
        self.at_end(page)
        page.evaluate(GROWN % 6000)
        self.at_end(page)
        expect(page.locator(".to-end")).to_have_count(0)
        page.evaluate("document.querySelector('.thread').scrollTop -= 800")
        page.locator(".to-end").wait_for()
        at = page.evaluate("document.querySelector('.thread').scrollTop")
        page.evaluate(GROWN % 9000)
        page.evaluate(DRAWN)
        self.assertEqual(page.evaluate("document.querySelector('.thread').scrollTop"), at)
        page.click(".to-end")
        self.at_end(page)
        page.evaluate(GROWN % 12000)
        self.at_end(page)
        # An error is seen, however long what is above it is.
        page.evaluate("document.querySelector('.thread .column').style.minHeight = ''")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        self.ask(page, "And now?")
        expect(page.locator("article.assistant .alert")).to_be_in_viewport()

    def test_what_is_unfolded_stays_in_its_place(self):
        page = self.open()
        self.ask(page, "think")
        summary = page.locator("details.thoughts summary")
        at = summary.bounding_box()["y"]
        summary.click()
        page.locator(".to-end").wait_for()
        page.evaluate(DRAWN)
        self.assertEqual(summary.bounding_box()["y"], at)
        expect(summary).to_be_in_viewport()

    def test_a_conversation_begins_in_the_middle_or_by_the_thumb(self):
        for size in ({}, {"size": PHONE}):
            page = self.open(**size)
            page.locator(".welcome").wait_for()
            height = page.viewport_size["height"]
            box = page.locator(".box").bounding_box()
            if size:
                self.assertGreater(box["y"] + box["height"], height - 24)
            else:
                self.assertGreater(box["y"], height * 0.3)
                self.assertLess(box["y"] + box["height"], height * 0.7)
            heading = page.locator(".welcome h1").bounding_box()
            self.assertLess(heading["y"] + heading["height"], box["y"])
            self.ask(page, "Hi")
            box = page.locator(".box").bounding_box()
            self.assertGreater(box["y"] + box["height"], height - 24)
            self.assertEqual(page.complaints, [])

    def test_nothing_is_drawn_of_a_link_that_is_not_reached(self):
        page = self.open()
        skip = page.locator(".skip")
        shadow = lambda: skip.evaluate("e => getComputedStyle(e).boxShadow")
        self.assertLess(skip.bounding_box()["y"] + skip.bounding_box()["height"], 0)
        self.assertEqual(shadow(), "none")
        skip.focus()
        self.assertGreater(skip.bounding_box()["y"], 0)
        self.assertNotEqual(shadow(), "none")

    def test_titles_have_the_room_that_there_is(self):
        page = self.open()
        self.ask(page, "A title that is longer than the list of conversations is wide, by far")
        entry, title, more = (page.locator(of).first for of in (".entry", ".entry .title", ".entry .menu > button"))
        right = lambda of: of.bounding_box()["x"] + of.bounding_box()["width"]
        page.mouse.move(900, 300)
        self.assertLess(right(entry) - right(title), 12)
        entry.hover()
        self.assertLessEqual(right(title), more.bounding_box()["x"])


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Writing(OnPage):
    def test_enter_on_a_phone_begins_a_line(self):
        page = self.open(size=PHONE)
        self.set(page, max_tokens=2)
        self.assertEqual(page.get_attribute("#question", "enterkeyhint"), "enter")
        page.click("#question")
        for key in ("O", "Enter", "K"):
            page.keyboard.press(key)
        self.assertEqual(page.input_value("#question"), "O\nK")
        self.answered(page, lambda: page.click("#send"))
        self.sees(page, "article.user .text", ["O\nK"])
        # So it does where that is edited, and the list of keys says it.
        page.locator("article.user .do-edit").click()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        self.assertEqual(page.input_value(".editor textarea"), "O\nK\n\n")
        page.get_by_role("button", name="Cancel").click()
        page.keyboard.press("Control+/")
        self.assertEqual(page.locator(".keys tr").first.locator("kbd").all_inner_texts(), ["Ctrl", "Enter"])
        page.keyboard.press("Escape")
        # Unless somebody wants it otherwise.
        page.keyboard.press("Control+,")
        page.get_by_label("Enter sends").check()
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        self.assertEqual(page.get_attribute("#question", "enterkeyhint"), "send")
        page.fill("#question", "Hi")
        self.answered(page, lambda: page.press("#question", "Enter"))
        self.sees(page, "article.user .text", ["O\nK", "Hi"])

    def test_an_answer_is_edited(self):
        page = self.open()
        self.set(page, temperature=0, max_tokens=8)
        self.ask(page, "Once upon a time")
        first = self.answers(page)
        edit = lambda: (page.click("article.assistant .do-edit-answer"), page.wait_for_selector(".editor textarea:focus"))
        edit()
        page.fill(".editor textarea", "Nothing of this")
        page.keyboard.press("Escape")
        self.sees(page, ANSWER, first)
        # What is as it was is no version of it.
        edit()
        page.get_by_role("button", name="Save").click()
        self.sees(page, ANSWER, first)
        self.sees(page, "article.assistant .branches", [])
        edit()
        page.fill(".editor textarea", "There was a *dog*")
        page.keyboard.press("Enter")
        page.keyboard.type("who")
        page.keyboard.press("Control+Enter")
        self.sees(page, ANSWER, ["There was a dog who"])
        self.sees(page, "article.assistant .branches", "2/2")
        self.assertIn("Edited.", page.locator("article.assistant").inner_text())
        self.visit_again(page)
        self.sees(page, ANSWER, ["There was a dog who"])
        # The model goes on from it, in it and after it.
        self.answered(page, lambda: page.click("article.assistant .do-continue"))
        self.sees(page, "article.assistant .branches", "3/3")
        self.assertRegex(self.answers(page)[0], r"^There was a dog who.+")
        page.get_by_label("Previous version").click()
        self.sees(page, ANSWER, ["There was a dog who"])
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "And then?")
        self.assertEqual(sent.value.post_data_json["messages"][1], {"role": "assistant", "content": "There was a *dog*\nwho"})
        page.get_by_label("Previous version").click()
        self.sees(page, ANSWER, first)
        self.assertEqual(page.complaints, [])

    def test_a_conversation_goes_on_in_another_one(self):
        page = self.open()
        self.set(page, temperature=0, max_tokens=4)
        self.ask(page, "A cat sat")
        self.ask(page, "A dog ran")
        said = self.answers(page)
        page.locator("article.assistant .do-fork").first.click()
        self.sees(page, ".entry .title", ["A cat sat (2)", "A cat sat"])
        self.sees(page, "article.user .text", ["A cat sat"])
        self.sees(page, ANSWER, said[:1])
        self.assertIn("A cat sat (2)", page.locator("#said").inner_text())
        # Its tokens have come along, and what is said there stays there.
        page.click("article.assistant .do-tokens")
        page.wait_for_selector(".token")
        self.assertEqual(page.locator(".token").count(), 4)
        self.ask(page, "The sun rose")
        page.locator(".entry a", has_text="A cat sat").last.click()
        self.sees(page, "article.user .text", ["A cat sat", "A dog ran"])
        self.sees(page, ANSWER, said)
        page.locator("article.assistant .do-fork").last.click()
        self.sees(page, ".entry .title", ["A cat sat (3)", "A cat sat (2)", "A cat sat"])
        self.visit_again(page)
        self.sees(page, "article.user .text", ["A cat sat", "A dog ran"])
        self.sees(page, ANSWER, said)
        self.assertEqual(page.complaints, [])

    def test_thinking_is_chosen_beside_the_message(self):
        page = self.open()
        self.assertEqual(page.locator("#thinking").count(), 0)
        models = {"object": "list", "data": [{"id": "stories", "context_length": 512, "capabilities": ["completion", "thinking"]}]}
        page.route("**/v1/models", lambda route: route.fulfill(body=json.dumps(models), content_type="application/json"))
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.get_by_label("Thinking").select_option("Low")
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                body='data: {"choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
                content_type="text/event-stream",
            ),
        )
        with page.expect_request("**/v1/chat/completions") as sent:
            self.ask(page, "Hi")
        self.assertEqual(sent.value.post_data_json["reasoning_effort"], "low")
        page.keyboard.press("Control+,")
        self.assertEqual(page.input_value("#effort"), "low")
        page.get_by_role("button", name="Reset to the model's").click()
        page.keyboard.press("Escape")
        self.assertEqual(page.input_value("#thinking"), "")

    def test_a_field_says_what_it_is_for(self):
        page = self.open()
        page.keyboard.press("Control+,")
        hint = page.locator("#min_p-hint")
        self.assertLess(hint.bounding_box()["height"], 2)
        page.focus("#min_p")
        self.assertGreater(hint.bounding_box()["height"], 15)
        below = page.locator("#min_p").bounding_box()
        self.assertGreaterEqual(hint.bounding_box()["y"], below["y"] + below["height"])
        page.focus("#top_k")
        self.assertLess(hint.bounding_box()["height"], 2)


if __name__ == "__main__":
    unittest.main()
