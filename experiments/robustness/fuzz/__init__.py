"""Generated inputs that are valid but unusual, compared with the libraries that wrote them.

Every case is written by another library and read by it and by us. It ends as ``equal`` (the same
numbers, to 1e-4 of the largest), ``refused by us`` (one sentence), ``refused by them`` (an
exception or newly initialised parameters), ``refused by both``, ``different`` or ``crash`` (an
exception of ours that is no sentence). No case may be different or a crash.

    python -m experiments.robustness.fuzz            # every part; half an hour, resumable
    python -m experiments.robustness.fuzz.report     # table

See README.md for the parts and their grammars.
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
