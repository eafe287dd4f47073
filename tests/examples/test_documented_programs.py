"""The programs of the README and the tutorial, run as they stand."""

import re


def bash_lines(page):
    """The commands of a page, one to a line."""
    found = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in found for line in block.splitlines()]


def test_the_readme_program_trains_and_is_asked(up, root):
    assert up.write_files_of("README.md") == ["train.py", "ask.py"]
    session = (root / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
    train, show, *_, ask, answer = session.splitlines()
    commands = [line.removeprefix("$ ") for line in (train, show, ask)]
    assert commands == ["python train.py", "keynet models show digits", "python ask.py"]
    up.run_line(commands[0])
    up.wait_for(commands[1], "digits: deployment 1 is live")
    assert up.run_line(commands[2]) == f"{answer}\n"


def test_the_tutorial_can_be_followed(up, root):
    page = root / "docs/tutorials/first-model.md"
    assert up.write_files_of("docs/tutorials/first-model.md") == ["train.py", "function.py", "save_image.py"]
    lines = bash_lines(page)
    steps = lines[lines.index("keynet up") + 1 :]
    assert steps == [
        "python train.py 15",
        "keynet models show digits",
        "python save_image.py",
        "keynet-inference run function.py -p image_url=seven.png",
        "python train.py 1",
        "keynet models history digits",
        'keynet models rollback digits --why "accuracy fell"',
    ]
    trained = up.run_line(steps[0])
    assert re.search(r"accuracy 0\.9\d+\nversion  1\npackage  sha256:[0-9a-f]{64}\nstate    announced\n", trained)
    digest = re.search("sha256:[0-9a-f]{64}", trained)[0]
    shown = up.wait_for(steps[1], "digits: deployment 1 is live")
    assert digest in shown
    assert "the probe was answered as recorded" in shown
    assert up.run_line(steps[2]).endswith("/seven.png\n")
    assert up.run_line(steps[3]) == '{"digit": 7}\n'
    assert "version  2" in up.run_line(steps[4])
    up.wait_for(steps[5], "superseded")
    assert "digits: deployment 3 is live" in up.run_line(steps[6])
    history = up.run_line(steps[5])
    assert "accuracy fell" in history
    assert history.count(digest.removeprefix("sha256:")[:12]) == 2
    assert up.run_line(steps[3]) == '{"digit": 7}\n'
