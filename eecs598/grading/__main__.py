import sys

from eecs598.grading.grader import main

if __name__ == "__main__":
    sys.exit(main())
