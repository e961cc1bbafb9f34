"""The command line of branchgrpo."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from branchgrpo.app.environment import prepare
from branchgrpo.app.exits import exit_code
from branchgrpo.app.parser import WATCHING, parse
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART, config_file


def main() -> int:
    """The command line. Exit codes: see branchgrpo/app/exits.py."""
    prepare()
    return exit_code(_command)


def _command() -> int:
    found, overrides = parse(sys.argv[1:])
    if found.command == "config" and found.schema:
        print(json.dumps(Config.model_json_schema(), indent=1))
        return 0
    if found.command == "compare":
        from branchgrpo.app.compare import compare

        return compare(
            config_file(found.config),
            methods=found.methods,
            seeds=found.seeds,
            budget=found.budget,
            overrides=overrides,
            folder=found.folder,
            gain=found.gain,
        )
    if found.command == "eval":
        from branchgrpo.app.evaluate import evaluate
        from branchgrpo.runs.measured import chosen

        return evaluate(
            chosen(
                found.folder,
                config=config_file(found.config) if found.config else None,
                texts=overrides,
                checkpoint=found.checkpoint,
                default=QUICKSTART,
            )
        )
    if found.command == "serve-reward":
        from branchgrpo.app.serve_reward import serve_reward

        return serve_reward(found, overrides)
    if found.command == "new":
        from branchgrpo.app.new import new

        return new(found.kind, found.name, Path())
    if found.command in WATCHING:
        from branchgrpo.app.watch import watch

        return watch(found)
    config = configs.load(config_file(found.config), overrides, found.preset)
    if found.command == "doctor":
        from branchgrpo.app.doctor import doctor

        return doctor(config, found.address, found.json)
    if found.command == "prompts":
        from branchgrpo.data.report import report

        return report(config, found.json)
    if found.command == "encode":
        from branchgrpo.app.train import encode_alone

        return encode_alone(config)
    if found.command == "config":
        print(configs.dump(config), end="")
        return 0
    from branchgrpo.app.train import train

    return train(config, found.resume)
