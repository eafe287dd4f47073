"""The program: `python -m chaos`, and what `make chaos` runs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos.plan import Plan
from chaos.processes import answers, wait_until
from chaos.scene import READY_TIMEOUT_S, Scene, playing
from chaos.trouble import Trouble
from chaos.verdict import Verdict, judge, progress_of, unfinished_work

TELL_EVERY_S = 10.0
DEFAULTS = Plan(publications=500, kills=25)


def run(plan: Plan, directory: Path, tell: Callable[[str], None]) -> Verdict:
    """Play a plan, and judge it."""
    begun = time.monotonic()
    with playing(plan, directory) as scene:
        os.environ.update(scene.environ)
        tell(f"{plan.publications} publications, {plan.kills} kills, seed {plan.seed}, engine {plan.engine}")
        for server in scene.servers:
            server.start()
        wait_until(lambda: all(_is_ready(each.arguments[-1]) for each in scene.servers), "no server", READY_TIMEOUT_S)
        scene.watcher.start()
        for trainer in scene.trainers:
            trainer.start()
        trouble = Trouble(scene)
        _work(scene, trouble, begun, tell)
        seen = scene.watcher.stop()
        return judge(scene, trouble.done, seen, time.monotonic() - begun)


def _work(scene: Scene, trouble: Trouble, begun: float, tell: Callable[[str], None]) -> None:
    """Make trouble until all is trained, then finish what waits, as a user would."""
    last_told = 0.0
    while not all(trainer.exit_code == 0 for trainer in scene.trainers):
        _check_time(scene, begun)
        for trainer in scene.trainers:
            if trainer.exit_code not in {None, 0}:
                trainer.start()  # it met an engine that was away before its training; its ledger knows where it was
        progress = progress_of(scene)
        trouble.step(progress)
        if time.monotonic() - last_told > TELL_EVERY_S:
            last_told = time.monotonic()
            tell(f"{progress:4.0%}  {len(scene.trained())} published, {sum(trouble.done.kills.values())} kills")
        time.sleep(0.2)
    while (left := unfinished_work(scene)) is not None:
        _check_time(scene, begun)
        trouble.step(progress_of(scene))
        scene.flush_outboxes()
        tell(f"{progress_of(scene):4.0%}  {left}")
        time.sleep(2)
    trouble.make_up()


def _check_time(scene: Scene, begun: float) -> None:
    if time.monotonic() - begun > scene.plan.timeout_s:
        logs = "\n".join(f"--- {actor.name}\n{actor.tail()}" for actor in (*scene.servers, *scene.trainers))
        raise TimeoutError(f"it did not end within {scene.plan.timeout_s:.0f} s: {unfinished_work(scene)}\n{logs}")


def _is_ready(port: str) -> bool:
    return answers(f"http://127.0.0.1:{port}/healthz")


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Read the command line, play, print the verdict; exit 1 when something is lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--publications", type=int, default=DEFAULTS.publications)
    parser.add_argument("--kills", type=int, default=DEFAULTS.kills)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--engine", choices=["triton", "embedded"], default=DEFAULTS.engine)
    parser.add_argument("--timeout-s", type=float, default=DEFAULTS.timeout_s)
    parser.add_argument("--directory", type=Path, help="keep logs and ledgers here; default: a temporary directory")
    parser.add_argument("--json", type=Path, help="write the verdict here as well")
    told = parser.parse_args()
    plan = Plan(
        publications=told.publications, kills=told.kills, seed=told.seed, engine=told.engine, timeout_s=told.timeout_s
    )
    with tempfile.TemporaryDirectory(prefix="keynet-chaos-") as temporary:
        directory = told.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        verdict = run(plan, directory, _tell)
    _tell(str(verdict))
    if told.json:
        told.json.write_text(verdict.to_json(), encoding="utf-8")
    sys.exit(1 if verdict.wrong else 0)


if __name__ == "__main__":
    main()
