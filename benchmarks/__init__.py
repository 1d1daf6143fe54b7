"""What embatch claims about speed, memory and accuracy, measured in one run.

    python -m benchmarks --list
    python -m benchmarks engine --json

The peers live in a virtual environment of their own:

    python -m venv .venv-bench
    .venv-bench/bin/pip install -r benchmarks/requirements-peers.txt
    .venv-bench/bin/pip install --no-deps -r benchmarks/requirements-peers-no-deps.txt
"""
