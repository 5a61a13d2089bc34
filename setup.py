"""What setup.cfg cannot say: the description that a package index shows, which is the README, and what is compiled.

An index shows the text alone. The README's links into the repository would lead nowhere there, nor would those to its
own headings, so they become full addresses, once the project has one (`building/gowsev_address.py`). Until then they
become the name of the file, which the source distribution holds, or plain text. Pictures are left out.
"""

import re
import sys
from pathlib import Path

from setuptools import setup

#: `[text](target)` and `![text](target)`, but for targets that are addresses.
_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https://)([^)#]*)[^)]*\)(\n\n)?")


def _without_link(link: re.Match[str]) -> str:
    picture, text, file, paragraph = link.groups()
    if picture:
        return ""
    if file and ADDRESS:
        return f"[{text}]({address_of(file)})" + (paragraph or "")
    return (text if not file or file in text else f"{text} (`{file}`)") + (paragraph or "")


_WHERE = (
    "\n## Files\n\nFiles that are named here (in `docs/`, `examples/` and elsewhere) are in the source distribution.\n"
)


def description(readme: str) -> str:
    # Code is every second part, and stays as it is.
    parts = re.split(r"(^```.*?^```$)", readme, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if number % 2 else _LINK.sub(_without_link, part) for number, part in enumerate(parts)) + _WHERE


# The backend is there already where it runs this; not so for who runs setuptools by itself, which builds pure Python.
sys.path.append(str(Path(__file__).resolve().parent / "building"))
from gowsev_address import ADDRESS, project_urls  # noqa: E402
from gowsev_address import file as address_of  # noqa: E402
from gowsev_backend import extensions  # noqa: E402

setup(
    long_description=description(Path("README.md").read_text("utf-8")),
    project_urls=project_urls(),
    ext_modules=extensions(),
)
