"""Object stores are an extra: paths need none of it."""

import subprocess
import sys
from pathlib import Path

CHILD = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from embatch.cli import main
sys.exit(main(["verify", sys.argv[2]]))
"""


def verify(missing: str, out: str, home: Path) -> tuple[int, str]:
    """Exit code and error of `embatch verify` where packages are missing."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, missing, out],
        env={"PATH": "/usr/bin:/bin", "EMBATCH_HOME": str(home), "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_missing_extra_is_named_with_its_command(tmp_path: Path) -> None:
    """Whichever of its packages it is; a path is looked at all the same."""
    for missing in ("obstore", "botocore"):
        code, said = verify(missing, "s3://bucket/out", tmp_path)
        assert code == 2
        assert missing in said
        assert "pip install 'embatch[storage]'" in said
    code, said = verify("obstore,botocore", str(tmp_path / "out"), tmp_path)
    assert code == 2
    assert "is no output of a run" in said
