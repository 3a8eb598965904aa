"""The tests of a file, with what was skipped written down: `run.py FILE SKIPS [-k WORD]…` adds a line to SKIPS for each
test that was skipped, why and which."""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
# What unittest itself ends with, from Python 3.12 on.
NO_TESTS = 5


def main(file, skips, *words):
    arguments = ["discover", "--start-directory", HERE, "--pattern", file, *words]
    result = unittest.main(module=None, argv=["run.py", *arguments], exit=False).result
    with open(skips, "a", encoding="utf-8") as out:
        for test, reason in result.skipped:
            out.write(f"{' '.join(reason.split())}\t{test.id()}\n")
    if not result.wasSuccessful():
        return 1
    return 0 if result.testsRun or result.skipped else NO_TESTS


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
