"""What is done to those who take part: killed, frozen, or told that the disk is full; each returns how to mend it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.processes import Actor
from chaos.scene import Scene

LONGEST_AWAY_S = 3.0


@dataclass(slots=True, kw_only=True)
class Done:
    """What was done, by name."""

    kills: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)


class Trouble:
    """Makes trouble whenever the work has come as far as the next dice throw said."""

    def __init__(self, scene: Scene) -> None:
        self.done = Done()
        self._scene = scene
        self._dice = random.Random(scene.plan.seed)
        self._thresholds = self._throw()

    def step(self, progress: float) -> None:
        """Make the trouble that is due when `progress`, of 0 to 1, of the work is done."""
        while self._thresholds and progress >= self._thresholds[0]:
            self._thresholds.pop(0)
            name, act = self._dice.choice(self._kills())
            act()
            self.done.kills[name] += 1
            if self._dice.random() < 0.3:
                name, act = self._dice.choice(self._others())
                act()
                self.done.others[name] += 1

    def make_up(self) -> None:
        """Make all the trouble that was planned and is not made yet."""
        self.step(1.0)

    def _throw(self) -> list[float]:
        # Each at a random point of its share of the work; none in the last tenth, so that all of them meet work.
        count = self._scene.plan.kills
        return [0.9 * (number + self._dice.random()) / count for number in range(count)]

    def _kills(self) -> list[tuple[str, Callable[[], None]]]:
        scene = self._scene
        actors = [each for each in (*scene.servers, *scene.trainers) if each.is_running]
        return [
            *[(actor.name, lambda actor=actor: self._restart(actor)) for actor in actors],
            ("broker", lambda: self._away(scene.broker.kill, scene.broker.start)),
            ("object store", lambda: self._away(scene.ceph.kill, scene.ceph.start)),
            ("database", lambda: self._away(scene.postgresql.kill, scene.postgresql.start)),
            ("model server", lambda: self._away(scene.kill_engine, scene.engine.start)),
        ]

    def _others(self) -> list[tuple[str, Callable[[], None]]]:
        return [("broker's disk alarm", self._alarm), ("object store silent", self._freeze)]

    def _restart(self, actor: Actor) -> None:
        actor.kill()
        self._pause()
        actor.start()

    def _away(self, kill: Callable[[], None], start: Callable[[], None]) -> None:
        kill()
        self._pause()
        start()

    def _alarm(self) -> None:
        with self._scene.broker.disk_alarm():
            self._pause()

    def _freeze(self) -> None:
        with self._scene.ceph.frozen():
            self._pause()

    def _pause(self) -> None:
        time.sleep(self._dice.uniform(0.0, LONGEST_AWAY_S))
