"""What a frozen program needs: commands and backends are imported by name, eBPF programs and the web page are files."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules  # type: ignore[import-untyped]  # whoever freezes has it

hiddenimports = collect_submodules("nstat_async", filter=lambda name: "._pyinstaller" not in name)
datas = collect_data_files("nstat_async")
