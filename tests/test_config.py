"""The example configurations and the types behind them say the same; `--check-config` says the rest."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct, structs

import pi_daemon.__main__
import pi_daemon.config
import topside_daemon.__main__
import topside_daemon.config
from common.service import DaemonConfig, read_config
from tests.sim.outsider import ROOT, call

KINDS: dict[str, type[DaemonConfig]] = {
    "pi": pi_daemon.config.Config,
    "topside": topside_daemon.config.Config,
}
MAINS = {"pi": pi_daemon.__main__.main, "topside": topside_daemon.__main__.main}
both = pytest.mark.parametrize("name", KINDS)


def uncommented(name: str) -> str:
    """The example with every key that it has, turned on."""
    text = (ROOT / "deploy" / f"{name}.toml").read_text(encoding="utf-8")
    return re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)


def flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def defaults(config: Struct, path: str = "") -> Iterator[tuple[str, Any]]:
    for field in structs.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Struct):
            yield from defaults(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value


@both
def test_every_key_of_the_example_is_taken(tmp_path: Path, name: str) -> None:
    """All of them turned on at once make a configuration."""
    file = tmp_path / f"{name}.toml"
    file.write_text(uncommented(name), encoding="utf-8")
    config = read_config(file, KINDS[name], {})
    assert dict(defaults(config)).keys() == dict(flat(tomllib.loads(uncommented(name)))).keys()


@both
def test_the_example_as_it_is_changes_nothing(name: str) -> None:
    """Copied and left alone, it is the configuration without a file."""
    assert read_config(ROOT / "deploy" / f"{name}.toml", KINDS[name], {}) == KINDS[name]()


@both
def test_what_the_example_calls_defaults_are_the_defaults(name: str) -> None:
    """Those that are unset have an example's value instead, and nothing else differs."""
    shown = msgspec.convert(tomllib.loads(uncommented(name)), KINDS[name])
    real = {key: value for key, value in defaults(KINDS[name]()) if value is not None}
    assert {key: value for key, value in defaults(shown) if key in real} == real
    assert len(real) > 8


@both
def test_a_fine_configuration_is_said_to_be_fine(tmp_path: Path, name: str) -> None:
    """One line, 0, and nothing is begun: not even the data folder is made."""
    file = tmp_path / f"{name}.toml"
    file.write_text(uncommented(name), encoding="utf-8")
    words = ["--config", str(file), "--data", str(tmp_path / "data"), "--check-config"]
    done = call(f"{name}_daemon", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: fine\n", "")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("pi", "[serial]\nbuad = 9600\n", ("buad",)),
        ("pi", "[serial\n", ("TOML",)),
        ("pi", 'http = "nonsense"\n', ("'nonsense'", "HOST:PORT")),
        ("pi", 'data = " "\n', ("data: must name a folder",)),
        ("topside", 'data = ""\n', ("data: must name a folder",)),
        ("pi", 'data = "a\\u0000b"\n', (r"data: 'a\x00b' holds the character NUL",)),
        ("pi", '[serial]\nport = "\\u0000"\n', ("serial.port", "NUL")),
        ("pi", 'hosts = ["rov", "a\\u0000"]\n', ("hosts", "NUL")),
        ("pi", 'time = "nonsense"\n', ("'nonsense'", "HOST:PORT")),
        ("pi", 'http = "0.0.0.0:9150"\n', ("security is local", 'choose security = "paired"')),
        ("topside", 'bus = "ipc:///x"\n', ("ipc:///x", "tcp://HOST:PORT")),
        ("topside", 'pi = "192.168.2.2:9150"\n', ("192.168.2.2:9150", "give --pi http://")),
        ("topside", "[markers]\nprobes = 0\n", ("markers.probes",)),
        (
            "topside",
            'http = "127.0.0.1:80"\nbus = "tcp://127.0.0.1:80"\n',
            ("http and bus both want port 80",),
        ),
        ("pi", 'http = "localhost:80"\nbus = "tcp://127.0.0.1:80"\n', ("http and bus both want port 80",)),
        ("pi", 'origins = ["blueos.local"]\n', ("origins: 'blueos.local'", 'write "http://blueos.local"')),
        ("topside", 'origins = ["http://a.local/page"]\n', ("SCHEME://HOST", 'write "http://a.local"')),
        ("topside", "[markers]\nfast_start_s = [5, 1]\n", ("markers.fast_start_s", "write [1.0, 5.0]")),
    ],
)
def test_a_bad_configuration_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: tuple[str, ...]
) -> None:
    """File and key stand in the line, and what would cure it; the code is the daemon's own, 78."""
    file = tmp_path / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    assert MAINS[name](["--config", str(file), "--check-config"]) == 78
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith(f"{file}: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "topside",
            'security = "paired"',
            'security: must be one of "legacy-lan", "local", not "paired"',
        ),
        ("pi", "http = 9150", "http: must be a text, in quotes, not 9150"),
        ("pi", "port = 1", "port: there is no such key: did you mean [serial] port?"),
        ("pi", "[serial]\nbuad = 1", "serial.buad: there is no such key: did you mean baud?"),
        (
            "pi",
            '[serial]\nhttp = "x"',
            "serial.http: there is no such key: did you mean http above the first [table]?",
        ),
        (
            "topside",
            "[markers]\nxyz = 1",
            "markers.xyz: there is no such key: there are fast_start_s, interval_s, interval_min_s, probes",
        ),
        (
            "pi",
            "[recording]\nroll_interval_s = 20",
            "recording.roll_interval_s: must be a number, at least 1 and at most 15, not 20",
        ),
        (
            "topside",
            "[markers]\nfast_start_s = [0, -1]",
            "markers.fast_start_s: must be a list in [ ] of at most 100, each a number, at least 0 and at "
            "most 3600, not [0, -1]",
        ),
        ("pi", 'hosts = "rov"', 'hosts: must be a list in [ ], each a text, in quotes, not "rov"'),
        (
            "pi",
            "[serial]\ntag = 'ab'",
            'serial.tag: must be a text, in quotes, of the form ^[A-Z]$, not "ab"',
        ),
        ("pi", "serial = 3", "serial: must be a table of its own, in [ ], not 3"),
        ("pi", "[serial]\nbaud = 1" + "0" * 80, "serial.baud: must be a whole number, at least 300"),
        ("topside", "[fusion]\ndejitter = 1", "fusion.dejitter: must be true or false, not 1"),
        (
            "pi",
            "[recording]\nsync_interval_s = inf",
            "recording.sync_interval_s: must be a number, at least 0.1 and at most 10, not inf",
        ),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    """The dotted key first, then what may stand there, then what does."""
    file = tmp_path / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    assert MAINS[name](["--config", str(file), "--check-config"]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}: {said}")


def test_a_wrong_flag_is_named_and_the_file_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the type tells or the check."""
    file = tmp_path / "pi.toml"
    file.write_text("[serial]\nbaud = 9600\n", encoding="utf-8")
    for flags, said in (
        (
            ["--baud", "1"],
            "command line: --baud (serial.baud): must be a whole number, at least 300 and at most",
        ),
        (["--http", "nonsense"], "command line: 'nonsense' is not HOST:PORT"),
    ):
        assert MAINS["pi"](["--config", str(file), *flags, "--check-config"]) == 78
        assert capsys.readouterr().err.startswith(said)


def test_ports_that_only_look_alike_are_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two addresses of this machine; any free port twice."""
    for http, bus in (("127.0.0.1:80", "tcp://127.0.0.2:80"), ("127.0.0.1:0", "tcp://127.0.0.1:0")):
        assert MAINS["pi"](["--http", http, "--bus", bus, "--check-config"]) == 0
    assert capsys.readouterr().err == ""
