"""The two distributions, built as for a release but without network: what is in them, by rule, and their metadata."""

import configparser
import fnmatch
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from fresh_install import floors, requirements

import gowsev
from gowsev.testing import TIMEOUT

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = runpy.run_path(str(ROOT / "building" / "gowsev_address.py"))["ADDRESS"]

#: Made by the build itself, from the rest.
GENERATED = {"PKG-INFO", *(f"gowsev.egg-info/{name}" for name in (
    "PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt"
))}  # fmt: skip

#: What git holds and nobody needs who has no git.
OF_GIT = {".gitignore", ".ci/run"}
FOLDER_OF_A_CODE_HOST = ".github/"

#: What the metadata lack as long as no address of the project is known.
NO_ADDRESS = ("Home-page", "Download-URL", "Project-URL", "Author-email", "Maintainer-email")


def backend_is_new_enough():
    """Whether what `pyproject.toml` asks for to build is here, since a test does not download anything."""
    (required,) = re.findall(r'"setuptools>=([0-9]+)[0-9.]*"', (ROOT / "pyproject.toml").read_text())
    try:
        return int(version("setuptools").split(".")[0]) >= int(required)
    except PackageNotFoundError:
        return False


def run(*command, cwd):
    environ = {**os.environ, "GOWSEV_BUILD": "pure"}
    result = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, check=False, text=True, timeout=TIMEOUT * 4
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_of_the_checkout():
    """What git holds here, or would hold."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def files_of_an_unpacked_source():
    """The same, where there is no git: what `SOURCES.txt` names is what the source distribution brought along."""
    listed = (ROOT / "gowsev.egg-info" / "SOURCES.txt").read_text("utf-8").splitlines()
    return {name for name in listed if not name.startswith("gowsev.egg-info/")} - {"PKG-INFO"}


IS_CHECKOUT = (ROOT / ".git").exists()
FILES = files_of_the_checkout() if IS_CHECKOUT else files_of_an_unpacked_source()


def junk():
    """Names of what lies about in a checkout: something for each pattern of `.gitignore`, in every directory."""
    patterns = [
        line for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line and not line.startswith("#")
    ]
    folders = {str(Path(name).parent) for name in FILES}
    for pattern in patterns:
        name = pattern.rstrip("/").replace("*", "junk").replace("[cod]", "c")
        if pattern.endswith("/"):
            name += "/junk.py"
        if "/" in pattern.rstrip("/"):
            yield name  # a pattern with a slash is of one place
        elif pattern not in ("build/", "dist/", "*.egg-info/"):  # which nobody makes but at the top
            yield from (f"{folder}/{name}" for folder in sorted(folders))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, as it is after some work in it."""
    if not backend_is_new_enough():
        pytest.skip("no setuptools here as new as pyproject.toml wants it")
    source = tmp_path_factory.mktemp("source") / "checkout"
    for name in FILES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for name in junk() if IS_CHECKOUT else ():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("not for users")
    (source / "gowsev" / "scratch.txt").write_text("not for users")
    (source / "scratch.py").write_text("not for users")
    return source


def built_wheel(source, target):
    run(
        sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(target), cwd=target,
    )  # fmt: skip
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """The source distribution, unpacked."""
    target = tmp_path_factory.mktemp("sdist")
    backend = (
        "import sys; sys.path.insert(0, 'building'); import gowsev_backend; gowsev_backend.build_sdist(sys.argv[1])"
    )
    run(sys.executable, "-c", backend, str(target), cwd=source)
    (path,) = target.iterdir()
    assert path.name == f"gowsev-{gowsev.__version__}.tar.gz"
    with tarfile.open(path) as archive:
        archive.extractall(target, filter="data")
    return target / f"gowsev-{gowsev.__version__}"


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    with built_wheel(source, tmp_path_factory.mktemp("wheel")) as archive:
        yield archive


INFO = f"gowsev-{gowsev.__version__}.dist-info/"


@pytest.fixture(scope="module")
def metadata(wheel):
    return Parser().parsestr(wheel.read(f"{INFO}METADATA").decode())


# -- contents ----------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_the_package_its_marker_and_its_licence_only(wheel):
    modules = {name for name in FILES if fnmatch.fnmatch(name, "gowsev/*.py")}
    of_the_format = {"METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE"}
    assert set(wheel.namelist()) == {*modules, "gowsev/py.typed"} | {INFO + name for name in of_the_format}
    assert wheel.read(f"{INFO}licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert all(wheel.read(name) == (ROOT / name).read_bytes() for name in modules)


def test_the_wheel_is_for_every_platform(wheel):
    assert Parser().parsestr(wheel.read(f"{INFO}WHEEL").decode()).get_all("Tag") == ["py3-none-any"]


def test_the_source_distribution_holds_what_git_holds(sdist):
    held = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    of_git = OF_GIT | {name for name in FILES if name.startswith(FOLDER_OF_A_CODE_HOST)}
    assert held == FILES - of_git | GENERATED
    # setuptools writes this one anew, without its comments, and with a section of its own.
    assert [name for name in held - GENERATED - {"setup.cfg"} if differs(sdist / name, ROOT / name)] == []
    assert settings(sdist / "setup.cfg") == settings(ROOT / "setup.cfg")


def settings(path):
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    parser.read(path, "utf-8")
    return {name: dict(section) for name, section in parser.items() if name != "egg_info"}


def differs(one, other):
    return one.read_bytes() != other.read_bytes()


@pytest.mark.skipif(not IS_CHECKOUT, reason="no .gitignore here")
def test_there_was_junk_to_be_left_out(source):
    # Lest the tests above pass in a clean copy.
    names = set(junk())
    assert {"docs/.coverage", "gowsev/__pycache__/junk.py", "tests/junk.pyc"} <= names
    assert all((source / name).exists() for name in names)


def test_the_source_distribution_makes_the_same_wheel(sdist, wheel, tmp_path):
    with built_wheel(sdist, tmp_path) as again:
        assert sorted(again.namelist()) == sorted(wheel.namelist())
        assert [name for name in wheel.namelist() if again.read(name) != wheel.read(name)] == []


# -- metadata ----------------------------------------------------------------------------------------------------------


def test_the_metadata_say_what_the_package_says(metadata):
    assert metadata["Name"] == "gowsev"
    assert metadata["Version"] == gowsev.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[A-Za-z-]+", line)[0] for line in needed} == {"gevent", "gevent-websocket", "websockets"}
    if not ADDRESS:
        assert [field for field in NO_ADDRESS if metadata[field]] == []


def test_the_version_is_in_one_place():
    held = [name for name in FILES if name.endswith((".py", ".cfg", ".toml", ".ini", ".in"))]
    pattern = re.compile(rf"(?<![\w.]){re.escape(gowsev.__version__)}(?![\w.])")
    found = [name for name in held if pattern.search((ROOT / name).read_text("utf-8"))]
    assert found == ["gowsev/version.py"]


def test_extras_are_told_by_the_name_that_users_write(metadata):
    written = list(settings(ROOT / "setup.cfg")["options.extras_require"])
    assert metadata.get_all("Provides-Extra") == written
    # PEP 685: names that are normal already, so that none is told under another.
    assert written == [re.sub(r"[-_.]+", "-", name).lower() for name in written]


def test_each_requirement_of_a_user_has_one_lowest_version(metadata):
    lowest = floors(requirements())
    told = [line for line in metadata.get_all("Requires-Dist") if not re.search(r'extra == "(docs|test)"', line)]
    assert {re.match(r"[\w-]+", line)[0] for line in told} <= set(lowest)


@pytest.mark.parametrize(
    "asked", [{"relay": ["redis"]}, {"": ["redis>=5", "redis>=6"]}, {"": ["redis>=5"], "test": ["redis>=6"]}]
)
def test_a_requirement_without_one_lowest_version_is_found(asked):
    with pytest.raises(ValueError, match="redis"):
        floors(asked)


def test_lowest_versions_are_found_behind_extras():
    assert floors({"": ["gunicorn[gevent]>=22"], "test": ["gunicorn[gevent]>=22", "pytest"]}) == {"gunicorn": "22"}


# -- the description that a package index shows ------------------------------------------------------------------------

README = (ROOT / "README.md").read_text("utf-8")


def test_the_description_is_the_readme_without_links_that_lead_nowhere(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload()
    code = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert code.findall(description) == code.findall(README)
    prose = code.sub("", description)
    targets = re.findall(r"\]\(([^)]+)\)", prose)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "![" not in prose
    assert "](docs/" in code.sub("", README), "there was nothing to take out"


def test_files_that_the_description_names_are_in_the_source_distribution(metadata, sdist):
    named = re.findall(r"\(`([\w./-]+/[\w.-]+)`\)", metadata.get_payload())
    assert named
    assert [name for name in named if not (sdist / name).is_file()] == []


def test_the_description_loses_no_word_but_those_of_pictures(metadata):
    def words(text):
        text = re.sub(r"!\[[^\]]+\]\([^)]*\)\n*", "", text)
        return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).split()

    readme, description = words(README), iter(words(metadata.get_payload()))
    missing = [word for word in readme if not any(is_same(word, other) for other in description)]
    assert missing == []


def is_same(word, other):
    return word == other or (word[-1] in ".,:" and other.endswith("`)" + word[-1]))
