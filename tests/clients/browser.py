"""Chromium by way of Playwright, on a page of a server; what it asks and complains of is written down."""

import os
import shutil

from support import needs

needs("playwright")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", MAC)
PATH = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
DESKTOP, PHONE, NARROW = (1280, 800), (390, 844), (320, 568)
# A net: what is waited for comes, on a busy machine later.
LONG = 120_000
expect.set_options(timeout=LONG)


class Browser:
    """One Chromium; each page has a profile of its own."""

    def __init__(self):
        self.playwright = sync_playwright().start()
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        self.chromium = self.playwright.chromium.launch(executable_path=PATH, args=options)

    def open(self, url, dark=False, size=DESKTOP, scale=1):
        phone = size != DESKTOP
        context = self.chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            device_scale_factor=scale,
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            is_mobile=phone,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(LONG)
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
