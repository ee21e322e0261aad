"""A run whose first site by name is the last to answer, so that all others wait for their turn: in files, if many."""

from __future__ import annotations

from flwr.app import Message

from fedgraft.server.rounds.exchange import out_of_turn
from fedgraft.simulations.engines.grids import InProcessGrid
from helpers.simulated import simulate

METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 2, "batch_size": 8, "lr": 0.001}}


def test_updates_that_waited_in_files_give_the_same_bits(hospitals, make_study, tmp_path, monkeypatch):
    study, files = make_study(method=METHOD), []
    plain = simulate(study, hospitals, tmp_path / "plain")
    write = out_of_turn._in_a_file

    def backwards(self: InProcessGrid, message: Message) -> None:
        self._waiting.appendleft(message)

    def written(*asked):
        files.append(asked)
        return write(*asked)

    monkeypatch.setattr(InProcessGrid, "_queue", backwards)
    monkeypatch.setattr(out_of_turn, "MOST_BYTES", 0)
    monkeypatch.setattr(out_of_turn, "_in_a_file", written)
    waited = simulate(study, hospitals, tmp_path / "waited")
    assert files
    assert (waited / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert (waited / "result.json").exists()
