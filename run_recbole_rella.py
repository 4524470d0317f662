"""Run ReLLa, or any model of RecBole, alone or side by side. `--help` says how; see recbole_rella/command_line.py."""

from recbole_rella.command_line import run

if __name__ == "__main__":
    run()
