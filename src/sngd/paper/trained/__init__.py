"""The paper's figures that are made of training runs, Figures 2 to 4, and two further studies.

``experiments`` is the table of what is run, ``runs`` runs and measures it, ``pictures`` draws it; ``sensitivity`` and
``alternatives`` are the two studies that measure and draw more than curves. Each experiment's folder is a study, which
``sngd report`` reads: OUT/EXPERIMENT/{compare.json, runs/LABEL/seed-K, tuning/LABEL/lr-α, report.html, …}.

What a figure's measurements hold is declared in ``runs.FigureMeasured``, ``sensitivity.Sensitivity`` and
``alternatives.Alternatives``. An arm is a method with its settings. The judges find arms by these names, the paper's:

* Figure 2, experiments "batch-32" and "batch-128": "SPIDER-SFO, α=0.001", "SPIDER-SFO, α=0.1", "SNGD, α=0.001" and
  "SNGD, α=0.1".
* Figure 3, experiments "resnet20" and "resnet56", or "resnet8": "SPIDER-SFO, α=0.1", "SPIDER-SFO, α=0.5",
  "SNGD, α=0.1", "SNGD, α=0.5", "S-SNGD(v1), α=0.5" and "S-SNGD(v2), α=0.5"; beyond the paper
  "S-SNGD(v1, warm-up), α=0.5", "SNGM, α=0.05" and "S-SGD with momentum, α=0.1".
* Figure 4, one experiment: "S-SGD" and "S-SNGD"; beyond the paper "SNGM" and "S-SGD with momentum".
"""
