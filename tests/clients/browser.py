"""Chromium by way of Playwright, on a page of a server; what it asks and complains of is written down."""

import os
import shutil

from support import needs

needs("playwright")
from playwright.sync_api import sync_playwright  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATH = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
DESKTOP, PHONE, NARROW = (1280, 800), (390, 844), (320, 568)


class Browser:
    """One Chromium; each page has a profile of its own."""

    def __init__(self):
        self.playwright = sync_playwright().start()
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        self.chromium = self.playwright.chromium.launch(executable_path=PATH, args=options)

    def open(self, url, dark=False, size=DESKTOP):
        phone = size != DESKTOP
        context = self.chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            is_mobile=phone,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.complaints, page.asked = [], []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        return page

    def close(self):
        self.chromium.close()
        self.playwright.stop()
