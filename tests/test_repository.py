"""The frame around the code: set-up, lock files, units, and what must never be committed."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
UNITS = sorted((ROOT / "deploy").glob("*.service"))

# Written so that no pattern finds itself.
UNWANTED = re.compile(
    r"py[p]i\.org|python[h]osted|registry\.np[m]js"
    r"|(?<![\w.])/(?:work|root)\b|/opt/(?:pypi|wheels)\b|shared/[r]eference"
    r"|\b(?:TO[D]O|FIX[M]E|X[X]X|breakpoint\()|^(?:<{7}|={7}|>{7})",
    re.MULTILINE,
)


def repository_files() -> list[Path]:
    """Every file that is tracked, or would be by the next `git add --all`."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_registry_or_a_machine_or_carries_a_leftover() -> None:
    """What is committed means the same on every machine, and is finished."""
    findings = [
        f"{path.relative_to(ROOT)}: {found.group()!r}"
        for path in repository_files()
        for found in UNWANTED.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert findings == []


@pytest.mark.parametrize(
    "text", ["see /wo" + "rk/main", "--find-links /opt/" + "wheels", "# TO" + "DO later", "<" * 7 + " HEAD"]
)
def test_an_unwanted_text_is_found(text: str) -> None:
    """The patterns above do match what they are meant to keep out."""
    assert UNWANTED.search(text)


def locked(lock: Path) -> dict[str, str]:
    """Each pinned requirement of a lock file, `name==version`, with the options and markers behind it."""
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [
        line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    return {line.split()[0]: line for line in lines}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    """A lock file holds nothing but exact versions with sha256 sums: no address, no path, no option."""
    entry = re.compile(r"[a-z0-9-]+==[\w.]+( ; [^\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+")
    assert [line for line in locked(lock).values() if not entry.fullmatch(line)] == []


def test_each_lock_adds_to_the_one_before_and_changes_nothing() -> None:
    """What is tested is what is deployed: the same versions with the same sums."""

    def sums(lock: str) -> dict[str, list[str]]:
        return {
            name: line.split("--hash=")[1:] for name, line in locked(ROOT / "requirements" / lock).items()
        }

    for less, more in pairwise(map(sums, ("pi.txt", "runtime.txt", "dev.txt", "peers.txt"))):
        assert less == {name: more.get(name) for name in less}


def test_every_declared_dependency_is_locked() -> None:
    """A dependency added to pyproject.toml reaches the lock file of its kind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def missing(wanted: list[str], lock: str) -> list[str]:
        names = {name.partition("==")[0] for name in locked(ROOT / "requirements" / lock)}
        return [each for each in wanted if re.split(r"[<>=~!\[ ;]", each)[0] not in names]

    extras = project["optional-dependencies"]
    for lock, wanted in {
        "pi.txt": project["dependencies"],
        "runtime.txt": project["dependencies"] + extras["topside"],
        "dev.txt": extras["dev"] + extras["topside"] + extras["parquet"] + extras["dask"],
        "peers.txt": extras["dev"] + extras["peers"],
    }.items():
        assert missing([one for one in wanted if not one.startswith(project["name"])], lock) == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit(unit: Path) -> None:
    """systemd-analyze has nothing to say: unknown keys only make it talk, its exit code stays 0."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    verdict = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (verdict.stdout + verdict.stderr, verdict.returncode) == ("", 0)


def test_both_daemons_have_a_unit() -> None:
    """Each unit starts the daemon it is named for."""
    started = {
        unit.stem: re.findall(r"^ExecStart=.* -m (\w+)", unit.read_text(encoding="utf-8"), re.MULTILINE)
        for unit in UNITS
    }
    assert started == {"qsensor-pi": ["pi_daemon"], "qsensor-topside": ["topside_daemon"]}


class Machine:
    """A checkout on a machine whose PATH holds nothing but the interpreters given to it."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a checkout"
        self._programs = folder / "programs"
        self._programs.mkdir()
        shutil.copytree(ROOT / "requirements", self.checkout / "requirements")
        shutil.copy(ROOT / "Makefile", self.checkout)

    def has(self, name: str, script: str) -> None:
        """Install a program that is the real interpreter behind a line of shell."""
        program = self._programs / name
        program.write_text(f"#!/bin/sh\nreal='{sys.executable}'\n{script}\n", encoding="utf-8")
        program.chmod(0o755)

    def run(self, *command: str, path: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.checkout,
            env={"PATH": f"{self._programs}:{path}", "HOME": str(self.checkout)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        make = shutil.which("make")
        if make is None:
            pytest.skip("make is not installed")
        return self.run(make, *words)

    def refusal(self, *words: str) -> str:
        """The only line printed by a make that fails before it changes anything."""
        ended = self.make(*words)
        assert ended.returncode != 0
        assert ended.stdout == ""
        assert not (self.checkout / ".venv").exists()
        (line,) = ended.stderr.splitlines()
        return line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


HEALTHY = 'exec "$real" "$@"'
TOO_OLD = """[ "$1" = --version ] && echo Python 3.9.2 && exit
exec "$real" -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])' "$2" """
WITHOUT_VENV = """[ "$1" = -c ] || exec "$real" "$@"
exec "$real" -c 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv[1])' "$2" """


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_no_python_is_one_line_with_the_cure(machine: Machine, target: str) -> None:
    """Whichever command comes first, a machine without python3 is told what to install."""
    assert '"sudo apt install python3 python3-venv"' in machine.refusal(target)


def test_an_old_python_is_one_line_with_its_version_and_the_cure(machine: Machine) -> None:
    """The version found and the version needed stand beside the command."""
    machine.has("python3", TOO_OLD)
    line = machine.refusal("demo")
    assert "python3 is Python 3.9.2, 3.11 or newer is needed" in line
    assert '"sudo apt install python3.11 python3.11-venv"' in line


@pytest.mark.parametrize(
    ("name", "package"), [("python3", "python3-venv"), ("python3.12", "python3.12-venv")]
)
def test_no_venv_module_is_one_line_with_the_cure(machine: Machine, name: str, package: str) -> None:
    """Debian keeps ensurepip in a package of its own, one for each interpreter."""
    machine.has(name, WITHOUT_VENV)
    assert f'{name} has no venv module: "sudo apt install {package}"' in machine.refusal("demo")


def test_a_newer_python_beside_an_old_one_is_used(machine: Machine) -> None:
    """An old python3 does not matter where python3.12 is installed too."""
    machine.has("python3", TOO_OLD)
    machine.has("python3.12", HEALTHY)
    answer = machine.run("/bin/sh", "requirements/install.sh", "missing")
    assert (answer.stdout + answer.stderr, answer.returncode) == ("", 0)


@pytest.mark.parametrize("name", ["nowhere/python3.12", "python3.12"])
def test_a_named_python_is_the_one_that_is_asked(machine: Machine, name: str) -> None:
    """PYTHON= is not passed over in silence when it does not run, though python3 would."""
    machine.has("python3", HEALTHY)
    assert f"{name} is not there or does not run" in machine.refusal("demo", f"PYTHON={name}")


def test_set_up_replaces_a_half_made_environment_runs_once_and_shows_why_it_fails(machine: Machine) -> None:
    """What an interrupted set-up left behind is not trusted; a complete one is not repeated."""
    machine.has("python3", HEALTHY)
    (machine.checkout / ".venv/bin").mkdir(parents=True)
    (machine.checkout / ".venv/bin/python").write_text("cut sho", encoding="utf-8")
    (machine.checkout / "requirements/runtime.txt").write_text("", encoding="utf-8")
    (machine.checkout / "requirements/dev.txt").write_text(
        f"--no-index\nnothing==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8"
    )

    def set_up(lock: str) -> subprocess.CompletedProcess[str]:
        return machine.run("/bin/sh", "requirements/install.sh", lock, path="/usr/bin:/bin")

    done, again, failed = set_up("runtime"), set_up("runtime"), set_up("dev")
    assert (done.stdout, done.stderr, done.returncode) == ("setting up .venv ...\n", "", 0)
    assert (again.stdout, again.stderr, again.returncode) == ("", "", 0)
    assert "nothing==1" in failed.stderr
    assert failed.returncode != 0


def test_a_wheel_holds_the_daemons_and_their_kernel(tmp_path: Path) -> None:
    """Built as a user would, installed somewhere else, and run from there; nothing but the packages is in
    it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    quiet = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", tmp_path, ROOT], check=True)
    [wheel] = tmp_path.glob("qsensor_sync-*.whl")
    place = tmp_path / "site"
    subprocess.run([*pip, "install", *quiet, "--target", place, wheel], check=True)
    packages = {one.name for one in place.iterdir() if not one.name.endswith(".dist-info")}
    assert packages == {"common", "pi_daemon", "topside_daemon"}
    library = place / "topside_daemon" / "fusion" / "kernel" / "kernel.so"
    assert library.exists() == ("none-any" not in wheel.name) == (shutil.which("cc") is not None)
    script = (
        "from topside_daemon.fusion.kernel import choose_kernel; import common; "
        "print(choose_kernel().name, common.__file__)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=True
    ).stdout.split()
    assert said == ["compiled" if library.exists() else "numpy", str(place / "common" / "__init__.py")]


def test_the_reference_is_that_of_the_types() -> None:
    """Made anew, `deploy/reference.md` is what is committed: otherwise `make reference` is due."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "deploy" / "reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "deploy" / "reference.md").read_text(encoding="utf-8") == reference.text()
