"""Starting is quick because nothing heavy is imported before it is needed."""

import subprocess
import sys

import pytest

HEAVY = ("pyarrow", "numpy", "sqlalchemy", "alembic", "openvino", "tokenizers", "huggingface_hub")


@pytest.mark.parametrize(
    "code",
    [
        "import embatch",
        "import embatch; dir(embatch)",
        "from embatch.cli import main; assert main(['--help']) == 0",
        "from embatch.cli import main; assert main(['run', '--help']) == 0",
        "from embatch.cli import main; assert main(['--version']) == 0",
        "from embatch.cli import main; assert main(['run', '--nonsense']) == 2",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    """Neither `import embatch` nor any help loads data libraries, database or engine."""
    look = (
        f"import sys\n{code}\nprint('LOADED', *(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1].split() == ["LOADED"]
