"""Secrets: masked in whatever is written or sent, and never taken for the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.small_trees import METHOD, quickstart

from branchgrpo.app import checks, roles
from branchgrpo.app.check import check
from branchgrpo.app.main import main
from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.runs import Comparison
from branchgrpo.config import load as config
from branchgrpo.config import secrets
from branchgrpo.errors import UserError
from branchgrpo.report.sinks import open_sinks

MASK = secrets.MASK
SECRET = "hunter2"
KEYS = {
    "rewards.0.runtime_env": (
        f"{{env_vars: {{TOKEN: {SECRET}, HOME: '/x'}}, pip: "
        f"['--extra-index-url https://{SECRET}@host/simple']}}"
    ),
    "run.mlflow": f"https://me:{SECRET}@mlflow.example/x",
    "checkpoint.folder": f"simplecache::s3://key:{SECRET}@bucket/x?endpoint=a&token={SECRET}",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pa:ss@host:80/x?a=b", f"https://me:{MASK}@host:80/x?a=b"),
        ("https://me:p@ss@host/x", f"https://me:{MASK}@host/x"),
        ("git+https://TOKEN@host/x.git", f"git+https://{MASK}@host/x.git"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        (
            "https://h/x?X-Amz-Signature=abc&x=1&sig=q",
            f"https://h/x?X-Amz-Signature={MASK}&x=1&sig={MASK}",
        ),
        ("https://h/x?api_key=abc#frag", f"https://h/x?api_key={MASK}#frag"),
        (
            "cannot open 'sftp://a:b@c' and sftp://d:e@f",
            f"cannot open 'sftp://a:{MASK}@c' and sftp://d:{MASK}@f",
        ),
        ("who? a:b@c &token=x", "who? a:b@c &token=x"),  # no URL: a prompt
        ("redis://:pw@host", f"redis://:{MASK}@host"),
        ("embedded:train", "embedded:train"),
    ],
)
def test_urls(text: str, shown: str) -> None:
    assert secrets.masked_text(text) == shown == secrets.masked_text(shown)


def test_nothing_that_is_written_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = quickstart(KEYS)
    assert found.rewards[0].runtime_env["env_vars"]["TOKEN"] == SECRET  # what runs has it
    text = config.dump(found)
    assert SECRET not in text and text.count(MASK) == 6
    assert SECRET not in str(config.plain(found))
    given = {"evaluation.rewards": "[]", "evaluation.trees": "0", "preset": METHOD, **KEYS}
    options = [part for key, value in given.items() for part in (f"--{key}", value)]
    monkeypatch.setattr("sys.argv", ["run.py", "config", *options])
    assert main() == 0 and capsys.readouterr().out == text
    comparison = Comparison(
        base=Path("configs/quickstart.yaml").resolve(),
        methods=["dancegrpo"],
        seeds=1,
        budget=Budget(2),
        overrides=KEYS,
        folder=tmp_path / "compared",
    )
    comparison.open()
    assert all(
        SECRET not in path.read_text()
        for path in (tmp_path / "compared").rglob("*")
        if path.is_file()
    )


def test_errors_quote_no_secret() -> None:
    for key, text in {
        "rewards.0.runtime_env.env_vars": f"{{A: [{SECRET}]}}",
        "run.seed": f"ftp://a:{SECRET}@b",
        "learner": f"https://{SECRET}@h",
    }.items():
        with pytest.raises(UserError) as caught:
            quickstart({key: text})
        assert SECRET not in str(caught.value) and key in str(caught.value)


def test_a_masked_config_is_not_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(quickstart(KEYS)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        config.load(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and all(
        line.startswith(f"{path}:") and "masked when this was written" in line for line in lines
    )
    assert "by --run.mlflow VALUE" in lines[0] and "${VARIABLE}" not in lines[0]
    assert any(
        "by --rewards.0.runtime_env.env_vars.TOKEN VALUE, or as ${VARIABLE}" in line
        for line in lines
    )
    assert config.load(path, KEYS) == quickstart(KEYS)


def test_variables_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        "rewards.0.runtime_env.env_vars.TOKEN": "${MY_TOKEN}",
        "rewards.0.runtime_env.env_vars.PATH": "/x:${PATH}",
    }
    found = quickstart({"rewards.0.runtime_env": "{pip: [a]}"} | keys)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(found).replace(MASK, "/x:${PATH}"), encoding="utf-8")
    assert config.load(path) == found  # a reference is no secret
    monkeypatch.setenv("MY_TOKEN", SECRET)
    env: Any = secrets.given(found.rewards[0].runtime_env, "rewards.0.runtime_env")
    # Ray puts a node's own PATH
    assert env == {"pip": ["a"], "env_vars": {"TOKEN": SECRET, "PATH": "/x:${PATH}"}}
    assert roles.actor_options(found.reward_workers, env)["runtime_env"] == env
    assert SECRET not in config.dump(found)
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(
        UserError,
        match=r"^rewards\.0\.runtime_env\.env_vars\.TOKEN: expected the environment variable "
        r"MY_TOKEN, which is not set$",
    ):
        check(found)
    with pytest.raises(UserError, match="MY_TOKEN, which is not set"):
        checks.own(found)["rewards.0 (ocr)"]()  # doctor's


def test_sinks_are_sent_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B, offline: nothing below the run folder holds it, not even the command line."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("sys.argv", ["run.py", "train", "--run.mlflow", KEYS["run.mlflow"]])
    (sink,) = open_sinks(
        quickstart({"run.wandb": "project"}).all_sinks,
        tmp_path / "run",
        config.plain(quickstart(KEYS)),
    )
    sink.write(0, {"x": 1.0})
    sink.close(failed=False)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and all(SECRET.encode() not in path.read_bytes() for path in files)


def test_what_is_shown_holds_no_secret() -> None:
    from rich.console import Console

    from branchgrpo.report.terminal import Display

    out = Console(record=True, width=200)
    with Display("x", 1, "a/b", out) as display:
        display.phase(f"opening {KEYS['run.mlflow']}")
        display.note(KEYS["checkpoint.folder"])
    shown = out.export_text()
    assert SECRET not in shown and shown.count(MASK) >= 4


def test_the_mask_is_yaml_that_comes_back() -> None:
    assert yaml.safe_load(yaml.safe_dump(MASK)) == MASK
