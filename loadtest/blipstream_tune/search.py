# SPDX-License-Identifier: Apache-2.0
"""Change one setting at a time and keep each gain; in the end, the gain has to show again."""

from collections.abc import Callable

from blipstream_tune.settings import SPACE, Settings
from blipstream_tune.trials import Trial

MIN_GAIN = 1.03  # the score's smallest ratio that is no noise
CONFIRMATIONS = 3  # rounds at the end, in which the best settings and those from the start take turns


def is_gain(score: float, before: float) -> bool:
    """Whether a score is above another one by more than noise."""
    return score > before * (MIN_GAIN if before > 0 else 2 - MIN_GAIN)


def search(
    start: Settings, run: Callable[[Settings], Trial], score: Callable[[Trial], float], go_on: Callable[[], bool]
) -> list[Trial]:
    """Change one setting at a time and keep each gain, until a pass over all settings has none or time is up.

    The first trial is of the settings at the start. The best trial is the one with the highest score.
    """
    trials = [run(start)]
    best, best_score = trials[0], score(trials[0])
    improved = True
    while improved and go_on():
        improved = False
        for name, values in SPACE.items():
            for value in sorted(values, key=lambda value: abs(value - best.settings[name])):
                settings = {**best.settings, name: value}
                if any(trial.settings == settings for trial in trials):
                    continue
                if not go_on():
                    return trials
                trials.append(run(settings))
                gained = score(trials[-1])
                if is_gain(gained, best_score):
                    best, best_score, improved = trials[-1], gained, True
    return trials


def confirm(first: Settings, other: Settings, run: Callable[[Settings], Trial]) -> list[list[Trial]]:
    """Run trials of both settings in turns; return those of each."""
    pairs = [[run(first), run(other)] for _ in range(CONFIRMATIONS)]
    return [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
