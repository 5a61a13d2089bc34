"""The page about long messages: its program is run, and does what it says."""

import hashlib
import json
import random

from programs import snippets
from test_readme import dial, receive


@snippets("docs/long-messages.md", "archive.py")
def test_archive(page):
    program = page.start("archive.py")
    with dial(program.port(), max_size=None) as client:
        client.send("export")
        assert json.loads(receive(client)) == [{"row": number} for number in range(200_000)]
        upload = random.Random(1).randbytes(5_000_000)  # more than max_message_bytes
        client.send(upload[start : start + 100_000] for start in range(0, len(upload), 100_000))
        assert receive(client) == hashlib.sha256(upload).hexdigest()
        client.send(b"short")
        assert receive(client) == hashlib.sha256(b"short").hexdigest()
        program.wait_for("export to 1: done")
