"""The official SDK's source distribution: its own tests and the contract's specification lie in it."""

import subprocess
import sys
from pathlib import Path

SDK = "comfy-sdk==0.5.0"


def unpack(folder: Path) -> Path:
    """Download it from the package index into a folder, and return where it lies unpacked."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*download, "--no-build-isolation", "--dest", folder, SDK], check=True)
    (archive,) = folder.glob("comfy_sdk-*.tar.gz")
    # Not by `tarfile`: Python 3.11.2 lacks its safe filter, and later ones warn where it is left out.
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    return source
