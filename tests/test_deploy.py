"""What a machine gets: units, the installer, the BlueOS extension; each as far as it can be run here."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from common import VERSION
from pi_daemon.config import Config as PiConfig
from tests.campaigns.systemd import campaign
from tests.sim.booted import NoSystemd
from tests.sim.rig import ROOT, PiDaemon
from tests.sim.wheelhouse import fill, needed
from topside_daemon.config import Config as TopsideConfig

pytestmark = pytest.mark.heavy

DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
SCRIPTS = sorted(DEPLOY.glob("**/*.sh"))
EXPOSURE = 20  # tenths; systemd's own figure
Ran = subprocess.CompletedProcess[str]


def need(tool: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return tool


def run(*command: str | Path, **environment: str) -> Ran:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | environment
    )


def install(*words: str | Path, **environment: str) -> Ran:
    return run("sh", DEPLOY / "install.sh", *words, **({"PYTHON": sys.executable} | environment))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_lets_a_daemon_do_little(unit: Path) -> None:
    """What systemd itself says of the exposure; that the daemon runs so is for the trial below."""
    verdict = run(need("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    understood = run(need("systemd-analyze"), "verify", unit)  # an unknown key is only talked of
    assert (understood.returncode, understood.stdout + understood.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_plain_shell(script: Path) -> None:
    """It is read without a complaint, by shellcheck too where that is installed."""
    assert run("sh", "-n", script).stderr == ""
    if shutil.which("shellcheck"):
        assert run("shellcheck", script).stdout == ""


def rule_complaints(folder: Path, rules: str) -> list[str]:
    """What udev says of a file of rules that it reads in place of the machine's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can show udev other rules")
    for tool in ("udevadm", "unshare"):
        need(tool)
    file = folder / "70-trial.rules"
    file.write_text(rules, encoding="utf-8")
    script = (
        'mount -t tmpfs run /run && mkdir -p /run/udev/rules.d && cp "$0" /run/udev/rules.d && '
        "udevadm test /sys/class/tty/ptmx"
    )
    said = run("unshare", "--mount", "sh", "-c", script, file)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if file.name in line]
    assert "Reading rules file" in lines[0]
    return lines[1:]


def test_udev_accepts_the_rules(tmp_path: Path) -> None:
    """udev has nothing to say of them, and would have of a bad one."""
    rules = (DEPLOY / "qsensor.rules").read_text(encoding="utf-8")
    assert rule_complaints(tmp_path, rules) == []
    assert rule_complaints(tmp_path, rules + 'SUBSYSTEM="tty"\n') != []


@pytest.mark.parametrize("role", ["pi", "topside"])
def test_what_is_carried_is_what_is_locked(role: str) -> None:
    """The wheels of these tests are those of the lock file that an installation is made from."""
    lock = {"pi": "pi.txt", "topside": "runtime.txt"}[role]
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==([\w.]+) ", text, re.MULTILINE))
    assert {(one, version(one)) for one in needed(role)} <= pinned


def uncommented(example: Path) -> Any:
    """An example with every key that it shows."""
    shown = re.sub(r"^# (\w+ = )", r"\1", example.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tomllib.loads(shown)


def keys(of: Any) -> set[str]:
    """All keys of a configuration, dotted."""
    found = {one.name: getattr(of, one.name) for one in msgspec.structs.fields(of)}
    inner = {f"{name}.{key}" for name, one in found.items() if isinstance(one, Struct) for key in keys(one)}
    return {name for name, one in found.items() if not isinstance(one, Struct)} | inner


@pytest.mark.parametrize(("name", "config"), [("pi", PiConfig), ("topside", TopsideConfig)])
def test_an_example_shows_every_key(name: str, config: type[Struct]) -> None:
    """No key of the daemon is missing, none is made up, and what is shown is taken."""
    shown = uncommented(DEPLOY / f"{name}.toml")
    tables = {one for one in shown if isinstance(shown[one], dict)}
    dotted = {f"{table}.{key}" for table in tables for key in shown[table]}
    assert set(shown) - tables | dotted == keys(config())
    msgspec.convert(shown, config)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("carried") / "wheels"
    fill(folder, "pi")
    return folder


def tree(root: Path) -> dict[str, bytes | None]:
    """All files below, with their content, but for the environment's own and the users'."""
    files = (one for one in root.rglob("*") if one.is_file() or one.is_symlink())
    named = {str(one.relative_to(root)): one.read_bytes() if one.is_file() else None for one in files}
    users = re.compile(r"etc/(passwd|group|shadow|gshadow|\.pwd\.lock)-?|opt/qsensor/(?!installed).*")
    return {name: content for name, content in named.items() if not users.fullmatch(name)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Path:
    """A folder that the Pi daemon was installed into, from the wheels alone."""
    need("systemctl")
    folder = tmp_path_factory.mktemp("system")
    done = install("pi", "--wheels", wheels, "--root", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_installation_is_done_once(root: Path, wheels: Path) -> None:
    """Everything is in its place and is enabled; done again, nothing is touched."""
    made = tree(root)
    assert set(made) == {
        "etc/qsensor/pi.toml",
        "etc/qsensor/pi.toml.example",
        "etc/systemd/system/multi-user.target.wants/qsensor-pi.service",
        "etc/systemd/system/qsensor-pi.service",
        "etc/sysusers.d/qsensor.conf",
        "etc/udev/rules.d/70-qsensor.rules",
        "opt/qsensor/installed.txt",
    }
    users = (root / "etc/group").read_text(encoding="ascii")
    assert re.search(r"^dialout:.*:qsensor$", users, re.MULTILINE)
    touched = (root / "opt/qsensor").stat().st_mtime_ns
    done = install("pi", "--wheels", wheels, "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(root) == made and (root / "opt/qsensor").stat().st_mtime_ns == touched


def test_the_environment_holds_what_the_pi_needs_and_stands_alone(root: Path) -> None:
    """The daemon comes from it, not from a checkout; its commands name the place where they are."""
    python = root / "opt/qsensor/bin/python"
    code = "import pi_daemon, importlib.util as util; print(pi_daemon.__file__, util.find_spec('numpy'))"
    said = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(root / "opt/qsensor/lib")) and said.endswith(" None\n")
    assert run(root / "opt/qsensor/bin/pip", "--version").returncode == 0


def test_a_removal_leaves_what_is_not_ours(root: Path, wheels: Path, tmp_path: Path) -> None:
    """Recordings and a changed configuration stay; an unchanged one goes with the rest."""
    here = tmp_path / "system"
    shutil.copytree(root, here, symlinks=True)
    recording = here / "var/lib/qsensor/pi/a/chunk_00000.csv"
    recording.parent.mkdir(parents=True)
    recording.write_bytes(b"rows")
    config = here / "etc/qsensor/pi.toml"
    config.write_text('http = "0.0.0.0:9150"\n', encoding="ascii")
    done = install("remove", "--root", here)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(here) == {
        "etc/qsensor/pi.toml": config.read_bytes(),
        "var/lib/qsensor/pi/a/chunk_00000.csv": b"rows",
    }
    config.unlink()
    shutil.copytree(root / "etc", here / "etc", symlinks=True, dirs_exist_ok=True)
    assert install("uninstall", "pi", "--root", here).returncode == 0
    assert set(tree(here)) == {"var/lib/qsensor/pi/a/chunk_00000.csv"}
    assert not (here / "opt/qsensor").exists() and not (here / "etc/qsensor").exists()


def test_an_example_that_was_not_changed_is_renewed(root: Path, wheels: Path, tmp_path: Path) -> None:
    """An upgrade brings the new example; in place of the configuration only where that is the old example."""
    here = tmp_path / "system"
    shutil.copytree(root, here, symlinks=True)
    config, example = here / "etc/qsensor/pi.toml", here / "etc/qsensor/pi.toml.example"
    newest = (DEPLOY / "pi.toml").read_bytes()
    for own, expected in ((b"# of an older version\n", newest), (b"# mine\n", b"# mine\n")):
        config.write_bytes(own)
        example.write_bytes(b"# of an older version\n")
        shutil.copy2(root / "opt/qsensor/installed.txt", here / "opt/qsensor/installed.txt")
        assert install("pi", "--wheels", wheels, "--root", here).returncode == 0
        assert (config.read_bytes(), example.read_bytes()) == (expected, newest)


def spoiled(wheels: Path, folder: Path, harm: str) -> Path:
    shutil.copytree(wheels, folder)
    if harm == "changed":
        with next(folder.glob("msgspec*")).open("ab") as wheel:
            wheel.write(b"more")
    else:
        (folder / "pi.txt").unlink()
    return folder


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        ("changed", "is not complete, or not for Python 3"),
        ("nothing", 'has no pi.txt: "sh deploy/wheels.sh pi'),
    ],
)
def test_a_bad_folder_of_wheels_changes_nothing(wheels: Path, tmp_path: Path, harm: str, names: str) -> None:
    """What was carried is held against its hashes; else nothing is installed."""
    need("systemctl")
    here = tmp_path / "system"
    here.mkdir()
    done = install("pi", "--wheels", spoiled(wheels, tmp_path / "wheels", harm), "--root", here)
    assert done.returncode != 0
    assert names in done.stderr.splitlines()[-1]
    assert tree(here) == {} and not (here / "opt/qsensor").exists()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], "usage:"),
        (["moon"], "usage:"),
        (["--wheels", "/nowhere"], "--wheels /nowhere: no such folder"),
        (["pi", "--root"], "--root : no such folder"),
    ],
)
def test_a_wrong_call_is_one_line(words: list[str], names: str) -> None:
    done = install(*words)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(names)


def test_what_the_machine_lacks_is_one_line_with_the_cure(tmp_path: Path) -> None:
    """Not root, no systemd, no Python: each is said before anything is done."""
    if os.geteuid() == 0 and shutil.which("setpriv"):
        stranger = ["setpriv", "--reuid=65534", "--clear-groups", "sh"]
        shutil.copytree(DEPLOY, tmp_path / "deploy")
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        script = subprocess.run(
            ["cat", DEPLOY / "install.sh"], capture_output=True, text=True, check=True
        ).stdout
        done = run(*stranger, "-c", script, "deploy/install.sh", "pi")
        assert done.stderr == "only root may do this: sudo sh deploy/install.sh pi\n"
    if os.geteuid() == 0 and not Path("/run/systemd/system").exists():
        assert install("pi").stderr.startswith("this machine is not run by systemd: start the daemon in a ")
    done = install("pi", "--root", tmp_path, PYTHON="/nowhere/python3")
    assert done.returncode != 0
    assert "/nowhere/python3 is not there or does not run" in done.stderr


def test_a_service_lives_under_a_real_systemd(wheels: Path, tmp_path: Path) -> None:
    """The Pi's, by the short form of `make systemd`: installed, hung, killed, stopped, removed."""
    try:
        assert campaign(tmp_path, ("pi",), wheels, short=True) == []
    except NoSystemd as error:
        pytest.skip(str(error))


# --- BlueOS ---------------------------------------------------------------------------------------------

BLUEOS = DEPLOY / "blueos"
ARGUMENT = re.compile(r'^ARG (\w+)="(.*)"$', re.MULTILINE)
LABEL = re.compile(r"""^LABEL (\w+)=(?:'([^']*)'|"((?:\\.|[^"\\])*)")$""", re.MULTILINE)


def labels() -> dict[str, str]:
    """The labels as Docker would set them, with the defaults of their arguments."""
    text = (BLUEOS / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    arguments = dict(ARGUMENT.findall(text))
    return {
        name: literal or re.sub(r"\$(\w+)", lambda one: arguments[one[1]], filled.replace('\\"', '"'))
        for name, literal, filled in LABEL.findall(text)
    }


def test_blueos_can_read_the_labels() -> None:
    """Each that it knows is there, of its type, and all that is JSON is JSON."""
    found = labels()
    assert found["version"] == VERSION
    assert found["type"] in ("device-integration", "example", "theme", "other", "tool", "education")
    assert re.fullmatch(r"core >= \d+\.\d+", found["requirements"])
    assert found["readme"].startswith("https://") and "{tag}/deploy/blueos/README.md" in found["readme"]
    assert [set(one) for one in json.loads(found["authors"])] == [{"name", "email"}]
    assert set(json.loads(found["company"])) == {"about", "name", "email"}
    links = json.loads(found["links"])
    assert links.keys() <= {"website", "source", "support", "documentation"}
    assert all(one.startswith("https://") for one in links.values())
    tags = json.loads(found["tags"])
    assert 0 < len(tags) <= 10 and all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in tags)
    assert found.keys() == {
        *("version", "type", "requirements", "readme", "authors", "company", "links", "tags", "permissions")
    }


def test_the_store_can_read_its_entry() -> None:
    entry = json.loads((BLUEOS / "metadata.json").read_text(encoding="utf-8"))
    assert entry.keys() == {"name", "website", "docker", "description"}
    assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", entry["docker"])


def extension_config() -> Any:
    return tomllib.loads((BLUEOS / "pi.toml").read_text(encoding="utf-8"))


def test_the_ports_of_the_container_are_those_of_the_daemon() -> None:
    """Every port is exposed, and fixed on the vehicle, because topside must know it."""
    asked = json.loads(labels()["permissions"])
    config = extension_config()
    ports = {
        *(f"{config[key].rpartition(':')[2]}/tcp" for key in ("http", "bus")),
        f"{config['time'].rpartition(':')[2]}/udp",
    }
    bound = asked["HostConfig"]["PortBindings"]
    assert asked["ExposedPorts"] == {port: {} for port in ports}
    assert bound == {port: [{"HostPort": port.partition("/")[0]}] for port in ports}
    text = (BLUEOS / "Dockerfile").read_text(encoding="utf-8")
    (exposed,) = re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)
    assert set(exposed.split()) == ports


def test_the_container_gets_serial_ports_and_a_folder() -> None:
    """Docker's own grammar of the rules; the folder is where the entry point keeps all."""
    host = json.loads(labels()["permissions"])["HostConfig"]
    rule = re.compile(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}")
    assert all(rule.fullmatch(one) for one in host["DeviceCgroupRules"])
    assert set(host["Binds"]) == {"/usr/blueos/extensions/qsensor:/data", "/dev:/dev"}
    assert "QSENSOR_DATA:-/data}" in (BLUEOS / "entry.sh").read_text(encoding="ascii")


def test_the_extension_is_paired_unless_told_otherwise() -> None:
    """Its configuration is one that the daemon takes, and not open to whoever is on the network."""
    config = extension_config()
    assert config["security"] == "paired"
    assert set(config) <= set(PiConfig.__struct_fields__)


def test_hadolint_has_nothing_to_say() -> None:
    assert run(need("hadolint"), BLUEOS / "Dockerfile").stdout == ""


@pytest.fixture
def container(root: Path, tmp_path: Path) -> Iterator[PiDaemon]:
    """The entry point where there is nothing but what the image has, with no right but what it has."""
    place = tmp_path / "qsensor"
    place.mkdir()
    shutil.copy(BLUEOS / "entry.sh", place)
    pi = PiDaemon(tmp_path / "data")
    text = (BLUEOS / "pi.toml").read_text(encoding="utf-8")
    for asked, free in ((9150, pi.http), (9151, pi.bus), (9152, 0)):
        text = text.replace(f"0.0.0.0:{asked}", f"127.0.0.1:{free}")
    (place / "pi.toml").write_text(text, encoding="utf-8")
    rights = ["setpriv", "--bounding-set=-all,+sys_nice", "--inh-caps=-all"] if os.geteuid() == 0 else []
    with (
        (tmp_path / "data.log").open("wb") as log,
        subprocess.Popen(
            [*rights, "sh", place / "entry.sh"],
            cwd="/",
            stdout=log,
            stderr=log,
            env={"PATH": f"{root / 'opt/qsensor/bin'}:/usr/bin:/bin", "QSENSOR_DATA": str(pi.data)},
        ) as pi.process,
    ):
        yield pi
        assert pi.stop() == 0


def test_the_entry_point_serves_at_once(container: PiDaemon) -> None:
    """Health within a second of the start, the configuration where the user finds it, an orderly end."""
    begun_s = time.monotonic()
    container.wait_for(lambda: container.get("/health")[1]["status"] == "online")
    took_s = time.monotonic() - begun_s
    assert took_s < max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1))
    assert (container.data / "pi.toml").exists() and (container.data / "recordings").is_dir()
