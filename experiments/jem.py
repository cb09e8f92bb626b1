"""JEM: train one network as classifier and energy-based model at once, and evaluate it.

    python experiments/jem.py                       # digits: 98.3% (sd .20), ECE .011, trained in 54 s
    python experiments/jem.py --network convnet     # 99.0% (sd .30), ECE .014
    python experiments/jem.py --dataset mnist --network convnet     # 99.4% (seed 0), 25 minutes
    python experiments/jem.py --recipe sadajem --network convnet    # a published recipe, see docs/jem.md
    python experiments/jem.py --dataset npz:PATH    # your own arrays `image` and `label`

Accuracies are of the test split over 5 seeds, on 2 CPU cores; all figures, with their spread, are in
experiments/RESULTS.md. The same as the command ``jaxebm train``, and in a notebook
``jaxebm.recipes.train(config)``. Writes a folder: config.json, metrics.jsonl, checkpoints/, card.json (schema
in docs/card.md), card.md, report.html, samples.npz and pictures.

Reference: Grathwohl et al. 2020, "Your classifier is secretly an energy based model" (arXiv 1912.03263).
"""

import jaxebm.signals_at_start  # noqa: F401  first: from here on, a signal ends the script with one line

# isort: split
from jaxebm.recipes.command import train_command

if __name__ == "__main__":
    train_command(program="jem.py")
