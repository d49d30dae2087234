"""What any program needs: errors, files, the machine, the command line, the run folder.

`errors`, `files` and `machine` import nothing of the project and lie below everything;
`command_line` and `run_folder` also know `config`.

Every command imports something from here first. So what libraries read from the environment at
their own import is set here, and nowhere else.
"""

import os

# Tianshou compiles three small functions for up to a minute, and gains nothing here.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
# Of token indices, default settings and the like; what decides answers is checked by the code.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
