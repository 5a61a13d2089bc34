"""The public address of the project, in its one place. It is empty until it is known, and then nothing names it.

What is made of it: the project's addresses in the metadata, and full addresses for the README's links in the
description that a package index shows (`setup.py`).
"""

from __future__ import annotations

#: Of the repository on a code host, without a slash at its end, such as https://code.example/NAME/gowsev.
ADDRESS = ""


def project_urls():
    """Return the addresses that the metadata name, by label."""
    if not ADDRESS:
        return {}
    return {
        "Source": ADDRESS,
        "Changelog": file("CHANGELOG.md"),
        "Issues": f"{ADDRESS}/issues",
        "Security": file("SECURITY.md"),
    }


def file(name):
    """Return the address of a file of the repository."""
    return f"{ADDRESS}/blob/main/{name}"
