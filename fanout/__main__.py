"""``python -m fanout`` is the ``fanout`` command."""

import sys

if __name__ == "__main__":
    try:
        from fanout.cli import main

        main()
    except KeyboardInterrupt:  # while the command was still being imported: nothing was begun
        sys.exit(130)
