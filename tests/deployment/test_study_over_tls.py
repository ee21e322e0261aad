"""A study over three real sites gives what the simulation gives, and its exit code tells the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fedgraft.client.governance.approval import approve
from fedgraft.common.base.files import load_tensors
from fedgraft.simulations.engines.run import OPEN
from helpers.federation import Federation, same_weights, until
from helpers.plans import MANY_KINDS
from helpers.runs import open_to_others
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south")
METHOD = {"name": "silobn", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}


@pytest.fixture(scope="module")
def federation(stand, make_study) -> Federation:
    """A server and three sites that approved the study; the last tests end them."""
    return stand(make_study(method=METHOD))


def test_weights_and_metrics_are_those_of_the_simulation(federation, three, make_study, tmp_path):
    study = make_study(method=METHOD)
    federation.run(study)
    reference = simulate(study, three, tmp_path / "reference")
    assert same_weights(federation.root / "run", reference)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (federation.root / "run", reference))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["status"] == "completed"
    assert ours["engine"] == "deployed"
    assert (federation.root / "run" / "report.html").is_file()
    assert open_to_others(federation.root / "run") == []


def test_stages_of_all_kinds_are_those_of_the_simulation(federation, three, make_study, tmp_path):
    """Sums in single precision, control variates, Newton's steps, temperatures, thresholds; norms that stay."""
    study = make_study(plan=MANY_KINDS, name="kinds")
    for name in SITES:
        approve(federation.site(name), study.digest)
    federation.run(study, "kinds")
    reference = simulate(study, three, tmp_path / "reference")
    assert same_weights(federation.root / "kinds", reference)
    ours, theirs = (load_tensors(run / "moments.safetensors") for run in (federation.root / "kinds", reference))
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_clusters_are_those_of_the_simulation(federation, three, make_study, tmp_path):
    """Made from the sums that the sites send; then each site chooses by loss, and is measured with its own alone."""
    method = METHOD | {"name": "graft", "local": METHOD["local"] | {"lr": 0.0003}}
    study = make_study(method=method, clusters={"by": "loss", "stage": "probe", "count": 2}, name="clusters")
    for name in SITES:
        approve(federation.site(name), study.digest)
    federation.run(study, "clusters")
    reference = simulate(study, three, tmp_path / "reference")
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (federation.root / "clusters", reference))
    assert ours["clusters"] == theirs["clusters"]
    chosen = [json.loads(row)["chosen"] for row in (federation.root / "clusters" / "history.jsonl").open()]
    assert [sorted(row) for row in chosen[:4]] == [[], [], list(SITES), []]
    assert ours["metrics"] == theirs["metrics"]
    for cluster in ("cluster_1", "cluster_2"):
        assert same_weights(federation.root / "clusters" / "models" / cluster, reference / "models" / cluster)


def test_a_masked_study_is_the_simulated_one_and_sites_that_want_masks_take_part(
    federation, three, make_study, tmp_path
):
    """Every site has its masks from its kit; one of them refuses all that has none."""
    study, plain = (
        make_study(
            method=METHOD,
            secure_aggregation=secure_aggregation,
            name="secure_aggregation" if secure_aggregation else "open",
            rounds={"min_sites": 2},
        )
        for secure_aggregation in (True, False)
    )
    for name in SITES:
        for one in (study, plain):
            approve(federation.site(name), one.digest)
    config = federation.site("south") / "site.yaml"
    before = yaml.safe_load(config.read_text())

    def restart(**policy: bool | str) -> None:
        federation.processes["south"].terminate()
        federation.processes["south"].wait(60)
        config.write_text(yaml.safe_dump(before | {"policy": before["policy"] | policy}))
        federation.start_site("south")

    restart(secure_aggregation_only=True, agreement="none")
    try:
        federation.run(study, "secure_aggregation")
        federation.run(plain, "open")
    finally:
        restart()
    assert same_weights(federation.root / "secure_aggregation", simulate(study, three, tmp_path / "reference"))
    logs = {name: (federation.site(name) / "state" / "egress.jsonl").read_text().splitlines() for name in SITES}
    for name in SITES:
        kinds = {line["kind"] for line in map(json.loads, logs[name]) if line["study"] == study.digest}
        assert kinds == {"greeting", "secure_aggregation"}
    of_south = [line for line in map(json.loads, logs["south"]) if line["study"] == plain.digest]
    assert {line["kind"] for line in of_south} == {"refusal"}
    assert set(json.loads((federation.root / "open" / "result.json").read_text())["sites"]) == {"east", "north"}


def test_a_given_model_is_measured_under_each_site_s_rules(federation, three, make_study, tmp_path):
    """Nobody trains, and figures are all that leaves: as they are, coarse, or not at all, as the site's policy says."""
    trained = simulate(make_study(method=METHOD | {"name": "fedavg"}), three, tmp_path / "trained")
    model = {"backbone": "slim_resnet", "weights": str(trained)}
    study = make_study(plan=[], model=model, name="measured")
    rules = {"east": "exact", "north": "suppressed", "south": "none"}
    policies = {
        name: OPEN.model_copy(update={"metrics": rule, "allow_non_dp": rule == "exact"}) for name, rule in rules.items()
    }
    configs = {name: federation.site(name) / "site.yaml" for name in SITES}
    before = {name: path.read_text() for name, path in configs.items()}
    for name, path in configs.items():
        policy = policies[name].model_dump(mode="json")
        path.write_text(yaml.safe_dump(yaml.safe_load(before[name]) | {"policy": policy}))
        federation.fedgraft(
            "site", "approve", federation.write(study, "measured.yaml"), "--home", federation.site(name)
        )
    try:
        done = federation.run(study, "measured")
    finally:
        for name, path in configs.items():
            path.write_text(before[name])
    assert "Nobody trained" in done.stdout
    reference = simulate(study, replace(three, policies=policies), tmp_path / "reference")
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (federation.root / "measured", reference))
    assert (ours["status"], ours["engine"]) == ("completed", "deployed")
    assert ours["metrics"] == theirs["metrics"]
    assert ours["sums"] == theirs["sums"]
    then = json.loads((trained / "result.json").read_text())["metrics"]["cls"]["sites"]
    assert set(ours["metrics"]["cls"]["sites"]) == {"east", "north"}
    assert ours["metrics"]["cls"]["sites"]["east"] == then["east"]
    assert same_weights(federation.root / "measured", trained)
    for name in SITES:
        lines = (federation.site(name) / "state" / "egress.jsonl").read_text().splitlines()
        sent = [line for line in map(json.loads, lines) if line["study"] == study.digest and line["kind"] == "update"]
        assert [line["tensors"] for line in sent] == [{}], "one exchange, and no entry"
        assert bool(sent[0]["metrics"]) == (name != "south")


def test_a_study_that_nobody_approved_fails_and_says_why_on_both_sides(federation, make_study):
    study = make_study(method=METHOD, seed=77)
    done = federation.run(study, "unapproved", fails=True)
    assert done.returncode == 1
    for name in SITES:
        assert f"{name}: not_approved" in done.stderr
        assert study.digest in (federation.site(name) / "state" / "site.log").read_text()
    assert not (federation.root / "unapproved" / "result.json").exists()


def test_a_study_that_one_site_refuses_goes_on_without_it(federation, make_study):
    """Which is a success only if the study says that two will do."""
    for out, rules in (("partly", {}), ("content", {"min_sites": 2})):
        study = make_study(method=METHOD, seed=78, rounds=rules)
        for name in ("east", "north"):
            approve(federation.site(name), study.digest)
        done = federation.run(study, out, fails=not rules)
        result = json.loads((federation.root / out / "result.json").read_text())
        assert done.returncode == (0 if rules else 1)
        assert result["status"] == "incomplete"
        assert "south, not_approved" in result["headline"]
        assert result["headline"] in done.stdout
        assert "2 sites ready" in done.stdout
        assert "1/" in done.stdout, "a line for each round"
        assert "macro mean" in done.stdout
        assert f"Report: {out}/report.html" in done.stdout
        assert set(result["sites"]) == {"east", "north"}


def test_a_quorum_that_is_missed_is_exit_code_1_with_its_reason(federation, make_study):
    study = make_study(method=METHOD, seed=79, rounds={"min_sites": 3})
    approve(federation.site("east"), study.digest)
    done = federation.run(study, "alone", fails=True)
    assert done.returncode == 1
    assert "3 are needed" in done.stderr


def test_commands_show_sites_and_runs(federation, make_study):
    federation.run(make_study(method=METHOD), "shown")
    rows = json.loads(federation.fedgraft("server", "sites", "--home", federation.home, "--json").stdout)
    assert {row["name"]: row["state"] for row in rows} == dict.fromkeys(SITES, "online")
    assert all(row["heard_s"] < 20 for row in rows)
    shown = json.loads(federation.fedgraft("server", "status", "--home", federation.home, "--json").stdout)
    run = next(row for row in shown["runs"] if row["folder"].endswith("shown"))
    assert (run["state"], run["exchange"], run["exchanges"], run["stage"]) == ("finished:completed", 3, 3, "evaluate")
    assert run["last"] == dict.fromkeys(SITES, 3)
    status = federation.fedgraft("server", "status", "--home", federation.home).stdout
    assert "trial" in status
    assert "exchange 3" in status
    assert "superlink" not in federation.fedgraft("server", "logs", "--home", federation.home).stderr


def test_the_newest_run_is_watched_until_its_end(federation, make_study):
    study = make_study(method=METHOD)
    watching = federation.start("watching", "server", "watch", "watched", "--home", federation.home)
    until(lambda: "no run yet" in federation.output("watching"), 60, "the watch to begin")
    until(lambda: "south is online" in federation.output("watching"), 60, "the sites to be seen")
    federation.run(study, "watched")
    assert watching.wait(20) == 0
    seen = federation.output("watching")
    assert "3/3 evaluate: 3 of 3 sites, cls AUROC" in seen
    assert "the server answers" in seen
    assert "completed: 3 of 3 sites" in seen
    newest = federation.fedgraft("server", "watch", "--home", federation.home).stdout
    assert study.digest in newest


def test_a_stopped_run_continues_to_the_same_weights(federation, three, make_study, tmp_path):
    study = make_study(method={**METHOD, "rounds": 4})
    for name in SITES:
        approve(federation.site(name), study.digest)
    process = federation.start_run(study, "stopped")
    federation.await_event("done", "stopped", exchange=1)
    federation.fedgraft("server", "stop", "--home", federation.home)
    assert process.wait(60) == 1
    assert "--resume" in federation.output("stopped")
    federation.fedgraft("server", "run", "--resume", "stopped", "--home", federation.home)
    assert same_weights(federation.root / "stopped", simulate(study, three, tmp_path / "reference"))


def test_what_stays_at_the_site_stays_there(federation):
    kept = {"node.key", "masking.key", "site.yaml"}
    for name in SITES:
        for file in kept:
            path = federation.site(name) / file
            assert path.stat().st_mode & 0o077 == 0
    log = federation.log("superlink") + federation.log("superexec") + federation.log("server")
    secret = (federation.site("east") / "state" / "patients.key").read_text().strip()
    assert secret not in log
    assert str(federation.hospitals.cohorts["east"].root) not in log


def test_a_second_server_in_the_folder_is_refused(federation):
    done = federation.fedgraft("server", "start", "--home", federation.home, fails=True)
    assert done.returncode == 2
    assert "runs already" in done.stderr


def test_a_site_that_ends_leaves_at_once(federation):
    federation.processes["south"].terminate()
    assert federation.processes["south"].wait(30) == 0

    def states() -> dict[str, str]:
        rows = json.loads(federation.fedgraft("server", "sites", "--home", federation.home, "--json").stdout)
        return {row["name"]: row["state"] for row in rows}

    until(lambda: states()["south"] == "offline", 10, "the site to be gone")


def test_the_server_stops_with_all_its_processes(federation: Federation):
    inner = federation.child("fedgraft.server.operations.superlink")
    federation.fedgraft("server", "stop", "--server", "--home", federation.home)
    assert federation.processes["server"].wait(40) == 0
    assert not Path(f"/proc/{inner}").exists()
