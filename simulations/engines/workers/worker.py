"""What a worker process of the pool does: answer messages until the line is closed."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fedgraft.client.training.device.process import keep_freed
from fedgraft.common.plugins.loading import load_plugins
from fedgraft.simulations.engines.node import answer, context_for
from fedgraft.simulations.engines.workers.process_server import end_with_parent
from fedgraft.simulations.engines.workers.shared_messages import SharedMessages


def work(line: Connection, folder: str, name: str, threads: int, plugins: tuple[str, ...]) -> None:
    """Answer what comes in by `line`; large tensors lie in `folder`, where this worker's files start with `name`.

    `plugins` are files and modules to load before.
    """
    end_with_parent()
    os.umask(0o077)  # what a site writes is below the run's folder
    torch.set_num_threads(threads)
    keep_freed()
    load_plugins(plugins)
    messages = SharedMessages(Path(folder), name)
    contexts = {}
    while True:
        try:
            config = line.recv_bytes().decode()
            message = messages.thaw(line.recv_bytes(), once=False)
            node = message.metadata.dst_node_id
            if node not in contexts:
                contexts[node] = context_for(node, Path(config))
            line.send_bytes(messages.freeze(answer(message, contexts[node])))
            messages.forget_written()
        except (EOFError, OSError):
            return
