"""axe, a checker of pages for people who see, hear or move little: it finds nothing in any view of the page."""

import json
import os
import unittest
from pathlib import Path

from browser import NARROW, PATH, PHONE
from several import PACKAGES
from support import rule, scripted
from test_page import SHOTS, Page as OnPage

AXE = Path(PACKAGES) / "axe-core/axe.min.js"
# WCAG 2.2, levels A and AA.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RUN = """(tags) => axe.run(document, { runOnly: tags, resultTypes: ["violations"] }).then(({ violations, passes }) => [passes.length,
  violations.flatMap(({ id, impact, help, nodes }) => nodes.map(({ target, failureSummary }) =>
    `${id} (${impact}) at ${target.join(" ")}: ${help}. ${failureSummary}`))])"""
ANSWER = r"""# A heading

A paragraph with `code`, **bold**, a [link](https://example.com) and $x^2$.

> A quotation

- [x] done
- [ ] to do

```python
# The sum of all.
@cached
def total(numbers: list[int], start=0.5) -> int:
    text = f"of {len(numbers)}" if numbers else None
    return sum(numbers, start)  # in one go
```

```diff
- before
+ after
```

```nonsense
A long line of plain text that is wider than any phone, so that this block is scrolled to its side by whoever reads it.
```

| Name | Value | What it says of itself in many words, so that it is wide |
|:-----|------:|---|
| one | 1 | first |
| two | 2 | second |

$$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$$

---

1. first
2. second
"""


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
@unittest.skipUnless(AXE.exists(), "the package axe-core is not installed by npm")
class Access(OnPage):
    @classmethod
    def server_of(cls):
        rules = [rule([{"reasoning": "Let me think about `this`."}, {"text": ANSWER}], contains="Show")]
        return scripted(rules, key=None)

    def clean(self, page, view):
        """What has an end is waited for: half of a colour between two is neither."""
        page.evaluate("Promise.all(document.getAnimations().filter((a) => a.effect.getTiming().iterations !== Infinity).map((a) => a.finished))")
        if SHOTS:
            page.screenshot(path=os.path.join(SHOTS, f"access-{self.kind}-{view}.png"))
        with self.subTest(view=view, kind=self.kind):
            passed, found = page.evaluate(RUN, RULES)
            self.assertGreater(passed, 5)
            self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_no_view_is_found_fault_with(self):
        for size in ({}, {"size": PHONE}, {"size": NARROW}):
            for dark in (False, True):
                self.kind = f"{'dark' if dark else 'light'}-{size.get('size', ('desktop',))[0]}"
                for views in (self.views, self.failing):
                    page = self.open(dark=dark, **size)
                    page.evaluate(AXE.read_text())
                    views(page, bool(size))
                    page.context.close()

    def views(self, page, phone):
        page.locator(".welcome").wait_for()
        self.clean(page, "empty")
        self.ask(page, "Show me everything")
        page.locator("details.thoughts summary").click()
        self.clean(page, "conversation")
        for at in ("article.assistant .code pre", ".wide table"):
            page.locator(at).last.scroll_into_view_if_needed()
            self.clean(page, "conversation at " + at.rpartition(" ")[2])
        page.click("article.assistant .do-tokens")
        page.wait_for_selector(".token")
        # Where it rests it would leave one as they are laid out, which closes its alternatives.
        page.mouse.move(1, 1)
        page.locator(".token").first.focus()
        page.wait_for_selector(".others")
        self.clean(page, "tokens")
        page.click("article.assistant .do-tokens")
        page.click("article.assistant .do-delete")
        self.clean(page, "delete")
        page.locator("article.user").hover()
        page.click("article.user .do-edit")
        self.clean(page, "edit")
        page.keyboard.press("Escape")
        page.fill("#question", "Two lines\nof a message")
        page.set_input_files("input[type=file][aria-label=Files]", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"})
        page.locator(".box .files summary").click()
        self.clean(page, "composer")
        page.get_by_label("Remove notes.txt").click()
        page.fill("#question", "")
        page.click("button.model")
        page.locator(".models .popup").wait_for()
        self.clean(page, "models")
        page.keyboard.press("Escape")
        self.listed(page, phone)
        for view, keys in (("settings", "Control+,"), ("keys", "Control+/")):
            page.keyboard.press(keys)
            page.locator("dialog[open] h2").wait_for()
            if view == "settings":
                page.locator("dialog summary").first.click()
                self.clean(page, "fields")
                page.fill("#fields", "{")
                page.fill("#top_p", "7")
                page.focus("#min_p")
            self.clean(page, view)
            page.keyboard.press("Escape")
            page.wait_for_selector("dialog[open]", state="detached")

    def listed(self, page, phone):
        if phone:
            page.locator("header button").first.click()
            page.locator(".with-drawer").wait_for()
        self.clean(page, "list")
        page.fill("#search", "quotation")
        page.locator(".entry .line").wait_for()
        self.clean(page, "search")
        page.fill("#search", "nowhere to be found")
        page.locator(".empty").wait_for()
        self.clean(page, "nothing found")
        page.fill("#search", "")
        page.locator(".entry").hover()
        page.locator(".entry .menu > button").click()
        page.get_by_role("menuitem", name="Delete…").click()
        self.clean(page, "menu")
        page.get_by_role("menuitem", name="Keep it").click()
        page.locator(".entry .menu > button").click()
        page.get_by_role("menuitem", name="Rename").click()
        page.locator(".entry .rename").wait_for()
        self.clean(page, "rename")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="backstop", exact=True).click()
        page.locator("dialog[open] h2").wait_for()
        self.clean(page, "about")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        if phone:
            page.keyboard.press("Escape")
            page.locator(".with-drawer").wait_for(state="detached")

    def failing(self, page, _phone):
        # Before anything is stored: Chromium measures the room that is left now and then.
        page.context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", {"origin": self.server.url, "quotaSize": 1})
        refusal = lambda status, message, **headers: {
            "status": status, "body": json.dumps({"error": {"message": message}}), "headers": {"content-type": "application/json", **headers}}
        def answer(pattern, with_what):
            page.unroute(pattern)
            page.route(pattern, lambda route: route.fulfill(**with_what))
        busy = refusal(429, "all 4 places are taken", **{"retry-after": "60"})
        for pattern in ("**/v1/chat/completions", "**/v1/models"):
            answer(pattern, busy)
        self.ask(page, "Are you there?")
        page.locator("article.assistant .alert").wait_for()
        page.locator(".banner .alert").nth(1).wait_for()
        self.clean(page, "troubles")
        # There is room to read what they are about.
        self.assertGreater(page.locator(".thread").bounding_box()["height"], 100)
        # An answer that has not begun.
        page.unroute("**/v1/chat/completions")
        held = []
        page.route("**/v1/chat/completions", lambda route: held.append(route))
        page.fill("#question", "And now?")
        page.click("#send")
        page.locator("article.assistant .doing").wait_for()
        self.clean(page, "waiting")
        page.fill("#question", "And then?")
        page.click("#later")
        page.locator(".queue li").wait_for()
        page.fill("#question", "Or")
        # What breathes is half of its colour now and then.
        page.emulate_media(reduced_motion="reduce")
        self.clean(page, "queue")
        page.click("#stop")
        held.pop().abort()
        for pattern in ("**/v1/models", "**/v1/chat/completions"):
            answer(pattern, refusal(401, "the API key is wrong"))
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.locator("#key").wait_for()
        self.clean(page, "key")


if __name__ == "__main__":
    unittest.main()
