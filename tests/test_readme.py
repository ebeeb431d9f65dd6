import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_first_commands_run(tmp_path):
    _, _, commands = README.read_text().partition("## Commands")
    block = re.findall(r"```\n(.*?)```", commands, re.DOTALL)[0]
    assert block.count("vdvae-repr ") == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(
        ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "face_id, closed-set: 20 people, 100 gallery + 100 probe images" in done.stdout
    assert "best set" in done.stdout
