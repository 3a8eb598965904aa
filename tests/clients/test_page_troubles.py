"""What the page says and does when a server is busy, a model or a connection goes away, and the browser keeps nothing."""

import json
import re
import socket
import struct
import threading
import unittest
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from browser import PATH
from playwright.sync_api import expect
from support import KEY, Server
from test_page import ANSWER, Page as OnPage

CHAT, MODELS = "**/v1/chat/completions", "**/v1/models"
ALERT, BANNER = "article.assistant .alert", ".banner .alert"
BUSY = "all 4 places are taken (--parallel and --max-queue): try again later"
# What a browser does that keeps nothing, at whatever would keep it.
REFUSING = """(() => {
  const refuse = () => { throw new DOMException("The operation is insecure.", "SecurityError"); };
  for (const name of ["localStorage", "sessionStorage", "indexedDB"]) Object.defineProperty(self, name, { get: refuse });
  self.BroadcastChannel = class { constructor() { refuse(); } };
})()"""

# Whether a turn of this text is stored.
STORED = """(text) => new Promise((done) => {
  const opened = indexedDB.open("backstop");
  opened.onsuccess = () => {
    const all = opened.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => { opened.result.close(); done(all.result.some(({ turns }) => turns.some((turn) => turn.text === text))); };
  };
})"""


def answered(text):
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]})
    return {"body": f"data: {chunk}\n\ndata: [DONE]\n\n", "content_type": "text/event-stream"}


def refused(status, message=None, **headers):
    body = json.dumps({"error": {"message": message}}) if message else "<html>Later</html>"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"status": status, "body": body, "headers": {"content-type": "application/json", **names}}


class Breaking:
    """A server whose answers begin and break off."""

    def __init__(self, text):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.cut = threading.Event()
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        event = f"data: {chunk}\n\n".encode()
        self.begin = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.begin += b"%x\r\n%s\r\n" % (len(event), event)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        one, _ = self.listener.accept()
        with one:
            one.recv(1 << 16)
            one.sendall(self.begin)
            self.cut.wait()
            # Closed by a reset, as where the process is killed.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def stop(self):
        self.cut.set()
        self.thread.join()
        self.listener.close()


class Troubled(OnPage):
    def answers_with(self, page, pattern, *answers):
        """The next requests are answered so, and all that come later as the last is."""
        left = list(answers)
        page.unroute(pattern)
        page.route(pattern, lambda route: route.fulfill(**(left.pop(0) if len(left) > 1 else left[0])))

    def models(self, page, *names):
        """From now on the server lists these."""
        listed = [{"id": name, "state": "loaded", "context_length": 512, "capabilities": ["completion"]} for name in names]
        body = json.dumps({"object": "list", "data": listed})
        self.answers_with(page, MODELS, {"body": body, "content_type": "application/json"})
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.locator("button.model .name").get_by_text(names[0]).wait_for()


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Refused(Troubled):
    def test_a_busy_server_says_when_to_try_again(self):
        page = self.open()
        later = format_datetime(datetime.now(timezone.utc) + timedelta(hours=3), usegmt=True)
        cases = [
            (refused(429, BUSY, retry_after="55"), BUSY, r"It is worth trying again in \d+ s\."),
            (refused(503, "a thread could not be started", retry_after="2000"), "a thread", r"It is worth trying again in 3\d min\."),
            # Of what is between here and the server.
            (refused(503, retry_after=later), "503", r"It is worth trying again in 1[78]\d min\."),
            (refused(503), "503", r"Try again in a moment\."),
            # Once the time is over.
            (refused(429, BUSY, retry_after="1"), BUSY, r"It is worth trying again now\."),
        ]
        self.answers_with(page, CHAT, *(answer for answer, _, _ in cases), answered("Here I am."))
        self.ask(page, "Hi")
        for _, said, when in cases:
            alert = page.locator(ALERT)
            expect(alert).to_contain_text(re.compile(when))
            expect(alert).to_contain_text("The server is busy")
            expect(alert).to_contain_text(said)
            self.answered(page, lambda: alert.get_by_role("button", name="Try again").click())
        self.sees(page, ANSWER, ["Here I am."])
        self.assertEqual(page.locator(BANNER).count(), 0)

    def test_other_refusals_are_no_busy_server(self):
        page = self.open()
        changed = "weights.safetensors has changed since it was loaded: start the server anew"
        ends = "the server ends, and this was not done when --drain-timeout was over: ask again once it is there"
        self.answers_with(page, CHAT, refused(503, changed), refused(503, ends, retry_after="1"))
        self.ask(page, "Hi")
        expect(page.locator(ALERT)).to_contain_text(changed)
        expect(page.locator(ALERT)).not_to_contain_text("busy")
        self.answered(page, lambda: page.click("article.assistant .do-again"))
        expect(page.locator(ALERT)).to_contain_text("The server is gone")

    def test_a_busy_list_of_models_is_asked_for_again(self):
        page = self.open()
        self.answers_with(page, MODELS, refused(429, BUSY, retry_after="1"))
        page.evaluate("dispatchEvent(new Event('focus'))")
        expect(page.locator(BANNER)).to_contain_text("The server is busy")
        page.locator(BANNER).get_by_role("button", name="Try now").wait_for()
        page.unroute(MODELS)
        page.wait_for_selector(BANNER, state="detached")

    def test_a_model_that_went_away_has_others_in_its_place(self):
        page = self.open()
        self.models(page, "one", "two", "three")
        self.answers_with(page, CHAT, refused(404, "there is no model `one`"), answered("I am two."))
        def leave(route):
            self.models(page, "two", "three")
            route.fulfill(**refused(404, "there is no model `one`"))
        page.unroute(CHAT)
        page.route(CHAT, leave)
        self.ask(page, "Who are you?")
        alert = page.locator(ALERT)
        expect(alert).to_contain_text("there is no model `one`")
        offered = alert.get_by_role("button")
        expect(offered).to_have_text(["Answer with two", "Answer with three"])
        self.answers_with(page, CHAT, answered("I am three."))
        with page.expect_request(CHAT) as sent:
            offered.last.click()
        self.assertEqual(sent.value.post_data_json["model"], "three")
        self.sees(page, ANSWER, ["I am three."])
        expect(page.locator("button.model .name")).to_have_text("three")
        # Where there is no other, this one is tried.
        def alone(route):
            self.models(page, "three")
            route.fulfill(**refused(404, "there is no model `three`"))
        page.unroute(CHAT)
        page.route(CHAT, alone)
        self.ask(page, "Still there?")
        expect(page.locator(ALERT).get_by_role("button")).to_have_text(["Try again"])

    def half_answered(self):
        """A page that has half of an answer, and what may break it off."""
        page = self.open()
        broken = Breaking("Half of an answer")
        self.addCleanup(broken.stop)
        page.route(CHAT, lambda route: route.continue_(url=broken.url))
        page.fill("#question", "Hi")
        page.press("#question", "Enter")
        self.sees(page, ANSWER, ["Half of an answer"])
        return page, broken

    def test_a_connection_that_is_reset_leaves_what_came(self):
        page, broken = self.half_answered()
        page.route(MODELS, lambda route: route.abort())
        broken.cut.set()
        expect(page.locator(ALERT)).to_contain_text("The connection to the server broke.")
        expect(page.locator(BANNER)).to_contain_text("Start it again with")
        self.sees(page, ANSWER, ["Half of an answer"])
        page.unroute(MODELS)
        page.wait_for_selector(BANNER, state="detached")
        self.visit_again(page)
        self.sees(page, ANSWER, ["Half of an answer"])
        # It goes on from there.
        page.unroute(CHAT)
        self.answers_with(page, CHAT, answered(", and the rest."))
        with page.expect_request(CHAT) as sent:
            self.answered(page, lambda: page.click("article.assistant .do-continue"))
        self.assertEqual(sent.value.post_data_json["messages"][-1], {"role": "assistant", "content": "Half of an answer"})
        self.sees(page, ANSWER, ["Half of an answer, and the rest."])

    def test_a_page_that_is_left_says_that_an_answer_is_not_whole(self):
        page, broken = self.half_answered()
        for _ in range(600):
            if page.evaluate(STORED, "Half of an answer"):
                break
            page.wait_for_timeout(100)
        page.reload()
        broken.cut.set()
        self.sees(page, ANSWER, ["Half of an answer"])
        note = page.get_by_text("Not written to its end.")
        note.wait_for()
        # It goes on from there, and that is whole.
        page.unroute(CHAT)
        self.answers_with(page, CHAT, answered(", and the rest."))
        self.answered(page, lambda: page.click("article.assistant .do-continue"))
        self.sees(page, ANSWER, ["Half of an answer, and the rest."])
        expect(note).to_have_count(0)
        self.visit_again(page)
        self.sees(page, ANSWER, ["Half of an answer, and the rest."])
        expect(note).to_have_count(0)


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Relocked(Troubled):
    """A server that has a key which the page does not know, or no more."""

    key = KEY

    def test_a_key_that_is_wrong_since(self):
        page = self.browser.open(self.server.url)
        self.addCleanup(page.context.close)
        use = lambda key: (page.fill("#key", key), page.get_by_role("button", name="Use it").click())
        use(KEY)
        page.wait_for_selector("#key", state="detached")
        self.set(page, max_tokens=3)
        self.answers_with(page, CHAT, refused(401, "the API key is wrong"))
        self.answers_with(page, MODELS, refused(401, "the API key is wrong"))
        self.ask(page, "Once upon a time")
        page.locator("#key").wait_for()
        expect(page.locator(ALERT)).to_contain_text("The server asks for its key")
        page.unroute(CHAT)
        page.unroute(MODELS)
        use(KEY)
        page.wait_for_selector("#key", state="detached")
        self.answered(page, lambda: page.locator(ALERT).get_by_role("button", name="Try again").click())
        self.assertEqual((len(self.answers(page)), page.locator(ALERT).count()), (1, 0))


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Unkept(Troubled):
    def exported(self, page):
        with page.expect_download() as download:
            page.locator(BANNER).get_by_role("button", name="Export all").click()
        held = json.loads(download.value.path().read_text())
        return [[turn["text"] for turn in one["turns"]] for one in held["conversations"]]

    def test_a_full_store(self):
        page = self.open()
        self.set(page, max_tokens=3)
        wire = page.context.new_cdp_session(page)
        wire.send("Storage.overrideQuotaForOrigin", {"origin": self.server.url, "quotaSize": 1})
        self.ask(page, "A cat sat")
        notice = page.locator(BANNER)
        expect(notice).to_contain_text("Conversations are not kept")
        expect(notice).to_contain_text("is full")
        self.ask(page, "A dog ran")
        said = self.answers(page)
        self.assertEqual(len(said), 2)
        self.assertEqual([texts[0::2] for texts in self.exported(page)], [["A cat sat", "A dog ran"]])
        # What is closed does not come back with each message.
        notice.get_by_label("Close").click()
        page.keyboard.press("Control+Shift+O")
        page.wait_for_selector(".welcome")
        self.ask(page, "The sun rose")
        self.assertEqual(page.locator(BANNER).count(), 0)
        # Where there is room again, all of them are kept.
        wire.send("Storage.overrideQuotaForOrigin", {"origin": self.server.url})
        self.ask(page, "The moon")
        self.visit_again(page)
        self.sees(page, ".entry .title", ["The sun rose", "A cat sat"])
        page.locator(".entry a", has_text="A cat sat").click()
        self.sees(page, "article.user .text", ["A cat sat", "A dog ran"])
        self.sees(page, ANSWER, said)

    def test_settings_without_room(self):
        page = self.open()
        page.evaluate("""() => {
          let part = "x".repeat(1 << 22);
          while (part) try { localStorage.setItem(`filler${part.length}`, part); part = part.slice(part.length / 2 | 0).slice(1); }
            catch { part = part.slice(part.length / 2 | 0).slice(1); }
        }""")
        page.keyboard.press("Control+,")
        dialog = page.locator("dialog[open]")
        expect(dialog).not_to_contain_text("does not keep settings")
        page.fill("#system", "You are terse. " * 50)
        expect(dialog).to_contain_text("does not keep settings")
        page.fill("#max_tokens", "3")
        page.keyboard.press("Escape")
        with page.expect_request(CHAT) as sent:
            self.ask(page, "Hi")
        self.assertEqual(sent.value.post_data_json["max_tokens"], 3)
        page.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('filler')).forEach((name) => localStorage.removeItem(name))")
        page.keyboard.press("Control+,")
        page.fill("#max_tokens", "4")
        expect(dialog).not_to_contain_text("does not keep settings")

    def test_a_browser_that_keeps_nothing(self):
        page = self.open()
        page.add_init_script(REFUSING)
        page.complaints.clear()
        page.reload()
        expect(page.locator(BANNER)).to_contain_text("as in a private window")
        expect(page.locator(BANNER).get_by_role("button", name="Export all")).to_be_disabled()
        page.keyboard.press("Control+,")
        expect(page.locator("dialog[open]")).to_contain_text("does not keep settings")
        page.fill("#max_tokens", "3")
        page.select_option("#theme", "dark")
        page.keyboard.press("Escape")
        self.ask(page, "A cat sat")
        self.ask(page, "A dog ran")
        page.click("article.assistant.is-last .do-tokens")
        page.get_by_text("The tokens of this answer are not kept.").wait_for()
        self.assertEqual([texts[0::2] for texts in self.exported(page)], [["A cat sat", "A dog ran"]])
        page.keyboard.press("Control+Shift+O")
        page.wait_for_selector(".welcome")
        page.locator(".entry a", has_text="A cat sat").click()
        self.assertEqual(len(self.answers(page)), 2)
        self.assertEqual(page.complaints, [])


if __name__ == "__main__":
    unittest.main()
