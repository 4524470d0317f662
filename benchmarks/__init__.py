"""What README and results say, measured: each module is a command."""

from recbole_rella.compat import without_future_warnings

without_future_warnings()
