"""``python -m fedjax_lora``."""

import sys

from fedjax_lora.cli.main import main

sys.exit(main())
