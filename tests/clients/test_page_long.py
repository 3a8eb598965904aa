"""A conversation of hundreds of messages: its end is seen at once, and all of it is there soon after."""

import json
import unittest

from browser import PATH
from playwright.sync_api import expect
from test_page import Page as OnPage

COUNT = 400
TEXT = """## Part

A paragraph of **some** words, [a link](https://example.com) and `code`.

```python
def half(number: int) -> float:
    return number / 2
```

| Name | Value |
|:-----|------:|
| one | 1 |
| two | 2 |
"""
# What is to be done when nothing else is waits until it is called for.
HELD = """self.idle = [];
self.requestIdleCallback = (work) => self.idle.push(work);
self.cancelIdleCallback = (handle) => (self.idle[handle - 1] = null);
self.step = () => { const work = self.idle.splice(0, self.idle.length, null).findLast((one) => one); work?.(); return !!work; };"""
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
# Of what is drawn: how many messages there are, and which questions are the first and the last.
SEEN = """(() => { const all = [...document.querySelectorAll('article.user .text')].map((one) => Number(one.textContent.match(/[0-9]+/)[0]));
  return [document.querySelectorAll('article').length, all[0], all.at(-1)]; })()"""
TOP = "document.querySelector('.thread').scrollTop"


def conversation(count):
    turns = []
    for n in range(count // 2):
        parent = turns[-1]["id"] if turns else None
        turns.append({"id": f"u{n}", "parent": parent, "role": "user", "text": f"Question {n}?", "time": n})
        turns.append({"id": f"a{n}", "parent": f"u{n}", "role": "assistant", "text": f"Answer {n}.\n\n{TEXT}", "time": n})
    one = {"id": "long", "title": "Long", "system": "", "created": 1, "changed": 1, "turns": turns, "chosen": {}}
    return json.dumps({"format": "backstop-conversations", "version": 1, "conversations": [one]})


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Long(OnPage):
    def imported(self, page):
        page.keyboard.press("Control+,")
        file = {"name": "long.json", "mimeType": "application/json", "buffer": conversation(COUNT).encode()}
        page.set_input_files("#import", file)
        page.get_by_text("1 conversation imported.").wait_for()
        page.keyboard.press("Escape")

    def opened(self):
        """A page on which the conversation has just been opened, and is drawn step by step."""
        page = self.open()
        page.add_init_script(HELD)
        page.reload()
        self.imported(page)
        page.locator(".entry a", has_text="Long").click()
        page.locator("article").first.wait_for()
        return page

    def test_the_end_is_there_first_and_then_all(self):
        page = self.opened()
        last = page.locator("article.assistant").last
        expect(last).to_be_in_viewport()
        expect(last.locator("table")).to_have_count(1)
        self.assertEqual(page.evaluate(SEEN), [8, COUNT // 2 - 4, COUNT // 2 - 1])
        expect(page.locator(".thread")).to_have_attribute("aria-busy", "true")
        page.evaluate("document.querySelectorAll('article.assistant .do-again')[3].focus()")
        page.evaluate("document.querySelector('article').was = true")
        while page.evaluate("step()"):
            page.evaluate(DRAWN)
        self.assertEqual(page.evaluate(SEEN), [COUNT, 0, COUNT // 2 - 1])
        questions = page.locator("article.user .text").all_text_contents()
        self.assertEqual(questions, [f"Question {n}?" for n in range(COUNT // 2)])
        expect(page.locator(".thread")).to_have_attribute("aria-busy", "false")
        # It stays at the end, and what was there is what it was, with the focus.
        expect(last).to_be_in_viewport()
        self.assertEqual(page.evaluate("[...document.querySelectorAll('article')].findIndex((one) => one.was)"), COUNT - 8)
        self.assertTrue(page.evaluate("document.activeElement.matches('.do-again')"))
        # The browser finds what is far from what is seen, and can go there.
        self.assertTrue(page.evaluate("find('Answer 3.', true, false, true)"))
        page.evaluate("getSelection().focusNode.parentElement.scrollIntoView()")
        expect(page.get_by_text("Answer 3.", exact=True)).to_be_in_viewport()
        expect(page.get_by_role("log").get_by_role("article", name="You")).to_have_count(COUNT // 2)
        self.assertEqual(page.complaints, [])

    def test_what_is_read_stays_in_its_place(self):
        page = self.opened()
        # In the middle of what is drawn, and at its very beginning.
        for at in ("400", "0"):
            page.evaluate(f"{TOP} = {at}")
            page.evaluate(DRAWN)
            page.evaluate("self.read = [...document.querySelectorAll('article')].find((one) => one.getBoundingClientRect().bottom > 100)")
            where = page.evaluate("read.getBoundingClientRect().top")
            for _ in range(4):
                self.assertTrue(page.evaluate("step()"))
                page.evaluate(DRAWN)
                self.assertAlmostEqual(page.evaluate("read.getBoundingClientRect().top"), where, delta=1)

    def test_all_of_it_is_printed(self):
        page = self.opened()
        self.assertLess(page.locator("article").count(), COUNT)
        printed = page.pdf()
        self.assertEqual(page.evaluate(SEEN)[0], COUNT)
        # Some pages for each screen of it.
        self.assertGreater(printed.count(b"/Type /Page\n"), 50)

    def test_a_message_that_is_sent_meanwhile(self):
        page = self.opened()
        self.set(page, max_tokens=3)
        self.ask(page, "And now?")
        self.assertEqual(page.locator("article.user .text").last.inner_text(), "And now?")
        expect(page.locator("article.assistant").last).to_be_in_viewport()
        while page.evaluate("step()"):
            page.evaluate(DRAWN)
        self.assertEqual(page.locator("article").count(), COUNT + 2)
        expect(page.locator("article.assistant").last).to_be_in_viewport()


if __name__ == "__main__":
    unittest.main()
