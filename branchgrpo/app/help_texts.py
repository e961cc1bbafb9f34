"""What `branchgrpo --help` says around its commands."""

DESCRIPTION = """Align text-to-image models with human preference by BranchGRPO, on Ray.

Without arguments: train the embedded model on the quick-start config, about 5 minutes on two
cores."""

EPILOG = """examples:
  branchgrpo train                  the quick start
  branchgrpo train --preset branchgrpo
                                    another method: the paper's full tree
  branchgrpo compare dancegrpo branchgrpo branchgrpo-splits --seeds 3 --budget 4m
  branchgrpo eval runs/RUN          the scores of a run's weights
  branchgrpo sample runs/RUN "the number 38 in black on yellow" --n 4
                                    pictures by the trained weights
  branchgrpo train my.yaml --smoke  try a config here: one iteration with a small random model
  branchgrpo train my.yaml --run.seed 1 rollout.workers=8
                                    any key of a config, dotted; lists: --method.splits 3,6,9,12
  branchgrpo train my.yaml --dry-run --card h100
                                    what it would need: memory, GPUs, seconds; starts nothing
  branchgrpo encode my.yaml         encode all prompts once, where model.encode is precompute
  branchgrpo prompts my.yaml        what was read of its prompt files: counts, examples, what
                                    rewards refuse
  branchgrpo serve-reward ocr --port 8600
                                    a reward behind HTTP, for another environment or machine
  branchgrpo status                 what the run on this cluster is doing; --json for programs
  branchgrpo scale --rollout 6 --wait
                                    more rollout workers while it trains
  branchgrpo stop                   end it after the present iteration, with a checkpoint
  branchgrpo doctor my.yaml         is this cluster, or this machine, fit for that config?
  branchgrpo config my.yaml         the resolved config
  branchgrpo new reward warmth      a reward of your own, warmth.py, and its test
  branchgrpo config --schema        every key, its meaning and default (JSON schema)
"""
