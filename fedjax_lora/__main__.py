"""``python -m fedjax_lora``."""

import sys

from fedjax_lora.cli import main

sys.exit(main())
