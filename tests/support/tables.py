"""Tables that are shown after the tests, gathered from all the processes that run them."""

import collections


class Tables:
    """title -> lines."""

    def __init__(self):
        self.lines = collections.defaultdict(list)

    def add(self, title, line):
        self.lines[title].append(line)

    def merge(self, others):
        """Take over what another process gathered: its `as_dict()`, None if it has gathered nothing."""
        for title, lines in (others or {}).items():
            self.lines[title] += lines

    def as_dict(self):
        """What a process can send to another."""
        return dict(self.lines)

    def write(self, terminal):
        """terminal: pytest's reporter."""
        for title, lines in self.lines.items():
            terminal.section(f"{len(lines)} {title}")
            for line in lines:
                terminal.write_line(line)
