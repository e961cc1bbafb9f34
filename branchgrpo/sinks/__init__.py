"""Where copies of the metrics go: one file and one line each."""

REGISTRY = {
    "wandb": "branchgrpo.sinks.wandb:WandbOptions",
    "mlflow": "branchgrpo.sinks.mlflow:MlflowOptions",
}
