"""Takes docs/page.png: a conversation with a real model on the page, with Playwright and Chromium.

    BACKSTOP=target/release/backstop python3 tools/page_shot.py MODEL [OUT.png]

The picture in docs is of Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF (Q4_K_M), which `cargo xtask real-models` downloads. Answers
are drawn at temperature 0; figures below them are those of the machine.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/clients"))

from browser import DESKTOP, Browser  # noqa: E402
from support import Server  # noqa: E402

# Conversations that are begun, and the one that is shown.
BEGUN = ["How do I rename a Git branch?", "What is a lifetime in Rust?", "Regex for an ISO date", "Why is my SQL query slow?"]
SHOWN = [
    "HTTP status codes 200, 404 and 503 in a Markdown table with the columns Code and Meaning. Only the table.",
    "A short Python function that says whether a status code is an error. Only the code.",
]
MOST = {True: 300, False: 4}
KIB = 1024


def main(model, out=ROOT / "docs/page.png"):
    server = Server(model, "--ctx", "4096", key=None)
    browser = Browser()
    try:
        page = browser.open(server.url, scale=2)
        page.locator(".model .name").first.wait_for()
        for question in [*BEGUN, *SHOWN]:
            page.keyboard.press("Control+,")
            page.fill("#temperature", "0")
            page.fill("#max_tokens", str(MOST[question in SHOWN]))
            page.keyboard.press("Escape")
            page.wait_for_selector("dialog[open]", state="detached")
            if question not in SHOWN[1:]:
                page.keyboard.press("Control+Shift+O")
                page.wait_for_selector(".welcome")
            page.fill("#question", question)
            with page.expect_request("**/v1/chat/completions"):
                page.press("#question", "Enter")
            page.wait_for_selector("#send")
        article = page.locator("article.assistant")
        missing = [part for part in ("table", ".code") if article.locator(part).count() == 0]
        assert not missing, f"the answer has no {' and no '.join(missing)}: {article.all_inner_texts()}"
        page.mouse.move(DESKTOP[0] - 1, DESKTOP[1] // 2)
        page.screenshot(path=out, animations="disabled")
        print(f"{out}: {Path(out).stat().st_size / KIB:.0f} KiB")
    finally:
        browser.close()
        server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
