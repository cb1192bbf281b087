import sys

from eecs598.scenes import main

if __name__ == "__main__":
    sys.exit(main())
