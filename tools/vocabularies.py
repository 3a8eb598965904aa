"""Fill target/vocabularies with llama.cpp's vocabularies: GGUF files without weights, texts, and the ids that Hugging Face's
tokenizers give them.

    python tools/vocabularies.py      # downloads 77 MB by pip, from PyPI; half a minute

`cargo test --test vocabularies` compares them with what the files' metadata give here.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "target" / "vocabularies"
PACKAGE = "llama-cpp-python"
REQUIREMENT = f"{PACKAGE}==0.3.36 --hash=sha256:832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e\n"
FOLDER = "vendor/llama.cpp/models/ggml-vocab-"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(REQUIREMENT)
        # pip refuses a package whose hash is another.
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, "--require-hashes",
                        "-r", requirements, "-d", scratch], check=True)
        (package,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(package) as archive:
            for member in archive:
                if member.isfile() and FOLDER in member.name:
                    (OUT / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    files = sorted(OUT.iterdir())
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files)} bytes in {OUT}")
    assert any(f.suffix == ".out" for f in files)


if __name__ == "__main__":
    main()
