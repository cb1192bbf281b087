import sys

from eecs598.handout import main

if __name__ == "__main__":
    sys.exit(main())
