"""`fedgraft site check`, `review` and `approve` as a hospital's people type them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import generate_uid

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.pseudonyms import keep_key
from fedgraft.client.governance.approval import is_approved
from fedgraft.client.governance.pending_studies import keep_pending
from fedgraft.client.preflight.report import Level
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.common.privacy.accountant import (
    Event,
    default_delta,
    epsilon,
    noise_for,
)
from fedgraft.simulations.engines.keys import make_keys
from fedgraft.simulations.engines.run import Hospitals
from helpers.simulated import simulate
from helpers.site_home import KEY, STUDY, Hospital, study

PRIVATE_STAGE = {
    "name": "private",
    "where": "labelled",
    "local": {
        "kind": "gradient", "train": "heads", "steps": 4, "batch_size": 8, "lr": 0.1, "optimiser": "sgd",
        "fixed_norm_stats": True, "private": {"noise_multiplier": 2.0, "sample_rate": 0.25},
    },
    "share": "heads",
    "aggregate": {"kind": "mean"},
    "rounds": 2,
}  # fmt: skip
PRIVATE = {key: value for key, value in STUDY.items() if key != "method"} | {"plan": [PRIVATE_STAGE]}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture
def private_file(tmp_path: Path, hospital: Hospital) -> Path:
    """A private study's file, and the site's key under which its patients split as the study's shares say."""
    keep_key(hospital.home / "state", KEY)
    path = tmp_path / "private.yaml"
    path.write_text(yaml.safe_dump(PRIVATE))
    return path


def test_a_check_from_the_command_line(command, hospital: Hospital, study_file: Path) -> None:
    code, out, err = command("site", "check", study_file, "--home", hospital.home)
    assert (code, err) == (0, "")
    for part in ("environment (", "data (", "training (", "connection (", "policy ("):
        assert part in out
    assert "Nothing fails." in out
    assert "64 images can be used" in out
    hospital.edit(hospital.files()[0], BurnedInAnnotation="YES")
    code, out, _ = command("site", "check", study_file, "--home", hospital.home, "--part", "data")
    assert code == 1
    assert "FAILS  burned_in: 1 image flagged" in out
    assert "-> Have the text removed" in out
    assert "1 line fails." in out
    assert "environment" not in out


def test_the_report_as_json(command, hospital: Hospital, study_file: Path) -> None:
    code, out, _ = command("site", "check", study_file, "--home", hospital.home, "--json", "--baseline")
    report = json.loads(out)
    assert (code, report["failing"], report["schema"]) == (0, 0, 1)
    assert report["study"] == {"name": "preflight", "digest": study().digest}
    assert set(report["seconds"]) == {"environment", "data", "training", "connection", "policy", "baseline"}
    assert {line["level"] for line in report["lines"]} <= {level.value for level in Level}
    baseline = next(line for line in report["lines"] if line["name"] == "baseline_cls")
    assert baseline["figures"]["test"]["n"] == 16


def test_the_home_is_fedgrafts_own_if_none_is_given(command, hospital: Hospital, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "local_state"))
    shutil.copytree(hospital.home, tmp_path / "local_state" / "site")
    code, out, _ = command("site", "check")
    assert code == 0
    assert "needs a study" in out


WRONG = {
    "no site": (["site", "check", "--home", "nowhere"], "is no site's folder"),
    "no such part": (["site", "check", "--part", "weather"], "environment, data"),
    "baseline of nothing": (["site", "check", "--baseline"], "--baseline needs a study"),
    "no such study": (["site", "review", "nothing.yaml"], "there is no such file"),
    "no such offer": (["site", "approve", "0123456789abcdef" * 4], "Offered here: none"),
    "nothing to withdraw": (["site", "approve", "quickstart", "--withdraw"], "No study with the digest"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_exit_2_with_a_reason(command, hospital: Hospital, case: str) -> None:
    words, reason = WRONG[case]
    code, out, err = command(*words, *([] if "--home" in words else ["--home", hospital.home]))
    assert code == 2, (out, err)
    assert reason in err
    assert "Traceback" not in out + err


def test_a_study_that_cannot_work_is_refused_by_all_three(command, hospital: Hospital, tmp_path: Path) -> None:
    impossible = {key: value for key, value in STUDY.items() if key != "method"}
    stage = {"name": "probe", "local": {"kind": "statistics"}, "share": "none", "aggregate": {"kind": "ridge"}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(impossible | {"plan": [stage]}))
    for verb in ("check", "review", "approve"):
        code, _, err = command("site", verb, tmp_path / "bad.yaml", "--home", hospital.home)
        assert code == 2
        assert "plan.0 (probe).share" in err
    assert not (hospital.home / "approvals.json").exists()


def test_review_says_what_runs_what_leaves_and_that_it_is_not_private(command, hospital, study_file) -> None:
    code, out, err = command("site", "review", study_file, "--home", hospital.home)
    assert (code, err) == (0, "")
    assert study().digest in out
    assert "not approved here" in out
    for words in ("1. probe:", "2. train:", "3. adapt:", "309,216 numbers in 74 arrays", "1.2 MB a round, 2 rounds"):
        assert words in out
    assert "no differential privacy in probe, train" in out
    assert "confusion matrix" in out
    assert "never: images" in out


def test_what_review_says_leaves_is_what_leaves(command, hospital: Hospital, study_file, tmp_path) -> None:
    """Against the bytes that a real run of the study sends from one site."""
    _, out, _ = command("site", "review", study_file, "--home", hospital.home, "--json")
    content = json.loads(out)
    cohort = yaml.safe_load((hospital.home / "site.yaml").read_text())["cohort"]
    run = simulate(study(), Hospitals({"north": CohortSpec.model_validate(cohort)}), tmp_path / "run")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    log = [json.loads(line) for line in (run / "sites" / "north" / "egress.jsonl").read_text().splitlines()]
    for at, stage in enumerate(content["stages"]):
        sent = [row for row in rows if row["stage_index"] == at and row["stage"] == stage["name"]]
        assert len(sent) == stage["rounds"]
        left = [entry for entry in log if entry["exchange"] == sent[0]["exchange"] and entry["kind"] == "update"]
        assert len(left[0]["tensors"]) == stage["leaves"]["entries"]
        assert sorted(left[0]["words"]["train"]) == sorted(stage["figures"])
        besides = sent[0]["bytes_up"] - stage["leaves"]["bytes_per_round"]
        assert 0 < besides < 30_000  # names and shapes, metrics and counts


def test_of_a_masked_study_review_says_what_a_masked_run_sends(command, hospitals, tmp_path) -> None:
    classes = [{"name": "cls", "classes": ["left", "right", "middle"]}]
    asked = study(secure_aggregation=True, tasks=classes)
    run = simulate(asked, hospitals, tmp_path / "run")
    (tmp_path / "asked.yaml").write_text(asked.to_yaml())
    home = run / "sites" / "north"
    _, out, _ = command("site", "review", tmp_path / "asked.yaml", "--home", home, "--json")
    content = json.loads(out)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert (content["secure_aggregation"], content["refused"]) == (3, "")
    for at, stage in enumerate(content["stages"]):
        row = next(row for row in rows if row["stage_index"] == at and row["stage"] == stage["name"])
        besides = row["bytes_up"] / 4 - stage["leaves"]["bytes_per_round"]
        # The last exchange brings metrics alone; masked, they have the same size every time.
        assert abs(besides - rows[-1]["bytes_up"] / 4) < 2000, stage["name"]
    words = command("site", "review", tmp_path / "asked.yaml", "--home", home)[1]
    assert "the coordinator reads sums over 3 sites or more" in words
    assert "(exact)" not in words


def test_a_masked_study_needs_masks(command, hospital: Hospital, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(study(secure_aggregation=True).to_yaml())
    code, out, _ = command("site", "check", tmp_path / "asked.yaml", "--home", hospital.home, "--part", "policy")
    assert code == 1
    assert "the policy does not allow the study: no_secure_aggregation" in out
    code, _, err = command("site", "approve", tmp_path / "asked.yaml", "--home", hospital.home)
    assert (code, "no_secure_aggregation" in err) == (1, True)


def test_a_masked_study_needs_as_many_pinned_sites_as_a_group(command, hospital: Hospital, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(study(secure_aggregation=True).to_yaml())
    words = ("site", "approve", tmp_path / "asked.yaml", "--home", hospital.home)
    for names, expected in ((("north", "south"), 1), (("north", "south", "west"), 0)):
        folder = tmp_path / str(len(names))
        for name in names:
            (folder / name).mkdir(parents=True)
        settings = make_keys(folder, names)["north"]
        hospital.write_config(secure_aggregation=settings.model_dump(mode="json"))
        code, _, err = command(*words)
        assert code == expected, err
        assert ("site roster --accept" in err) == bool(expected)


def test_review_prices_a_private_study_at_this_site(command, hospital: Hospital, private_file: Path) -> None:
    hospital.write_config(policy={"min_patients": 1, "epsilon_per_study": 20.0, "epsilon_lifetime": 50.0})
    code, out, _ = command("site", "review", private_file, "--home", hospital.home, "--json")
    content = json.loads(out)
    assert (code, content["refused"]) == (0, "")
    cost = epsilon([Event(2.0, 0.25, 8)], default_delta(16))
    assert content["cost"]["epsilon"] == pytest.approx(cost)
    assert content["cost"]["patients"] == 16
    assert content["stages"][0]["figures"] == ["steps", "noise_multiplier", "sample_rate"]
    assert content["metrics"]["sums"] == []
    _, out, _ = command("site", "review", private_file, "--home", hospital.home)
    assert f"epsilon {cost:.2f} of 20" in out
    assert "no differential privacy" not in out
    assert "its public number of patients" in out
    assert "metrics: none, by metrics of the policy" in out


@pytest.mark.parametrize(
    ("metrics", "words"),
    [("none", "none, by metrics"), ("noised", "noised at the price"), ("suppressed", "exact but for those below ten")],
)
def test_review_says_how_metrics_leave(command, hospital: Hospital, study_file: Path, metrics: str, words: str) -> None:
    hospital.write_config(policy={"allow_non_dp": True, "min_patients": 1, "metrics": metrics})
    code, out, _ = command("site", "review", study_file, "--home", hospital.home)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("  metrics: ")]
    assert words in line
    assert "confusion" not in line


def test_the_price_of_noised_metrics_is_part_of_the_studys(command, hospital: Hospital, private_file: Path) -> None:
    policy = {"min_patients": 1, "epsilon_per_study": 20.0, "epsilon_lifetime": 50.0}
    costs = {}
    for metrics in ("none", "noised"):
        hospital.write_config(policy=policy | {"metrics": metrics})
        costs[metrics] = json.loads(command("site", "review", private_file, "--home", hospital.home, "--json")[1])[
            "cost"
        ]
    noise = Event(noise_for(0.5, default_delta(16), 1.0, 1), 1.0, 1)
    assert costs["none"]["metrics"] == 0.0
    assert costs["noised"]["metrics"] == pytest.approx(epsilon([noise], default_delta(16)))
    both = epsilon([Event(2.0, 0.25, 8), noise], default_delta(16))
    assert costs["noised"]["epsilon"] == pytest.approx(both) != costs["none"]["epsilon"]
    _, out, _ = command("site", "review", private_file, "--home", hospital.home)
    assert "noised counts of the test cases, once: epsilon 0.50" in out
    assert f"the whole study: epsilon {both:.2f} of 20" in out


def test_noised_metrics_have_a_price_where_nothing_else_has(command, hospital: Hospital, study_file: Path) -> None:
    hospital.write_config(policy={"allow_non_dp": True, "min_patients": 1, "metrics": "noised"})
    _, out, _ = command("site", "review", study_file, "--home", hospital.home)
    assert "once: epsilon 0.50" in out
    assert "the whole study: epsilon 0.50 of 3" in out
    assert "no differential privacy in probe, train" in out


def test_a_site_that_sends_nothing_in_the_open_says_so(command, hospital: Hospital, study_file: Path) -> None:
    hospital.write_config(policy={"allow_non_dp": True, "min_patients": 1, "secure_aggregation_only": True})
    code, out, _ = command("site", "review", study_file, "--home", hospital.home)
    assert code == 0
    assert "nothing in the open, by secure_aggregation_only of the policy" in out
    assert "ask the coordinator for secure_aggregation: true" in out


def test_approval_is_kept_and_withdrawn(command, hospital: Hospital, study_file: Path) -> None:
    digest = study().digest
    assert not is_approved(hospital.home, digest)
    code, out, _ = command("site", "approve", study_file, "--home", hospital.home)
    assert code == 0
    assert f"{digest} (approved here)" in out
    assert "What will leave this site" in out
    assert is_approved(hospital.home, digest)
    assert "(approved here)" in command("site", "review", study_file, "--home", hospital.home)[1]
    code, out, _ = command("site", "approve", study_file, "--home", hospital.home, "--withdraw")
    assert (code, digest in out) == (0, True)
    assert not is_approved(hospital.home, digest)


def test_an_offered_study_is_reviewed_and_approved_by_its_digest(command, hospital: Hospital) -> None:
    keep_pending(hospital.home, study())
    short = study().digest[:12]
    assert command("site", "review", short, "--home", hospital.home)[0] == 0
    code, _, err = command("site", "approve", short, "--home", hospital.home)
    assert code == 2
    assert "Give all 64 digits" in err, "another study can begin like that"
    assert not is_approved(hospital.home, study().digest)
    assert command("site", "approve", study().digest, "--home", hospital.home)[0] == 0
    assert is_approved(hospital.home, study().digest)


KEPT = STUDY | {"method": {"name": "ridge_probe", "retain_statistics": True}}
REFUSED = {
    "not_private": ({"min_patients": 1}, STUDY),
    "too_few_patients": ({"allow_non_dp": True, "min_patients": 17}, STUDY),
    "backbone": ({"allow_non_dp": True, "min_patients": 1, "backbones": ["resnet18"]}, STUDY),
    "roles": ({"allow_non_dp": True, "min_patients": 1, "train": ["body"]}, STUDY),
    "not_secure": ({"allow_non_dp": True, "min_patients": 1, "secure_aggregation_only": True}, STUDY),
    "retained_statistics": ({"allow_non_dp": True, "min_patients": 1}, KEPT),
    "steps": ({"min_patients": 1, "steps_max": 7}, PRIVATE),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_policy_refuses_is_said_and_cannot_be_approved(command, hospital, tmp_path, reason: str) -> None:
    policy, content = REFUSED[reason]
    hospital.write_config(policy=policy)
    path = tmp_path / "asked.yaml"
    path.write_text(yaml.safe_dump(content))
    code, out, _ = command("site", "review", path, "--home", hospital.home)
    assert code == 0
    assert ("keeps each site's sums" in out) == (content is KEPT)
    assert f"This site's policy refuses the study: {reason}." in out
    code, _, err = command("site", "approve", path, "--home", hospital.home)
    assert code == 1
    assert reason in err
    assert not (hospital.home / "approvals.json").exists()
    code, out, _ = command("site", "check", path, "--home", hospital.home, "--part", "policy", "--json")
    lines = {line["name"]: line for line in json.loads(out)["lines"]}
    assert code == 1
    assert lines["study"]["level"] == "fails"
    assert reason in lines["study"]["description"]
    assert lines["study"]["fix"]
    stages = [line for name, line in lines.items() if name.startswith("policy_") and line["level"] == "fails"]
    assert stages
    assert {line["description"] for line in stages} == {f"refused: {reason}"}
    assert all(line["fix"] for line in stages)


def test_a_study_dearer_than_what_is_left_is_refused_as_a_whole(command, hospital, private_file, tmp_path) -> None:
    two = [PRIVATE_STAGE, PRIVATE_STAGE | {"name": "again"}]
    private_file.with_name("two.yaml").write_text(yaml.safe_dump(PRIVATE | {"plan": two}))
    cost = epsilon([Event(2.0, 0.25, 8)], default_delta(16))
    hospital.write_config(policy={"min_patients": 1, "epsilon_per_study": 1.05 * cost, "epsilon_lifetime": 50.0})
    code, out, _ = command(
        "site", "check", tmp_path / "two.yaml", "--home", hospital.home, "--part", "policy", "--json"
    )
    lines = {line["name"]: line["level"] for line in json.loads(out)["lines"]}
    assert code == 1
    assert lines == {"policy_private": "ok", "policy_again": "ok", "study": "fails"}


def test_a_private_study_is_tried_before_it_runs(command, hospital: Hospital, private_file: Path) -> None:
    hospital.write_config(policy={"min_patients": 1, "epsilon_per_study": 20.0, "epsilon_lifetime": 50.0})
    code, out, _ = command("site", "check", private_file, "--home", hospital.home, "--json", "--baseline")
    lines = {line["name"]: line for line in json.loads(out)["lines"]}
    assert code == 0, out
    assert lines["stage_private"]["figures"]["steps"] == 4
    assert "for 8 cases" in lines["stage_private"]["description"]  # a quarter of 32 images
    assert lines["policy_private"]["level"] == "ok"
    assert lines["baseline_cls"]["figures"]["test"]["n"] == 16
    assert not list((hospital.home / "state").glob("ledger*"))  # nothing was charged


def test_a_ledger_that_cannot_be_trusted_stops_everything(command, hospital: Hospital, private_file: Path) -> None:
    hospital.write_config(policy={"min_patients": 1, "epsilon_per_study": 20.0, "epsilon_lifetime": 50.0})
    Held.of(hospital.home / "state").witness.parent.mkdir(parents=True, exist_ok=True)
    Held.of(hospital.home / "state").witness.write_text("{}")  # a ledger was here, and is gone
    code, out, _ = command("site", "check", private_file, "--home", hospital.home, "--part", "policy")
    assert code == 1
    assert "FAILS  study: the policy does not allow the study: ledger" in out
    assert str(hospital.home) not in out
    code, _, err = command("site", "approve", private_file, "--home", hospital.home)
    assert code == 1
    assert "ledger" in err


def test_an_observer_has_no_policy_to_ask(command, hospital: Hospital, study_file: Path) -> None:
    hospital.write_config(observer=True, policy={})
    code, out, _ = command("site", "check", study_file, "--home", hospital.home, "--part", "policy")
    assert code == 0
    assert "observer" in out
    code, out, _ = command("site", "review", study_file, "--home", hospital.home)
    assert "never trains" in out
    assert "MB" not in out
    content = json.loads(command("site", "review", study_file, "--home", hospital.home, "--json")[1])
    assert (content["observer"], content["bytes_up"]) == (True, 0)


NAMES = ("DOE^JANE", "MRN-4711", "scan_of_DOE", "1.2.840.4711")


@pytest.mark.slow
def test_no_identifier_is_in_anything_that_may_be_shared(command, hospital: Hospital, study_file: Path) -> None:
    """Recognisable names are planted wherever a hospital's files have some, with a fault of every kind."""
    rows = hospital.rows()
    for at, file in enumerate(hospital.files()[:12]):
        patient = dcmread(file).PatientID
        elements = {"PatientName": "DOE^JANE", "PatientID": f"MRN-4711-{at}", "InstitutionName": "DOE^JANE"}
        elements |= {"StudyInstanceUID": f"1.2.840.4711.{at % 3}", "SOPInstanceUID": f"1.2.840.4711.9.{at}"}
        elements |= {"Manufacturer": "DOE^JANE", "StationName": "scan_of_DOE", "StudyDescription": "DOE^JANE"}
        if at == 0:
            elements["BurnedInAnnotation"] = "YES"
        hospital.edit(file, **elements)
        renamed = file.rename(file.with_name(f"scan_of_DOE_{at}.dcm"))
        rows += [{**row, "PatientID": f"MRN-4711-{at}"} for row in rows if row["PatientID"] == patient]
        if at == 1:
            renamed.write_bytes(renamed.read_bytes()[:1400])
        if at == 2:
            shutil.copy(renamed, renamed.with_name("scan_of_DOE_again.dcm"))
            other = renamed.with_name("scan_of_DOE_other.dcm")
            shutil.copy(renamed, other)
            hospital.edit(other, PatientID="MRN-4711-3", SOPInstanceUID=generate_uid(), StudyInstanceUID=generate_uid())
        if at == 3:
            shutil.copy(renamed, renamed.with_name("scan_of_DOE_none.dcm"))
            hospital.edit(renamed.with_name("scan_of_DOE_none.dcm"), PatientID="", SOPInstanceUID=generate_uid())
    hospital.write_rows([row for row in rows if row["PatientID"] != "MRN-4711-5"])
    told = ""
    for words in (["check"], ["check", "--json"], ["check", "--baseline"], ["review"], ["review", "--json"]):
        _, out, err = command("site", words[0], study_file, "--home", hospital.home, *words[1:])
        told += out + err
    command("site", "check", study_file, "--home", hospital.home, "--share", "share.json")
    told += Path("share.json").read_text()
    for fault in ("burned_in: 1", "truncated", "duplicates: 1 file", "without a patient id", "without a row"):
        assert fault in told, fault
    assert "FAILS  one_patient_two_splits" in told
    for secret in (*NAMES, "4711", str(hospital.home), str(hospital.data), "/tmp", "P0001"):
        assert secret not in told, secret
    details = hospital.home / "check-details.txt"
    assert "scan_of_DOE" in details.read_text()  # the people at the site can find the files
    assert details.stat().st_mode & 0o077 == 0


def test_help_of_the_site_commands_imports_nothing_slow() -> None:
    code = """
import sys
from fedgraft import cli
sys.argv = ["fedgraft", "site", "check", "--help"]
try:
    cli.main()
except SystemExit:
    pass
print([name for name in ("torch", "flwr", "numpy", "pydicom") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_table_is_checked_to_the_end(command, hospital: Hospital, tmp_path: Path) -> None:
    rows = [f"p{n},{30 + n},{n % 7}.5,{('no', 'yes')[n % 3 == 0]}" for n in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["id,age,size,cls", *rows]) + "\n")
    asked = STUDY | {
        "tasks": [{"name": "cls", "classes": ["no", "yes"]}],
        "input": {"kind": "table", "numeric": ["age", "size"]},
        "model": {"backbone": "table_linear", "weights": None},
        "method": {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8}},
    }
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    cohort = {"kind": "table", "root": str(tmp_path / "table.csv"), "labels": None, "patient_column": "id"}
    hospital.write_config(cohort=cohort)
    code, out, err = command("site", "check", tmp_path / "asked.yaml", "--home", hospital.home, "--baseline", "--json")
    lines = {line["name"]: line for line in json.loads(out)["lines"]}
    assert (code, err) == (0, "")
    assert lines["values"]["figures"]["rows"] == 60
    assert lines["stage_standardise"]["level"] == lines["stage_train"]["level"] == "ok"
    assert lines["baseline_cls"]["figures"]["test"]["n"] == 15
    code, out, _ = command("site", "review", tmp_path / "asked.yaml", "--home", hospital.home)
    assert code == 0
    assert "standardise: 6 numbers in 3 arrays" in out


def test_folders_of_images_are_checked_to_the_end(command, hospital: Hospital, hospitals, tmp_path: Path) -> None:
    root = hospitals.cohorts["south"].root
    asked = STUDY | {"tasks": [{"name": "cls", "classes": ["left", "right", "middle"]}]}
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    hospital.write_config(cohort={"kind": "images", "root": str(root), "labels": None})
    code, out, err = command("site", "check", tmp_path / "asked.yaml", "--home", hospital.home, "--json")
    lines = {line["name"]: line for line in json.loads(out)["lines"]}
    assert (code, err) == (0, "")
    assert lines["readable"]["figures"]["images"] == 60
    assert lines["patient_ids"]["level"] == "note"
    assert not {"modality", "window", "joined"} & lines.keys()
