"""The build backend: what is compiled when, and what that takes. What is compiled runs in `tox -e compiled`."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest
from test_packaging import backend_is_new_enough

from gowsev.testing import TIMEOUT

ROOT = Path(__file__).resolve().parent.parent
HOOK = "import sys; sys.path.insert(0, 'building'); import gowsev_backend as backend; "
NO_MYPYC = "sys.modules['mypyc'] = None; "

#: A compiler that takes everything, one that takes nothing, and one that is not there.
WORKS, FAILS, MISSING = "true", "false", "no-such-compiler"

pytestmark = pytest.mark.skipif(not backend_is_new_enough(), reason="no setuptools as new as pyproject.toml wants it")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is built."""
    for name in ("gowsev", "building"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def unpacked(checkout):
    """The same, unpacked from a source distribution."""
    (checkout / "PKG-INFO").touch()
    return checkout


def run(folder, code, *, wish=None, compiler=WORKS, **more):
    ours = ("GOWSEV_BUILD", "CC", "SOURCE_DATE_EPOCH")
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    environ |= {"CC": compiler} | ({} if wish is None else {"GOWSEV_BUILD": wish}) | more
    return subprocess.run(
        [sys.executable, "-c", HOOK + code], cwd=folder, env=environ,
        capture_output=True, text=True, timeout=TIMEOUT * 4, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("from_sdist", "wish", "compiler", "compiled"),
    [
        (False, None, WORKS, False),
        (False, "pure", WORKS, False),
        (False, "compiled", WORKS, True),
        (False, "compiled", MISSING, True),  # and fails
        (True, None, WORKS, True),
        (True, None, FAILS, False),
        (True, None, MISSING, False),
        (True, "pure", WORKS, False),
        (True, "compiled", FAILS, True),
    ],
)
def test_only_a_build_that_compiles_asks_for_mypy(checkout, from_sdist, wish, compiler, compiled):
    if from_sdist:
        (checkout / "PKG-INFO").touch()
    code = "print([backend.get_requires_for_build_wheel(), backend.get_requires_for_build_editable()])"
    done = run(checkout, code, wish=wish, compiler=compiler)
    assert done.returncode == 0, done.stderr
    wheel, editable = eval(done.stdout.splitlines()[-1])
    assert wheel == editable
    assert any(line.startswith("mypy~=") for line in wheel) is compiled


@pytest.mark.long
def test_the_same_source_makes_the_same_bytes(checkout, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "somewhere else"
    shutil.copytree(checkout, other, copy_function=shutil.copyfile)  # with times of its own
    for path in (other / "gowsev").rglob("*.py"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
        path.chmod(0o600)
    made = []
    for folder in (checkout, other):
        done = run(folder, "backend.build_sdist('.'); backend.build_wheel('.')", SOURCE_DATE_EPOCH="1700000000")
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]})
    assert len(made[0]) == 2
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    with tarfile.open(next(other.glob("*.tar.gz"))) as archive:
        assert {member.mtime for member in archive} == {1_700_000_000}
        assert {(member.uid, member.uname) for member in archive} == {(0, "")}
        assert {oct(member.mode) for member in archive} == {"0o644", "0o755"}


def test_an_address_that_is_known_is_in_the_metadata_and_in_links(checkout):
    place = checkout / "building" / "gowsev_address.py"
    text, found = re.subn(
        '^ADDRESS = ".*"$', 'ADDRESS = "https://code.example/gowsev"', place.read_text("utf-8"), flags=re.M
    )
    assert found == 1
    place.write_text(text)
    done = run(checkout, "print(backend.prepare_metadata_for_build_wheel('.'))")
    assert done.returncode == 0, done.stderr
    made = Parser().parsestr((checkout / done.stdout.split()[-1] / "METADATA").read_text("utf-8"))
    assert "Issues, https://code.example/gowsev/issues" in made.get_all("Project-URL")
    assert "](https://code.example/gowsev/blob/main/docs/channels.md)" in made.get_payload()
    assert "(`docs/" not in made.get_payload()


def test_a_time_that_is_none_is_refused(checkout):
    done = run(checkout, "backend.build_sdist('.')", SOURCE_DATE_EPOCH="yesterday")
    assert done.returncode != 0
    assert "SOURCE_DATE_EPOCH must be a number of seconds, not 'yesterday'" in done.stderr


def test_a_wish_that_is_none_is_refused(checkout):
    done = run(checkout, "backend.get_requires_for_build_wheel()", wish="yes")
    assert done.returncode != 0
    assert "GOWSEV_BUILD must be compiled, pure or unset, not 'yes'" in done.stderr


def test_what_cannot_be_compiled_is_pure(unpacked):
    done = run(unpacked, NO_MYPYC + "backend.build_wheel('.')")
    assert done.returncode == 0, done.stderr
    assert "gowsev could not be compiled, and is installed as pure Python" in done.stderr
    assert [path.name.endswith("-py3-none-any.whl") for path in unpacked.glob("*.whl")] == [True]


def test_what_must_be_compiled_fails_where_it_cannot_be(unpacked):
    done = run(unpacked, NO_MYPYC + "backend.build_wheel('.')", wish="compiled")
    assert done.returncode != 0
    assert "mypyc" in done.stderr
    assert not list(unpacked.glob("*.whl"))


def test_a_pure_editable_install_removes_what_was_compiled_in_place(checkout):
    left = [checkout / "gowsev" / "wire" / "frames.cpython-311-x86_64-linux-gnu.so", checkout / "gowsev__mypyc.so"]
    for path in left:
        path.touch()
    done = run(checkout, "backend.build_editable('.')")
    assert done.returncode == 0, done.stderr
    assert [path for path in left if path.exists()] == []


def test_the_extensions_are_for_a_build_that_compiles_only(checkout):
    done = run(checkout, "print(backend.extensions(), sorted(backend.modules())[-1])", wish="compiled")
    assert done.stdout.split() == ["[]", "gowsev/wire/protocol.py"]
