"""Methods, attacks and defences: accuracy, attackers found and false alarms on turned digits.

The model and the data of `experiments.examples.own_model`: 20 clients of ranks 1, 2, 4 and 8 whose
digits are turned by a quarter, 10 of them in each of 20 rounds, labels divided by Dirichlet with
alpha 1. A fifth of the clients attacks, drawn from the seed; they are the same for all methods and
defences. Accuracy is on turned test digits after the last round. Found is the share of the
attackers' messages that a defence leaves out, false alarms that of honest clients' messages. All
settings and seeds were fixed before the first run, and nothing is tuned.

    python -m experiments.robustness.attacks.run      # resumable; 434 runs, an hour of a processor
    python -m experiments.robustness.attacks.run --small      # 36 of them
    python -m experiments.robustness.attacks.report   # the table, from the results
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results" / "runs.jsonl"

SEEDS = (0, 1)
SHARE = 0.2
METHODS = ("zero_padding", "fed_plora", "hlora", "flora")
ATTACKS = {
    "none": None,
    "sign flip x10": f"sign_flip(share={SHARE}, scale=10.0)",
    "sign flip x2.5": f"sign_flip(share={SHARE}, scale=2.5)",
    "a little is enough": f"little_is_enough(share={SHARE}, z=1.5)",
    "inner product": f"inner_product(share={SHARE}, factor=3.0)",
    "noise": f"gaussian(share={SHARE}, factor=10.0)",
    "label flip": "label_flip",
}
DEFENCES = {
    "none": (),
    "reject_outliers": ("reject_outliers",),
    "norm_bound": ("norm_bound",),
    "reject_dissimilar": ("reject_dissimilar",),
    "outliers + dissimilar": ("reject_outliers", "reject_dissimilar"),
    "krum": ("krum(attackers=0.3)",),
    "geometric_median": ("geometric_median",),
    "median": ("median",),
    "trimmed_mean": ("trimmed_mean(share=0.2)",),
}
SMALL_METHODS = ("zero_padding", "hlora")
SMALL_ATTACKS = ("none", "sign flip x10", "sign flip x2.5", "label flip")
SMALL_DEFENCES = ("none", "reject_outliers", "outliers + dissimilar", "krum", "median")
