"""What is made when the package is built: the optional C code, and the links of the README.

Without a compiler the wheel is pure Python. Without an address of the repository (`NSTAT_ASYNC_REPOSITORY`) the package
claims none: the links of the README are relative, and an index of packages, which has no files beside it, gets their texts.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NAME = "nstat_async._speedups"
ADDRESS = "NSTAT_ASYNC_REPOSITORY"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def build(root: Path, directory: str) -> Path | None:
    """Compile; the library's path, or `None` where that cannot be done."""
    if os.environ.get("NSTAT_ASYNC_PURE", "0") not in {"", "0"} or sys.implementation.name != "cpython":
        return None
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.byteorder == "big":
        return None  # it relies on the interpreter's lock, and on Darwin's byte order
    try:
        from setuptools import Distribution, Extension  # noqa: PLC0415  # where it is missing there is no C code

        extension = Extension(NAME, [str(root / "nstat_async" / "_speedups.c")])
        command = Distribution({"name": "nstat-async", "ext_modules": [extension]}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = directory, f"{directory}/objects"
        command.ensure_finalized()
        command.run()
        return Path(command.get_ext_fullpath(NAME))
    except (Exception, SystemExit):  # noqa: BLE001  # whatever stands in the way: the package works without it
        return None


def readme(text: str, address: str | None) -> str:
    """The README for an index of packages: absolute links, or none where the repository has no address."""

    def link(found: re.Match[str]) -> str:
        picture, shown, target = found.groups()
        if address is None:
            return "" if picture else shown
        return f"{picture}[{shown}]({address}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return _LINK.sub(link, text)


def urls(address: str | None) -> dict[str, str]:
    """Where the project is, as far as that is known."""
    if address is None:
        return {}
    return {
        "Repository": address,
        "Documentation": f"{address}/tree/HEAD/docs",
        "Changelog": f"{address}/blob/HEAD/docs/changelog.md",
        "Issues": f"{address}/issues",
    }


class AddressHook(MetadataHookInterface):
    """Says where the project is, to the index of packages."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add what is dynamic."""
        address = os.environ.get(ADDRESS, "").rstrip("/") or None
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, address)}
        metadata["urls"] = urls(address)


class SpeedupsHook(BuildHookInterface):  # type: ignore[type-arg]  # the tests stand in for hatchling
    """Adds the library to the wheel, or puts it beside the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build it."""
        root = Path(self.root)
        self._directory = tempfile.mkdtemp()
        library = build(root, self._directory)
        if library is None:
            return
        if version == "editable":
            shutil.copy2(library, root / "nstat_async" / library.name)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"][str(library)] = f"nstat_async/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Clean up."""
        shutil.rmtree(self._directory, ignore_errors=True)
