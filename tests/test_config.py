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
        ("pi", 'time = "nonsense"\n', ("'nonsense'", "HOST:PORT")),
        ("pi", 'http = "0.0.0.0:9150"\n', ("security is local", 'choose security = "paired"')),
        ("topside", 'bus = "ipc:///x"\n', ("ipc:///x", "tcp://HOST:PORT")),
        ("topside", 'pi = "192.168.2.2:9150"\n', ("192.168.2.2:9150", "give --pi http://")),
        ("topside", "[markers]\nprobes = 0\n", ("markers.probes",)),
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
