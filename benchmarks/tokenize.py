"""`python benchmarks/tokenize.py [--json] [--device cuda]`; the benchmark is in `tokenize_codes.py`.

Called like a module of Python's own: as in `select.py`, who asked for that one gets it.
"""

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [*(place for place in sys.path if Path(place).resolve() != _HERE), str(_HERE)]

if __name__ == "__main__":
    from tokenize_codes import main

    main()
elif __name__ == "tokenize":
    del sys.modules["tokenize"]
    importlib.import_module("tokenize")
