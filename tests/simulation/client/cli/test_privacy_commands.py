"""What a person sees of privacy: prices before a study, the account and the log after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fedgraft.client.privacy.ledger.held import Held
from fedgraft.common.privacy.accountant import Event, default_delta, epsilon
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate

PRIVATE = {"epsilon": 5.0, "sample_rate": 0.5}


@pytest.fixture
def study(make_study):
    local = {"steps": 2, "lr": 0.01, "private": PRIVATE}
    return make_study(method={"name": "linear_probe", "rounds": 3, "local": local})


@pytest.fixture
def study_file(study, tmp_path: Path) -> Path:
    path = tmp_path / "private.yaml"
    path.write_text(study.to_yaml())
    return path


@pytest.mark.slow
def test_a_study_is_priced_before_it_runs(command, study_file: Path) -> None:
    code, out, _ = command("study", "explain", study_file, "--patients", 200, "--patients", 5000)
    assert code == 0
    assert "train heads (387 numbers) with differential privacy by" in out
    assert "No differential privacy" not in out
    code, out, _ = command("study", "explain", study_file, "--patients", 200, "--json")
    (price,) = json.loads(out)["prices"]
    (line,) = price["lines"]
    assert price["delta"] == default_delta(200) == 1e-3
    assert line["epsilon"] == price["epsilon"] == pytest.approx(5.0, rel=5e-3)
    assert epsilon([Event(line["noise_multiplier"], 0.5, 6)], 1e-3) == line["epsilon"]


def test_noised_metrics_are_priced_if_sites_say_what_they_cost(command, study_file: Path) -> None:
    words = ["study", "explain", study_file, "--patients", 200]
    (alone,) = json.loads(command(*words, "--json")[1])["prices"]
    (both,) = json.loads(command(*words, "--metrics-epsilon", 0.5, "--json")[1])["prices"]
    line, metrics = both["lines"]
    assert [line] == alone["lines"]
    assert metrics["epsilon"] == pytest.approx(0.5, rel=0.01)
    events = [Event(one["noise_multiplier"], one["sample_rate"], one["steps"]) for one in both["lines"]]
    assert both["epsilon"] == epsilon(events, default_delta(200)) > alone["epsilon"]
    assert "--metrics-epsilon" in command(*words)[1]
    assert "--metrics-epsilon" not in command(*words, "--metrics-epsilon", 0.5)[1]


@pytest.mark.slow
def test_advice_follows_the_size_of_a_site(command) -> None:
    trained = {}
    for patients in (100, 1000, 30_000):
        code, out, _ = command("study", "explain", "private", "--patients", patients, "--json")
        assert code == 0
        (advice,) = json.loads(out)["advice"]
        trained[patients] = advice["train"]
        noises = [option["noise"] for option in advice["options"]]
        assert noises == sorted(noises)
        assert [option["train"] for option in advice["options"]] == ["heads", "norm_and_heads", "last_block", "all"]
        numbers = {option["train"]: option["numbers"] for option in advice["options"]}
        assert (numbers["heads"], numbers["norm_and_heads"]) == (516, 1956)
    assert trained == {100: "heads", 1000: "norm_and_heads", 30_000: "all"}
    words = ["study", "explain", "private", "--patients", 400, "--set", "plan.0.local.private.epsilon=3"]
    assert "train heads, since with fewer than 500 patients, at epsilon 3," in command(*words)[1]
    code, out, _ = command("privacy", "plan", "private", "--patients", 1000)
    assert "at 1,000 patients a site: train norm_and_heads, since a step's noise is 0.21" in out
    assert "with last_block it would be 2.29" in out


def test_advice_knows_what_cannot_be_trained_privately(command, make_study, tmp_path: Path) -> None:
    probe = {"name": "linear_probe", "local": {"steps": 50, "private": {"epsilon": 8.0, "sample_rate": 0.25}}}
    study = make_study(
        model={"backbone": "vit_b_16", "weights": None}, input={"kind": "image", "size": 32}, method=probe
    )
    (tmp_path / "vit.yaml").write_text(study.to_yaml())
    _, out, _ = command("study", "explain", "vit.yaml", "--patients", 100_000)
    assert "train heads, since" in out
    assert "per-sample gradients are not known" in out


def test_longer_studies_and_larger_steps_cost_more(command, study_file: Path) -> None:
    code, out, _ = command("privacy", "plan", study_file, "--patients", 200, "--json")
    assert code == 0
    rows = json.loads(out)
    cost = {(row["longer"], row["lines"][0]["sample_rate"]): row["epsilon"] for row in rows}
    assert len(cost) == len({length for length, _ in cost}) * len({share for _, share in cost})
    assert cost[1.0, 0.5] == pytest.approx(5.0, rel=5e-3)
    assert cost[0.5, 0.5] < cost[1.0, 0.5] < cost[2.0, 0.5]
    assert cost[1.0, 0.25] < cost[1.0, 0.5] < cost[1.0, 1.0]


def test_a_study_without_privacy_says_so_and_has_no_price(command, make_study, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(make_study().to_yaml())
    code, out, _ = command("study", "explain", "plain.yaml")
    assert code == 0
    assert "No differential privacy in train: whoever receives what leaves there can invert it" in out
    code, _, err = command("privacy", "plan", "plain.yaml")
    assert code == 2
    assert "no stage is private" in err


@pytest.mark.slow
def test_a_site_sees_its_account_and_what_the_next_study_would_cost(
    command, study, study_file: Path, hospitals: Hospitals, tmp_path: Path
) -> None:
    east = simulate(study, hospitals, tmp_path / "run") / "sites" / "east"
    other = yaml.safe_load(study_file.read_text()) | {"name": "other"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    code, out, _ = command("site", "budget", east, "--study", "other.yaml", "--plot", "spent.png", "--json")
    assert code == 0
    facts = json.loads(out)
    account, proposal = facts["budget"], facts["proposal"]
    (job,) = account["jobs"]
    assert (job["study"], job["charges"], job["steps"]) == (study.digest, 3, 6)
    assert account["spent"] == job["epsilon"] == account["after_each"][-1] == pytest.approx(5.0, rel=5e-3)
    assert 0 < job["tight"] < job["epsilon"]
    assert account["after_each"] == sorted(account["after_each"])
    assert proposal["patients"] == 25
    assert proposal["epsilon"] == pytest.approx(account["spent"])
    events = [row.event for row in Held.of(east).open(100.0).rows()]
    assert proposal["total_after"] == pytest.approx(epsilon(events * 2, account["delta"]))
    assert proposal["refused"] is None
    with Image.open(tmp_path / "spent.png") as picture:
        assert picture.size[0] > 500
    code, out, _ = command("site", "budget", east, "--study", "other.yaml")
    assert code == 0
    for words in (
        "epsilon 100 for one study",
        "adding or removing one patient",
        "within the policy",
        study.digest[:12],
    ):
        assert words in out


def test_a_study_beyond_the_policy_is_named_as_such(command, study_file, hospitals, make_study, tmp_path) -> None:
    run = simulate(make_study(), hospitals, tmp_path / "run")
    folder = run / "sites" / "east"
    config = json.loads((folder / "site.json").read_text())
    config["policy"] |= {"epsilon_per_study": 100.0, "epsilon_lifetime": 100.0, "steps_max": 3}
    (folder / "site.json").write_text(json.dumps(config))
    code, out, err = command("site", "budget", folder, "--study", study_file)
    assert code == 2
    assert "--patients" in err
    code, out, _ = command("site", "budget", folder, "--study", study_file, "--patients", 24)
    assert code == 0
    assert "refused (policy: steps)" in out
    assert "Nothing is spent" in out


def test_what_left_can_be_listed_and_looked_at(command, make_study, hospitals, tmp_path: Path) -> None:
    folder = simulate(make_study(), hospitals, tmp_path / "run") / "sites" / "east"
    code, out, _ = command("site", "egress", folder)
    assert code == 0
    assert "4 messages, each sealed to the one before" in out
    code, out, _ = command("site", "egress", folder, "--show", 2)
    assert "heads.cls.weight" in out
    assert "by allow_non_dp of the policy; exact figures, by metrics of the policy" in out.replace("\n", " ")
    code, out, _ = command("site", "egress", folder, "--json")
    assert [entry["kind"] for entry in json.loads(out)] == ["greeting", "update", "update", "update"]
    assert command("site", "egress", folder, "--show", 9)[0] == 2
    path = folder / "egress.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"exchange":1', b'"exchange":7'))
    code, _, err = command("site", "egress", folder)
    assert code == 2
    assert "line 2 was changed" in err
    assert command("site", "egress", tmp_path)[0] == 2


@pytest.mark.slow
def test_accuracy_against_epsilon_is_measured_written_and_taken_up_again(
    command, study_file: Path, hospitals: Hospitals, tmp_path: Path, monkeypatch
) -> None:
    sites = [{"name": name, "cohort": c.model_dump(mode="json")} for name, c in hospitals.cohorts.items()]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "mine", "sites": sites}))
    study_file.write_text(study_file.read_text() + "\nscenario: mine.yaml\n")
    words = ["privacy", "curve", study_file, "--out", "curve", "--seeds", 2, "--train", "heads", "--json"]
    words += ["--epsilon", 20, "--epsilon", 0.05, "--set", "evaluate.floor=1"]  # these hospitals are tiny
    code, out, err = command(*words)
    assert code == 0, err
    assert err.count("AUROC") == 6
    points = {point["epsilon"]: point for point in json.loads(out)}
    assert set(points) == {20.0, 0.05, None}
    assert points[None]["loss"] is None
    for budget in (20.0, 0.05):
        point = points[budget]
        assert point["runs"] == 2
        assert point["loss"] == pytest.approx(points[None]["value"] - point["value"])
        assert point["half_width"] > 0
    cells = json.loads((tmp_path / "curve" / "curve.json").read_text())["cells"]
    runs = {path.name: json.loads((path / "result.json").read_text()) for path in (tmp_path / "curve/runs").iterdir()}
    assert len(runs) == len(cells) == 6
    spent = sorted(run["privacy"]["east"].get("epsilon", 0.0) for run in runs.values())
    assert spent == pytest.approx([0, 0, 0.05, 0.05, 20, 20], rel=1e-2)
    with Image.open(tmp_path / "curve" / "curve.png") as picture:
        assert picture.size[0] > 500
    monkeypatch.setattr("fedgraft.simulations.planning.curve.simulate", None)  # nothing is run a second time
    assert command(*words)[1] == out
    assert (tmp_path / "curve" / "curve.csv").read_text().count("\n") == 4
