"""A folder of wheels as `deploy/wheels.sh` makes it, from what is installed here: nothing is downloaded."""

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import parse_tag, sys_tags
from packaging.utils import canonicalize_name

from tests.sim.rig import ROOT

PROJECT = "qsensor-sync"
EXTRAS = {"pi": "", "topside": "topside"}


def fill(folder: Path, role: str) -> None:
    """Put the wheels of one daemon into *folder*, with their hashes."""
    folder.mkdir(exist_ok=True)
    for one in needed(role):
        pack(distribution(one), folder)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"]
    quiet = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *quiet, str(ROOT)], check=True)
    seal = ["sh", str(ROOT / "deploy/wheels.sh"), "seal", role, str(folder)]
    subprocess.run(seal, check=True, stdout=subprocess.DEVNULL)


def needed(role: str) -> set[str]:
    """All that a daemon needs beside the project itself, by name."""
    todo, found = list(_wanted(PROJECT, EXTRAS[role])), set[str]()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _wanted(name, "")
    return found


def _wanted(name: str, extra: str) -> Iterator[str]:
    here = {key: str(value) for key, value in default_environment().items()} | {"extra": extra}
    for text in distribution(name).requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate(here):
            yield canonicalize_name(wanted.name)


def pack(one: Distribution, folder: Path) -> None:
    """Make a wheel again of a package that is installed; its commands, which name this machine, stay out."""
    name = canonicalize_name(one.metadata["Name"]).replace("-", "_")
    files = [PurePosixPath(path) for path in one.files or ()]
    kept = [path for path in files if ".." not in path.parts and path.suffix != ".pyc" and not _ours(path)]
    (record,) = (path for path in files if path.match("*.dist-info/RECORD"))
    wheel = folder / f"{name}-{one.version}-{_tag(one)}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in kept:
            archive.write(str(one.locate_file(path)), str(path))
        archive.writestr(str(record), "".join(f"{path},,\n" for path in [*kept, record]))


def _ours(path: PurePosixPath) -> bool:
    """What an installer has written beside the package."""
    return path.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def _tag(one: Distribution) -> str:
    """The tag of the wheel that it came from; of several, one that fits here."""
    told: Iterable[str] = (one.read_text("WHEEL") or "").splitlines()
    tags = {tag for line in told if line.startswith("Tag: ") for tag in parse_tag(line.removeprefix("Tag: "))}
    return str(next(tag for tag in sys_tags() if tag in tags))
