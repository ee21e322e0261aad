"""The ClientApp: answers two messages, hello and visit, with the site's installed code. Thin on purpose.

A process keeps its sites between messages, one set per thread: cohort and model are there when the next instruction
comes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.data.cohorts.cohort import (
    Cohort,
    learning_patients,
    load_cohort,
)
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig, read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.governance.approval import is_approved
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.pending_studies import keep_pending
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard, Refused
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.runtime.log import close as close_log
from fedgraft.client.runtime.log import site_log
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.features import forget_features
from fedgraft.client.training.model.local_model import LocalModel, NoGpu, device_named
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.common.base.files import DISK_FULL, write_atomic
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.auxiliary import requires_source
from fedgraft.common.protocol.bundle import WireError
from fedgraft.common.protocol.instructions import (
    PROTOCOL,
    Answer,
    Code,
    Greeting,
    Hello,
    Instruction,
    Refusal,
)
from fedgraft.common.study.study import Study, parse_study

_RAISED = 2
"""Flower's error code for a ClientApp that raised."""

app = ClientApp()
_kept = threading.local()


@app.query(wire.HELLO.partition(".")[2])
def hello(message: Message, context: Context) -> Message:
    """Take in the study, prepare the cohort, say who is here."""
    answer = _answer_hello(message, context)
    return _sealed(
        message, lambda: wire.pack_reply(answer) if isinstance(answer, Refusal) else wire.pack_greeting(answer)
    )


@app.train(wire.VISIT.partition(".")[2])
def visit(message: Message, context: Context) -> Message:
    """Carry out one instruction."""
    answer = _visit(message, context)
    return _sealed(message, lambda: wire.pack_reply(answer, views=bool(context.node_config.get("views"))))


@app.query(wire.PING.partition(".")[2])
def ping(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower calls it with both
    """Say that all that was asked before is answered."""
    return Message(RecordDict(), reply_to=message)


def _sealed(message: Message, pack: Callable[[], RecordDict]) -> Message:
    """The reply; or an error without words, because Flower sends the text of what a ClientApp raises."""
    try:
        return Message(pack(), reply_to=message)
    except Exception:  # the wall between a hospital and the network: no text may pass it
        return Message(Error(_RAISED), reply_to=message)


def _answer_hello(message: Message, context: Context) -> Greeting | Refusal:
    # The site's own log may say what is wrong; the network may not.
    log, config, study = logging.getLogger(__name__), None, ""
    name = ""
    try:
        config = _config(context)
        name, log = config.name, site_log(config.state)
        hello = wire.unpack_hello(message.content)
        study = hashlib.sha256(hello.study).hexdigest()
        answer = _greet(hello, config, context)
    except WireError:
        answer = Refusal(0, Code.GARBAGE, name)
    except Refused as refused:
        log.warning("does not take part: %s (%s)", refused.code, refused.why)
        answer = Refusal(0, refused.code, name)
    except FedgraftError as error:
        log.error("cannot take part: %s", error)
        answer = Refusal(0, Code.BAD_DATA, name)
    except Exception as error:  # the wall between a hospital and the network: no text may pass it
        log.exception("cannot take part")
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        answer = Refusal(0, Code.DISK if full else Code.FAILED, name)
    why = "counts of cases and labels, exact or rounded as metrics of the policy says"
    return answer if _recorded(config, study, answer, why) else Refusal(0, Code.DISK, name)


def _greet(hello: Hello, config: SiteConfig, context: Context) -> Greeting | Refusal:
    if hello.protocol != PROTOCOL:
        return Refusal(0, Code.OTHER_PROTOCOL, config.name)
    study = parse_study(json.loads(hello.study), "the study sent by the coordinator")
    home = _config_path(context).parent
    if not is_approved(home, study.digest):
        keep_pending(home, study)
        raise Refused(Code.NOT_APPROVED, f"study {study.digest}")
    site = _site(study, config)
    write_atomic(_study_path(config, study.digest), study.to_json(), private=True)
    greeting = site.greet()
    forget_features(config.state, study.digest)
    return greeting


def _visit(message: Message, context: Context) -> Answer:
    exchange, study, why, config = 0, "", "a constant word", None
    answer: Answer
    try:
        config = _config(context)
        instruction = wire.unpack_instruction(message.content)
        exchange, study = instruction.exchange, instruction.study
        answer = _carry_out(instruction, config, context)
        if not isinstance(answer, Refusal) and (site := _known(config, study)) is not None:
            why = site.grounds(instruction)
    except WireError:
        answer = Refusal(exchange, Code.GARBAGE)
    except Refused as refused:
        answer = Refusal(exchange, refused.code)
    except Exception:  # the wall between a hospital and the network: no text may pass it
        log = site_log(config.state) if config is not None else logging.getLogger(__name__)
        log.exception("visit failed")
        answer = Refusal(exchange, Code.FAILED)
    return answer if _recorded(config, study, answer, why) else Refusal(exchange, Code.DISK)


def _carry_out(instruction: Instruction, config: SiteConfig, context: Context) -> Answer:
    # Asked every time: a site may take an approval back.
    if not is_approved(_config_path(context).parent, instruction.study):
        return Refusal(instruction.exchange, Code.NOT_APPROVED)
    site = _known(config, instruction.study) or _again(config, instruction.study)
    return site.visit(instruction) if site is not None else Refusal(instruction.exchange, Code.UNKNOWN_STUDY)


def _recorded(config: SiteConfig | None, study: str, answer: Greeting | Answer, why: str) -> bool:
    """Whether `answer` stands in the site's egress log, without which it must not leave."""
    if config is None:  # a site without a configuration has no data either, and this is a refusal
        return True
    try:
        _egress(config).record(study, answer, why)
    except (OSError, ValueError, FedgraftError):
        site_log(config.state).exception("the egress log cannot be written")
        return False
    return True


def _egress(config: SiteConfig) -> EgressLog:
    kept, name = _memory("egress"), str(config.state)
    if name not in kept:
        kept[name] = EgressLog(config.state, sync=config.sync)
    found = kept[name]
    assert isinstance(found, EgressLog)
    return found


def _again(config: SiteConfig, digest: str) -> Site | None:
    """The site as it took the study in before this process began; None if it never did."""
    path = _study_path(config, digest)
    return _site(_read_study(path, digest), config) if path.is_file() else None


_path = lru_cache(Path)
"""Asked for every instruction."""


def _config_path(context: Context) -> Path:
    """Where the site's own configuration is; approvals lie beside it.

    In a simulation through Ray it is that of the node's number in the run's folder.
    """
    path = context.node_config.get("site-config")
    if path is not None:
        return _path(str(path))
    sites = Path(str(context.run_config["run"])) / "sites"
    names = json.loads((sites / "index.json").read_text(encoding="utf-8"))
    return sites / str(names[int(context.node_config["partition-id"])]) / "site.json"


def _config(context: Context) -> SiteConfig:
    path, known = _config_path(context), _memory("configs")
    if str(path) not in known:
        known[str(path)] = config = read_config(path)
        if config.threads:
            torch.set_num_threads(config.threads)
    found = known[str(path)]
    assert isinstance(found, SiteConfig)
    return found


def _site(study: Study, config: SiteConfig) -> Site:
    if (site := _known(config, study.digest)) is not None:
        return site
    wanted = cohort_request(config, study)
    place = place_of(config, study.digest)
    cohort = load_cohort(config.name, config.cohort, wanted, place)
    if config.source is not None and requires_source(study):
        beside = replace(place, state=place.state / "source")
        cohort = replace(cohort, source=load_cohort(config.name, config.source, wanted, beside))
    guard = None if config.observer else _guard(study, config, cohort)
    sealer, local_model = _sealer(study, config), _local_model(study, _device(config))
    site = Site(study, cohort, local_model, place.state, guard, sealer)
    _memory("sites")[f"{config.state}/{study.digest}"] = site
    return site


def _device(config: SiteConfig) -> torch.device:
    try:
        return device_named(config.device)
    except NoGpu:
        raise Refused(Code.NO_GPU, f"there is no device {config.device}") from None


def _guard(study: Study, config: SiteConfig, cohort: Cohort) -> PrivacyGuard:
    patients = learning_patients(study, cohort)
    about = {"is_source": config.public_source, "patients_known": config.cohort.knows_patients}
    return PrivacyGuard(study, config.policy, config.state, patients, **about)


def _sealer(study: Study, config: SiteConfig) -> Sealer | None:
    """What masks the replies in secure aggregation; observers answer in the open. Raises Refused if the site cannot."""
    if not study.secure_aggregation or config.observer:
        return None
    if config.secure_aggregation is None:
        raise Refused(
            Code.NO_SECURE_AGGREGATION, "the study asks for secure aggregation, and the site's file has no `masks`"
        )
    try:
        return Sealer(study, config.secure_aggregation, config.name, config.state)
    except InputError as error:
        raise Refused(Code.NO_SECURE_AGGREGATION, str(error)) from None


def _known(config: SiteConfig, digest: str) -> Site | None:
    site = _memory("sites").get(f"{config.state}/{digest}")
    assert site is None or isinstance(site, Site)
    return site


def _local_model(study: Study, device: torch.device) -> LocalModel:
    """The one model of this study in this thread; another study's model makes room for it."""
    local_models = _memory("benches")
    name = f"{study.digest}/{device}"
    if name not in local_models:
        local_models.clear()
        local_models[name] = LocalModel(study, device)
    local_model = local_models[name]
    assert isinstance(local_model, LocalModel)
    return local_model


def _read_study(path: Path, digest: str) -> Study:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise FedgraftError(f"{path}: is not the study that this site took in.")
    return parse_study(json.loads(data), str(path))


def _study_path(config: SiteConfig, digest: str) -> Path:
    return config.state / "studies" / f"{Path(digest).name}.json"


def _memory(name: str) -> dict[str, object]:
    """What this thread keeps between messages under `name`."""
    if not hasattr(_kept, name):
        setattr(_kept, name, {})
    found = getattr(_kept, name)
    assert isinstance(found, dict)
    return found


def forget() -> None:
    """Let go of all that this thread keeps, so that a second run in one process starts clean."""
    for config in _memory("configs").values():
        assert isinstance(config, SiteConfig)
        close_log(config.state)
    _kept.__dict__.clear()
