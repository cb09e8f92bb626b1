"""Evaluate a finished or interrupted run of experiments/jem.py again, with any settings of the evaluation.

    python experiments/evaluate.py runs/jem                                        # the run's own card
    python experiments/evaluate.py runs/jem --evaluation.ood-sets mnist omniglot   # more OOD sets
    python experiments/evaluate.py runs/jem --evaluation.attack-images 1000 --output runs/attacked
    python experiments/evaluate.py runs/jem --select best                          # least validation NLL

Flags that are not given are those of the run. The same settings and weights give the same card, in about two
minutes on 2 CPU cores for digits. The same as the command ``jaxebm evaluate``, and in a notebook
``jaxebm.recipes.evaluate_run``. Writes card.json (schema in docs/card.md), card.md, report.html, samples.npz
and pictures into RUN/evaluation, or --output.
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
from jaxebm.recipes.command import evaluate_command

if __name__ == "__main__":
    evaluate_command(program="evaluate.py")
