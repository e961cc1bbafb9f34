"""Run folders: names that are taken once, runs that are found again, left alone, taken over by one,
or refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.small_drivers import begun, config, cut_off, holder

from branchgrpo.app.check import check
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART
from branchgrpo.errors import UserError
from branchgrpo.runs import lease as leases
from branchgrpo.runs.folder import alone, driving, stem, unfinished
from branchgrpo.runs.lease import Lease
from branchgrpo.runs.places import check_folders, checkpoints, named

pytestmark = pytest.mark.heavy

STAMP = r"-\d{8}-\d{6}"


def older(parent: Path, name: str, loaded: Config | None, summary: str | None = None) -> Path:
    """A folder as they were before run.json."""
    (parent / name).mkdir(parents=True)
    (parent / name / "config.yaml").write_text(configs.dump(loaded) if loaded else "")
    if summary is not None:
        (parent / name / "summary.json").write_text(summary)
    return parent / name


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(
            pool.map(lambda _: named(tmp_path / "new", "flux-20260101-000000"), range(8))
        )
    assert sorted(folder.name for folder in folders) == [
        "flux-20260101-000000",
        *(f"flux-20260101-000000-{number}" for number in range(2, 9)),
    ]
    with ExitStack() as stack:
        drivers = [stack.enter_context(driving(config(tmp_path), "")) for _ in range(3)]
        assert len({driver.folder for driver in drivers}) == 3
        for driver in drivers:
            name = rf"flux-branchgrpo-antithetic-seed0{STAMP}(-[23])?"
            assert re.fullmatch(name, driver.folder.name) and not driver.resumed
            record = json.loads((driver.folder / "run.json").read_text())
            assert (record["name"], record["seed"]) == ("flux", 0) and re.fullmatch(
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", record["started"]
            )
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]  # nothing was written: they go


@pytest.mark.parametrize(
    ("preset", "keys", "expected"),
    [
        ("nft-flash", {"run.seed": "1"}, "quickstart-nft-flash-seed1"),
        ("nft-flash", {"run.label": "high-rate"}, "quickstart-high-rate-seed0"),
        ("nft-flash", {"run.label": ""}, "quickstart-seed0"),
        ("nft", {"run.name": "my-nft"}, "my-nft-seed0"),  # not twice
        ("mine.yaml", {}, "quickstart-mine-seed0"),
    ],
)
def test_folders_are_named_by_run_preset_and_seed(
    preset: str, keys: dict[str, str], expected: str, tmp_path: Path
) -> None:
    if preset == "mine.yaml":
        preset = str(tmp_path / preset)
        Path(preset).write_text("preset: dancegrpo\n", encoding="utf-8")
    assert stem(configs.load(QUICKSTART, keys, preset)) == expected


def test_a_config_that_names_its_preset_is_labelled_by_it(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: quickstart\npreset: dancegrpo\nrun: {name: mine}\n", encoding="utf-8")
    assert stem(configs.load(mine, {})) == "mine-dancegrpo-seed0"
    mine.write_text("base: quickstart\nrun: {name: mine, label: high}\n", encoding="utf-8")
    assert stem(configs.load(mine, {})) == "mine-high-seed0"
    # another method by one line is another label
    assert stem(configs.load(mine, {}, "crd")) == "mine-crd-seed0"


def test_a_start_that_fails_leaves_nothing_and_one_that_wrote_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no Ray"),
        driving(config(tmp_path / "a" / "runs", checkpoint__folder=str(tmp_path / "c")), ""),
    ):
        raise RuntimeError("no Ray")
    assert not (tmp_path / "a").exists() and not any((tmp_path / "c").iterdir())
    assert begun(config(tmp_path / "a" / "runs"))[0].folder.is_dir()


def test_only_runs_of_exactly_this_name_and_seed_go_on(tmp_path: Path) -> None:
    """`flux` must not find `flux-full`, nor another seed."""
    for other in (
        config(tmp_path, "flux-full"),
        config(tmp_path, "flux", 1),
        config(tmp_path, "flux-full-20260101-000000"),
    ):
        cut_off(other)
    older(tmp_path, "flux-full-20260101-000000", config(tmp_path, "flux-full"))
    older(tmp_path, "flux-20260101-000000", config(tmp_path, seed=2))
    assert list(unfinished(config(tmp_path))) == []
    assert not begun(config(tmp_path), "auto")[0].resumed
    own = cut_off(config(tmp_path))
    driver, said = begun(config(tmp_path), "auto")
    assert driver.resumed and driver.folder == own and said[-1] == f"going on in {own}"


def test_the_newest_is_that_which_began_last_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    first, second = cut_off(config(tmp_path)), cut_off(config(tmp_path))
    for folder, started in (
        (first, "2026-01-01T10:00:00.000002+00:00"),
        (second, "2026-01-01T10:00:00.000001+00:00"),
    ):
        (folder / "run.json").write_text(
            json.dumps(json.loads((folder / "run.json").read_text()) | {"started": started})
        )
    old = older(tmp_path, "flux-20250101-000000", config(tmp_path))
    assert list(unfinished(config(tmp_path))) == [first, second, old]
    assert list(unfinished(config(tmp_path / "nowhere"))) == []


@pytest.mark.parametrize(
    ("summary", "goes_on"),
    [
        ('{"stopped_by": "interrupted"}', True),
        ('{"stopped_by": "iterations"}', False),
        ('{"stopped_by": "max_minutes"}', False),
    ],
)
def test_finished_runs_are_left(tmp_path: Path, summary: str, goes_on: bool) -> None:
    for folder in (
        older(tmp_path, "flux-20260101-000000", config(tmp_path)),
        cut_off(config(tmp_path)),
    ):
        (folder / "summary.json").write_text(summary)
    assert len(list(unfinished(config(tmp_path)))) == 2 * goes_on


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"stopped_by": 3}', "\0"])
def test_damaged_files_of_some_old_run_stop_nothing(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    for summary in (damage, None):
        older(
            tmp_path,
            f"flux-20260101-00000{summary is None:d}",
            config(tmp_path) if summary is not None else None,
            summary,
        )
    # of this one, its driver has told how it ended
    asked = begun(config(tmp_path), ended="interrupted")[0].folder
    (asked / "summary.json").write_text(damage)
    recordless = cut_off(config(tmp_path))
    (recordless / "run.json").write_text(damage if damage != '{"stopped_by": 3}' else "")
    assert set(unfinished(config(tmp_path), said.append)) == {asked, recordless}
    assert len(said) == 2 and all(line.count("\n") == 0 and "passed over" in line for line in said)
    driver, said = begun(config(tmp_path), "auto")
    assert driver.folder in (asked, recordless)


def test_a_live_run_is_left_alone_with_a_line_and_auto_goes_on_with_the_next(
    tmp_path: Path,
) -> None:
    live = cut_off(config(tmp_path))
    for file in (live / "drivers").iterdir():
        file.unlink()
    with holder(live):
        driver, said = begun(config(tmp_path), "auto", "interrupted")
        assert not driver.resumed and said == [f"{live}: this run is live, it is left alone"]
        again, said = begun(config(tmp_path), "auto")
        assert (
            again.folder == driver.folder
            and again.resumed
            and said[-1] == f"going on in {driver.folder}"
        )
        with pytest.raises(
            UserError,
            match=r"^--resume: expected a run that is not live, got "
            rf"{live}, whose driver goes on$",
        ):
            begun(config(tmp_path), str(live))
        assert sorted(os.listdir(live / "drivers")) == ["000001.json"]
    assert begun(config(tmp_path), str(live))[0].resumed


def test_a_run_that_was_cut_off_goes_to_one_of_those_that_ask_at_once(tmp_path: Path) -> None:
    cut = cut_off(config(tmp_path))
    command = [
        "import sys; from pathlib import Path; from branchgrpo.config import load as "
        "config; from branchgrpo.runs import folder as run_folder",
        "loaded = config.load(Path(sys.argv[1]))",
        "sys.stdin.readline()",
        "with run_folder.driving(loaded, 'auto', lambda line: None) as driver:",
        "    (driver.folder / 'config.yaml').write_text(config.dump(loaded))",
        "    print(driver.folder, driver.resumed, flush=True); sys.stdin.readline()",
    ]
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config(tmp_path)))
    with ExitStack() as stack:
        start = [sys.executable, "-c", "\n".join(command), str(file)]
        processes = [
            subprocess.Popen(
                start,
                cwd=Path(__file__).parents[3],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in processes:
            stack.callback(process.communicate)
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        told = [process.stdout.readline().split() for process in processes if process.stdout]
    assert len({folder for folder, _ in told}) == 3
    assert (
        sorted(resumed for _, resumed in told) == ["False", "False", "True"]
        and [str(cut), "True"] in told
    )


def test_names_that_are_taken_at_the_checkpoints_place_are_others(tmp_path: Path) -> None:
    """Two run folders, one checkpoint.folder: their runs of one second have one name."""
    for place in (str(tmp_path / "c"), f"memory://{tmp_path.name}"):
        with ExitStack() as stack:
            drivers = [
                stack.enter_context(driving(config(tmp_path / name, checkpoint__folder=place), ""))
                for name in ("a", "b", "a", "b")
            ]
            assert (
                len(
                    {
                        checkpoints(config(tmp_path, checkpoint__folder=place), driver.folder)
                        for driver in drivers
                    }
                )
                == 4
            )
    assert checkpoints(config(tmp_path), tmp_path / "x") == str(tmp_path / "x" / "checkpoints")
    assert (
        checkpoints(config(tmp_path, checkpoint__folder="s3://bucket/runs/"), tmp_path / "x")
        == "s3://bucket/runs/x"
    )


def test_a_folder_that_another_process_works_in(tmp_path: Path) -> None:
    with (
        holder(tmp_path),
        pytest.raises(UserError, match="expected that nobody else works in it"),
        alone(tmp_path),
    ):
        pass
    with alone(tmp_path):
        assert leases.newest(tmp_path) == 2
    with alone(tmp_path):
        assert leases.newest(tmp_path) == 3


# folders that cannot be written


def test_folders_that_cannot_be_written_are_found_in_check(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "gone")
    for place in (file, file / "runs", file / "a" / "b", Path("/proc/runs"), tmp_path / "dangling"):
        with pytest.raises(
            UserError,
            match=r"^run\.folder: expected a folder that can be "
            rf"written, got {place}[^\n]*$",
        ):
            check(config(place))
        with pytest.raises(
            UserError,
            match=r"^checkpoint\.folder: expected a folder that can be "
            r"written, got [^\n]*$",
        ):
            check(config(tmp_path, checkpoint__folder=str(place)))
    with pytest.raises(
        UserError,
        match=r"^run\.folder: expected a folder, got the URL "
        r"s3://bucket/runs; checkpoint\.folder takes URLs$",
    ):
        check_folders(config(Path("s3:"), run__folder="s3://bucket/runs"))
    check(config(tmp_path / "new" / "runs"))
    assert not (tmp_path / "new").exists()


def test_a_home_is_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert begun(config(Path("~/runs")))[0].folder.parent == tmp_path / "home" / "runs"


@pytest.mark.slow
def test_a_lease_that_is_written_on_another_machine(tmp_path: Path) -> None:
    """Real times: a driver that renews is seen within two renewals."""
    lease = Lease(tmp_path, 1)
    claim = tmp_path / "drivers" / "000001.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"machine": "another"}))
    began = time.monotonic()
    assert leases.lives(tmp_path, 1) and time.monotonic() - began < 2 * leases.RENEW_SECONDS
    lease.close("failed")
