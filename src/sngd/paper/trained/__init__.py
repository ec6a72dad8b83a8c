"""The paper's figures that are made of training runs: Figures 2 to 4, and what stands beside them.

``experiments`` is the table of what is run, ``runs`` runs and measures it, ``pictures`` draws it; ``sensitivity`` and
``alternatives`` are the two studies that measure and draw more than curves. Each experiment's folder is a study, which
``sngd report`` reads: OUT/EXPERIMENT/{compare.json, runs/LABEL/seed-K, tuning/LABEL/lr-α, report.html, …}.

Measurements of a figure, as measurements.json has them under "measurements"::

    {
      "figure": "fig2", "profile": "small",
      "device": "cpu", "environment": {…},        # of the first run, as in its environment.json
      "experiments": {
        "batch-32": {                             # fig2: batch-32, batch-128; fig3: resnet20, resnet56, or resnet8;
          "title": "mnist-mlp, b = 32",           # fig4, sensitivity: one
          "problem": "mnist-mlp", "n": 60000, "batch_size": 32, "epochs": 20.0, "weight_decay": 0.0,
          "departures": ["…"],                    # from the paper, a phrase each
          "arms": {                               # in the figure's order
            "SPIDER-SFO, α=0.1": {
              "method": "spider-sfo", "lr": 0.1, "plan": "constant", "params": {"anchor_batch_size": 1024, …},
              "beyond": false,                    # not in the paper's figure
              "seeds": [0, 1, …],
              "diverged": [3],                    # those of the seeds whose run diverged
              "final": {"train_loss": [… a seed each, null if it diverged], "test_accuracy": [… in [0, 1]]},
              "curves": {
                "grads_over_n": [0.0, 1.0, …],
                "train_loss": [[… a cost each, null past divergence], … a seed each],
                "test_accuracy": [[…], …]
              }
            }, …
          },
          "tuning": null or {"grid": [0.01, …], "seed": 1000000, "chosen": {"S-SGD": 1.0, …},
                             "outcomes": [{"label": "S-SGD", "lr": 0.01, "train_loss": 1.9 or null}, …],
                             "at_edge": ["S-SGD"]}   # arms whose α is the grid's least or greatest
        }, …
      }
    }

Labels are the paper's. Figure 2: "SPIDER-SFO, α=0.001", "SPIDER-SFO, α=0.1", "SNGD, α=0.001", "SNGD, α=0.1".
Figure 3: "SPIDER-SFO, α=0.1", "SPIDER-SFO, α=0.5", "SNGD, α=0.1", "SNGD, α=0.5", "S-SNGD(v1), α=0.5",
"S-SNGD(v2), α=0.5"; beyond the paper "S-SNGD(v1, warm-up), α=0.5", "SNGM, α=0.05", "S-SGD with momentum, α=0.1".
Figure 4: "S-SGD", "S-SNGD"; beyond the paper "SNGM", "S-SGD with momentum".

``sensitivity`` has beside this "factor": 1.5 and "plateaus": {METHOD: {"lrs": […], "train_loss": [[… a seed each, null
if diverged], … an α each], "decades": [… a seed each: width within factor × the method's best], "clipped": whether the
grid ends first, "low", "high": the same range in α, of the mean loss, "sgd_decades", "sgd_clipped": likewise within
factor × SGD's best}}.

``alternatives`` measures {"figure", "profile", "device", "environment", "alternatives": {NAME: {"what": "…", "figures":
{FIGURE: {"figure", "profile", "experiments"}}}}}, each of the inner measurements as above, so that what judges a figure
judges them too; only figures that the reading touches are there. The first, "as in the figures", is what the others are
to be compared with: the same claims judged at the same, reduced, size. ``recounted`` there makes the reading
"differences counted once" of the measurements of any figure, without a run.
"""
