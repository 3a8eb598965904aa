"""The page on the narrowest phones, with titles and words that are longer than they are wide."""

import os
import unittest

from browser import NARROW, PATH
from test_page import SHOTS, Page

# What is seen and sticks out of the screen to a side, but for what is scrolled there.
OUTSIDE = """[...document.body.querySelectorAll('*')].filter(e => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
  !e.closest('.hidden, .skip, .wide, pre, svg')).map(e => [e, e.getBoundingClientRect()])
  .filter(([e, r]) => r.width && r.height && (r.left < -.5 || r.right > innerWidth + .5))
  .map(([e, r]) => `${e.tagName}.${e.className} ${r.left} to ${r.right}`)"""
# Controls that a finger would miss, or that lie below the screen.
MISSED = """(selector) => [...document.querySelectorAll(selector)].map(e => [e, e.getBoundingClientRect()])
  .filter(([e, r]) => r.width < 28 || r.height < 28 || r.top < 0 || r.bottom > innerHeight).map(([e]) => e.outerHTML.slice(0, 80))"""
# Whether all of a text is seen.
CUT = "(e) => e.scrollWidth > e.clientWidth"
WORD = "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft"


@unittest.skipUnless(PATH, "no Chromium here (CHROMIUM names one)")
class Narrow(Page):
    def fits(self, page, name, controls):
        page.wait_for_timeout(250)
        if SHOTS:
            page.screenshot(path=os.path.join(SHOTS, f"narrow-{name}.png"))
        with self.subTest(view=name):
            self.assertEqual(page.evaluate(OUTSIDE), [])
            self.assertGreater(page.locator(controls).count(), 0)
            self.assertEqual(page.evaluate(MISSED, controls), [])

    def test_nothing_sticks_out(self):
        for dark in (False, True):
            shade = "dark" if dark else "light"
            page = self.open(dark=dark, size=NARROW)
            self.assertEqual(page.viewport_size["width"], 320)
            self.fits(page, f"{shade}-welcome", "header button, #send")
            self.set(page, temperature=0, max_tokens=8)
            self.ask(page, "Once upon a time there was a girl whose story had a title that was longer than any list is wide")
            self.fits(page, f"{shade}-answer", "header button, #send")
            # The model's name is what says who answers.
            self.assertFalse(page.locator("button.model .name").evaluate(CUT))
            page.get_by_role("banner").get_by_label("New conversation").click()
            page.wait_for_selector(".welcome")
            self.ask(page, WORD)
            self.fits(page, f"{shade}-word", "header button, #send")
            page.fill("#question", "\n".join([f"A line of a message, and {WORD}"] * 12))
            page.set_input_files("input[type=file][multiple]", {"name": f"{WORD}.txt", "mimeType": "text/plain", "buffer": b"x"})
            page.locator(".box .files").wait_for()
            self.fits(page, f"{shade}-composer", "header button, #send")
            # However much is written, there is room to read what it is about.
            self.assertGreater(page.locator(".thread").bounding_box()["height"], 100)
            self.drawer(page, shade)
            self.assertEqual(page.complaints, [])

    def drawer(self, page, shade):
        page.locator("header button").first.click()
        page.locator(".with-drawer").wait_for()
        titles = page.locator(".entry .title")
        self.assertEqual(titles.count(), 2)
        for at in range(2):
            self.assertTrue(titles.nth(at).evaluate(CUT))
            self.assertEqual(titles.nth(at).evaluate("e => getComputedStyle(e).textOverflow"), "ellipsis")
        self.fits(page, f"{shade}-list", ".sidebar .fresh, .entry .menu > button")
        # The drawer leaves some of the page, by which it is closed.
        side = page.locator(".sidebar").bounding_box()
        self.assertLessEqual(side["x"] + side["width"], 320 - 40)
        page.locator(".entry .menu > button").first.click()
        page.get_by_role("menuitem", name="Rename").wait_for()
        self.fits(page, f"{shade}-menu", ".popup > button")
        page.get_by_role("menuitem", name="Rename").click()
        self.fits(page, f"{shade}-rename", ".sidebar .fresh, .entry .rename")
        page.fill(".entry .rename", f"{WORD} {WORD}")
        page.keyboard.press("Enter")
        self.sees(page, ".entry .title", [f"{WORD} {WORD}", page.locator(".entry .title").last.inner_text()])
        self.fits(page, f"{shade}-renamed", ".entry .menu > button")
        page.mouse.click(310, 300)
        page.locator(".with-drawer").wait_for(state="detached")
        self.assertIn(WORD, page.title())


if __name__ == "__main__":
    unittest.main()
