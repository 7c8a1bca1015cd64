"""``python -m fedjax_lora`` and the console script ``fedjax-lora``: imports little itself."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while its modules are imported is answered as later on."""
    try:
        from fedjax_lora.cli import main as command_line
    except KeyboardInterrupt:
        print("fedjax-lora: stopped", file=sys.stderr)
        return 130
    return command_line.main()


if __name__ == "__main__":
    sys.exit(main())
