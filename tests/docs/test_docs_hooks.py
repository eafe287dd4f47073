"""What runs before a commit is what `make check` runs."""

import os
import re
import shlex
import subprocess

import yaml


def expand(root, words):
    """Fill in the names of files as a shell does, in one order."""
    found = [[str(each.relative_to(root)) for each in root.glob(word)] if "*" in word else [word] for word in words]
    return sorted(each for names in found for each in names)


def hooks(root):
    for repository in yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]:
        for hook in repository["hooks"]:
            assert hook["pass_filenames"] is False
            words = shlex.split(hook["entry"])
            yield expand(root, shlex.split(words[2]) if words[:2] == ["bash", "-c"] else words)


def checks(root):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "--no-print-directory", "check"]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=60, check=True)
    for line in re.findall(r'^echo "[^"]+"; +(.+)$', done.stdout, re.MULTILINE):
        yield expand(root, shlex.split(line))


def test_the_hooks_run_the_commands_of_make_check(root):
    commands = list(checks(root))
    assert len(commands) == 5
    assert list(hooks(root)) == commands
