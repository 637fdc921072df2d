"""``python -m fanout`` is the ``fanout`` command."""

from fanout.cli import main

if __name__ == "__main__":
    main()
