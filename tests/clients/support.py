"""A server in a process of its own, with the built-in model unless told otherwise."""

import asyncio
import os
import subprocess
import threading
import unittest

BACKSTOP = os.environ["BACKSTOP"]
KEY = "sesame"
QUESTION = [{"role": "user", "content": "Once upon a time"}]


class Server:
    def __init__(self, *args, key=KEY):
        command = [BACKSTOP, "serve", "--port", "0", *(["--api-key", key] if key else []), *args]
        environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.url = None
        for line in self.process.stderr:
            if line.startswith("listening on "):
                self.url = line.removeprefix("listening on ").strip()
                break
        assert self.url, "the server did not start"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self):
        """Ends it, and says how it ended."""
        self.process.terminate()
        code = self.process.wait(timeout=120)
        self.process.stderr.close()
        return code


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        # In this mode the loop tells of every callback that takes long, as on a busy machine each does.
        asyncio.get_running_loop().set_debug(False)
