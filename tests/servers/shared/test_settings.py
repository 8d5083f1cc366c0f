"""What a server's process says of its settings."""

import os
import subprocess
import sys


def test_lines_are_seen_where_nobody_has_set_logging_up() -> None:
    """On stderr, of level INFO too; Python itself would show warnings only."""
    program = (
        "from llm_carbon_meter.faults import Faults\n"
        "from llm_carbon_meter.servers.shared.settings import logger, read_settings\n"
        "read_settings(Faults())\n"
        "logger.info('seen')\n"
        "import logging; logging.basicConfig(level='WARNING', format='theirs %(message)s')\n"
        "logger.info('left to them')\n"
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines() == ["seen", "theirs left to them"]


def test_a_wrong_setting_is_named_once() -> None:
    """By the first process, not again by those that it starts; several are all named."""
    program = (
        "import subprocess, sys\n"
        "from llm_carbon_meter.faults import Faults\n"
        "from llm_carbon_meter.servers.shared.settings import read_settings\n"
        "read_settings(Faults())\n"
        "if sys.argv[1:]: subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)\n"
    )
    wrong = {"LLM_CARBON_METER_PUE": "much", "LLM_CARBON_METER_ZONES": "DE"}
    ran = subprocess.run(
        [sys.executable, "-c", program, program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **wrong},
    )
    (line,) = ran.stderr.splitlines()
    assert "LLM_CARBON_METER_PUE='much'" in line
    assert "LLM_CARBON_METER_ZONES is not a setting" in line
