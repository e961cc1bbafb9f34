"""The command line of branchgrpo."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
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
    if found.command in ALONE:
        return ALONE[found.command](found, overrides)
    if found.command == "config" and found.schema:
        print(json.dumps(Config.model_json_schema(), indent=1))
        return 0
    config = configs.load(config_file(found.config), overrides, found.preset)
    return CONFIGURED[found.command](found, config)


Overrides = dict[str, str]


def _compare(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.compare import compare

    return compare(
        config_file(found.config),
        methods=found.methods,
        seeds=found.seeds,
        budget=found.budget,
        overrides=overrides,
        folder=found.folder,
        gain=found.gain,
        grid=found.grid,
        grid_seeds=found.grid_seeds,
        grid_budget=found.grid_budget,
    )


def _eval(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.evaluate import evaluate
    from branchgrpo.runs.measured import chosen

    target = chosen(
        found.folder,
        config=config_file(found.config) if found.config else None,
        texts=overrides,
        checkpoint=found.checkpoint,
        default=QUICKSTART,
    )
    return evaluate(target)


def _tree(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.tree import tree

    return tree(found.folder, found.iteration, found.prompt, found.out, overrides)


def _sample(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.sample import sample

    return sample(found)


def _serve_reward(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.serve_reward import serve_reward

    return serve_reward(found, overrides)


def _new(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.new import new

    return new(found.kind, found.name, Path())


def _watch(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.watch import watch

    return watch(found)


def _report(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.report import report

    return report(found)


def _runs(found: Namespace, overrides: Overrides) -> int:
    from branchgrpo.app.report import runs

    return runs(found)


def _train(found: Namespace, config: Config) -> int:
    if found.dry_run:
        from branchgrpo.app.fits import dry_run

        return dry_run(config, found.card, found.json)
    if found.smoke:
        from branchgrpo.app.smoke import smoke

        return smoke(config)
    from branchgrpo.app.train import train

    return train(config, found.resume)


def _encode(found: Namespace, config: Config) -> int:
    from branchgrpo.app.train import encode_alone

    return encode_alone(config)


def _prompts(found: Namespace, config: Config) -> int:
    from branchgrpo.data.report import report

    return report(config, found.json)


def _doctor(found: Namespace, config: Config) -> int:
    from branchgrpo.app.doctor import doctor

    return doctor(config, found.address, found.json, found.card)


def _config(found: Namespace, config: Config) -> int:
    print(configs.dump(config), end="")
    return 0


ALONE = {
    "compare": _compare,
    "eval": _eval,
    "tree": _tree,
    "report": _report,
    "runs": _runs,
    "sample": _sample,
    "serve-reward": _serve_reward,
    "new": _new,
}
ALONE |= dict.fromkeys(WATCHING, _watch)
"""Commands that load no config, or several. Each imports what it needs: `--help` is quick."""

CONFIGURED = {
    "train": _train,
    "encode": _encode,
    "prompts": _prompts,
    "doctor": _doctor,
    "config": _config,
}
"""Commands of one config."""
