"""`python -m archibald_pgq` is the same as `archibald-pgq`."""

from archibald_pgq.cli import main

if __name__ == "__main__":
    main()
