"""Two tabs of the page: one sees what the other writes, and each leaves the other's choices as they are."""

import json
import socket
import threading
import unittest

from browser import PATH
from playwright.sync_api import expect
from test_page import ANSWER, DONE, Page as OnPage

CHAT = "**/v1/chat/completions"
THEIRS, CUT = "Being written in another tab.", "Not written to its end."
BEGIN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Halting:
    """A server whose answers begin, and go on where that is wanted."""

    def __init__(self, begin, rest):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.parts = [self.chunk(begin), self.chunk(rest, "stop")]
        self.on = threading.Event()
        self.breaks = False
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def chunk(self, text, finish=None):
        said = json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})
        event = f"data: {said}\n\n".encode()
        return b"%x\r\n%s\r\n" % (len(event), event)

    def serve(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(one,)).start()

    def answer(self, one):
        with one:
            one.recv(1 << 16)
            try:
                one.sendall(BEGIN + self.parts[0])
                self.on.wait()
                if not self.breaks:
                    one.sendall(self.parts[1] + b"0\r\n\r\n")
            except OSError:
                # Nobody reads it any more.
                pass

    def stop(self):
        self.on.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Tabs(OnPage):
    def writing(self):
        """A tab that has half of an answer, another one of the same conversation, and what has the answer go on."""
        one = self.open()
        halting = self.halting(one)
        one.fill("#question", "Hi")
        one.press("#question", "Enter")
        self.sees(one, ANSWER, ["Half of an answer"])
        return one, self.second(one), halting

    def halting(self, tab):
        halting = Halting("Half of an answer", ", and the rest.")
        self.addCleanup(halting.stop)
        tab.route(CHAT, lambda route: route.continue_(url=halting.url))
        return halting

    def second(self, one):
        two = one.context.new_page()
        two.goto(one.url)
        two.locator("article.assistant").wait_for()
        return two

    def theirs(self, tab):
        """The tab shows that its answer is written by another one."""
        tab.get_by_text(THEIRS).wait_for()
        expect(tab.get_by_text(CUT)).to_have_count(0)
        expect(tab.locator(".do-continue")).to_have_count(0)
        expect(tab.locator("article.assistant")).to_have_attribute("aria-busy", "true")

    def test_an_answer_that_another_tab_writes(self):
        one, two, halting = self.writing()
        self.theirs(two)
        # One that hears nothing sees it, too.
        deaf = self.deaf(one)
        self.theirs(deaf)
        halting.on.set()
        for tab in (two, deaf):
            self.sees(tab, ANSWER, ["Half of an answer, and the rest."])
            expect(tab.get_by_text(THEIRS)).to_have_count(0)
            expect(tab.get_by_text(CUT)).to_have_count(0)
            expect(tab.locator("article.assistant")).to_have_attribute("aria-busy", "false")
        halting.on.clear()
        one.click("article.assistant .do-again")
        self.theirs(two)
        expect(two.locator(".entry .busy")).to_have_count(1)
        halting.on.set()
        self.sees(two, ANSWER, ["Half of an answer, and the rest."])
        self.sees(two, "article.assistant .branches", "2/2")
        expect(two.locator(".entry .busy")).to_have_count(0)
        self.assertEqual(one.complaints, [])

    def test_a_tab_that_is_closed_while_it_writes(self):
        for leave in (lambda tab: tab.close(), lambda tab: tab.reload()):
            one, two, halting = self.writing()
            # What came is kept every three seconds.
            self.sees(two, ANSWER, ["Half of an answer"])
            self.theirs(two)
            leave(one)
            two.get_by_text(CUT).wait_for()
            expect(two.get_by_text(THEIRS)).to_have_count(0)
            self.halting(two).on.set()
            self.answered(two, lambda: two.click(".do-continue"))
            self.sees(two, ANSWER, ["Half of an answerHalf of an answer, and the rest."])

    def test_a_tab_that_waits_writes_nothing(self):
        one = self.open()
        one.evaluate("""() => new Promise((held) =>
            void navigator.locks.request("backstop/x/y", { mode: "shared" }, () => (held(), new Promise(() => {})))
        )""")
        two = one.context.new_page()
        two.add_init_script("""
            self.asked = [];
            const request = navigator.locks.request.bind(navigator.locks);
            navigator.locks.request = (name, ...rest) => (asked.push(name), request(name, ...rest));
        """)
        two.goto(one.url)
        # It has looked who writes once it says that there are no conversations.
        two.get_by_text("Conversations are kept here").wait_for()
        self.assertEqual(two.evaluate("asked"), [])
        self.assertEqual(one.complaints, [])

    def test_both_write_at_once(self):
        one, two, halting = self.writing()
        self.theirs(two)
        # The question once more, beside that whose answer the other tab writes.
        later = self.halting(two)
        two.locator("article.user").hover()
        two.click("article.user .do-edit")
        two.keyboard.press("Enter")
        self.sees(two, ANSWER, ["Half of an answer"])
        self.sees(two, "article.user .branches", "2/2")
        halting.on.set()
        one.wait_for_selector(DONE)
        later.on.set()
        two.wait_for_selector(DONE)
        self.sees(two, "article.user .branches", "2/2")
        two.locator("article.user").get_by_label("Previous version").click()
        for tab in (one, two):
            self.sees(tab, ANSWER, ["Half of an answer, and the rest."])
            expect(tab.get_by_text(CUT)).to_have_count(0)
            expect(tab.get_by_text(THEIRS)).to_have_count(0)

    def pins(self, tab, how="Pin"):
        tab.locator(".entry").first.hover()
        tab.locator(".entry .menu > button").first.click()
        tab.get_by_role("menuitem", name=how, exact=True).click()

    def pinned(self, tab, is_so=True):
        self.sees(tab, ".conversations h2", ["Pinned" if is_so else "Today"])

    def deaf(self, one):
        """A tab that hears nothing of what others do."""
        two = one.context.new_page()
        two.add_init_script("delete self.BroadcastChannel")
        two.goto(one.url)
        two.locator("article.assistant").wait_for()
        return two

    def pair(self):
        """A tab with a conversation, and a deaf one with the same."""
        one = self.open()
        self.set(one, max_tokens=3)
        self.ask(one, "A cat sat")
        self.visit_again(one)
        return one, self.deaf(one)

    def test_what_is_pinned_stays_pinned(self):
        one, two = self.pair()
        self.pins(one)
        self.pinned(one)
        self.visit_again(one)
        # A tab that knows nothing of it stores what is said there.
        self.pinned(two, False)
        self.ask(two, "A dog ran")
        self.pinned(two)
        self.visit_again(one)
        self.sees(one, "article.user .text", ["A cat sat", "A dog ran"])
        self.pinned(one)
        # So with what is unpinned.
        self.pins(one, "Unpin")
        self.pinned(one, False)
        self.visit_again(one)
        self.pinned(two)
        self.ask(two, "The sun rose")
        self.pinned(two, False)
        self.visit_again(one)
        self.sees(one, "article.user .text", ["A cat sat", "A dog ran", "The sun rose"])
        self.pinned(one, False)
        self.assertEqual(one.complaints, [])

    def test_what_is_pinned_while_an_answer_is_written_elsewhere(self):
        one, two, halting = self.writing()
        self.pins(two)
        self.pinned(two)
        halting.on.set()
        for tab in (one, two):
            self.sees(tab, ANSWER, ["Half of an answer, and the rest."])
            self.pinned(tab)
        self.visit_again(two)
        self.pinned(two)

    def renames(self, tab, title):
        tab.locator(".entry a").focus()
        tab.keyboard.press("F2")
        tab.fill(".rename", title)
        tab.keyboard.press("Enter")

    def prompts(self, tab, text):
        tab.evaluate("document.querySelector('details.system').open = true")
        tab.get_by_label("System prompt", exact=True).fill(text)
        tab.get_by_label("System prompt", exact=True).blur()

    def called(self, tab, title, prompt):
        self.sees(tab, ".entry .title", [title])
        expect(tab.locator("details.system summary")).to_have_text(f"System prompt: {prompt}")

    def test_what_is_named_while_an_answer_is_written_elsewhere(self):
        one, two, halting = self.writing()
        self.called(two, "Hi", "none")
        self.renames(two, "Greetings")
        self.prompts(two, "Be brief.")
        # The tab that writes takes it over when it keeps what came.
        for tab in (one, two):
            self.called(tab, "Greetings", "Be brief.")
        # What is said last holds, wherever that is.
        self.renames(one, "Salutations")
        self.prompts(one, "Be long.")
        for tab in (one, two):
            self.called(tab, "Salutations", "Be long.")
        self.renames(two, "Farewell")
        self.prompts(two, "Be kind.")
        halting.on.set()
        for tab in (one, two):
            self.sees(tab, ANSWER, ["Half of an answer, and the rest."])
            self.called(tab, "Farewell", "Be kind.")
        self.visit_again(two)
        self.called(two, "Farewell", "Be kind.")
        self.assertEqual(one.complaints, [])

    def test_a_tab_that_hears_nothing_keeps_names(self):
        one, two = self.pair()
        self.renames(one, "Cats")
        self.prompts(one, "Be brief.")
        self.visit_again(one)
        self.called(two, "A cat sat", "none")
        self.ask(two, "A dog ran")
        self.called(two, "Cats", "Be brief.")
        self.visit_again(one)
        self.called(one, "Cats", "Be brief.")

    def test_an_import_beside_what_is_pinned(self):
        one = self.open()
        one.keyboard.press("Control+Shift+O")
        two = one.context.new_page()
        two.add_init_script("delete self.BroadcastChannel")
        two.goto(one.url)
        two.locator(".welcome").wait_for()
        turns = [{"id": "u", "parent": None, "role": "user", "text": "Hi", "time": 1}]
        held = {"id": "x", "title": "Kept", "system": "", "created": 1, "changed": 1, "turns": turns, "chosen": {}}
        text = json.dumps({"format": "backstop-conversations", "version": 1, "conversations": [held]})
        for tab in (one, two):
            tab.keyboard.press("Control+,")
            tab.set_input_files("#import", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
            tab.get_by_text("1 conversation imported.").wait_for()
            tab.keyboard.press("Escape")
            if tab == one:
                self.pins(one)
                self.pinned(one)
                self.visit_again(one)
        # What was there is as it was, beside what came in.
        one.reload()
        self.sees(one, ".entry .title", ["Kept", "Kept"])
        expect(one.locator(".conversations h2").first).to_have_text("Pinned")


if __name__ == "__main__":
    unittest.main()
