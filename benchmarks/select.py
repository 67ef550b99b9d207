"""`python benchmarks/select.py [--shards N] [--rows N] [--folder PATH] [--json]`; the benchmark is in `selection.py`.

This file is called like a module of Python's own, and scripts find what lies beside them first: a neighbour that
imports `subprocess` would get this file for `select`. So the folder goes to the end of the path, and who asked for the
module gets it.
"""

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [*(place for place in sys.path if Path(place).resolve() != _HERE), str(_HERE)]

if __name__ == "__main__":
    from selection import main

    main()
elif __name__ == "select":
    del sys.modules["select"]
    importlib.import_module("select")
