"""What several tests share: stand-ins, faulty code, and programs that run in a process of their own."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the project's folder
