"""Puts the compiled kernel into a wheel, where there is a C compiler; else the wheel is one for every
machine."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Named in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # the checkout has its own
        built = subprocess.run(
            [sys.executable, "-m", "topside_daemon.fusion.kernel.build"], cwd=self.root, check=False
        )
        if built.returncode == 0:
            system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{system}"
            for name in ("kernel.so", "kernel.sha256"):
                place = f"topside_daemon/fusion/kernel/{name}"
                build_data["force_include"][str(Path(self.root, place))] = place
