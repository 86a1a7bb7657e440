"""A server that topr starts on this machine for one model, and ends. Not here: talking to it."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from topr.config.engines import ServerConfig
from topr.config.sections import ModelConfig
from topr.engines import supervisor
from topr.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOG_TAIL = 2000
"""Characters of a server's log that an error shows."""

VLLM = (
    sys.executable, "-m", "vllm.entrypoints.openai.api_server",
    "--model", "{model}", "--revision", "{revision}", "--dtype", "{dtype}",
    "--host", "{host}", "--port", "{port}",
    # The log-probabilities of the distribution that is sampled, not of the plain softmax; and
    # nothing of the model's own defaults (top-k, repetition penalty) on top of what is asked.
    "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
)  # fmt: skip
"""vLLM's own server. `vllm serve` is the same; this works for its CPU build too."""


def check_command(config: ServerConfig) -> None:
    """Refuse a server that cannot be started.

    Raises:
        ConfigError: there is nothing to start, or no such program.

    """
    if config.command is None:
        found = importlib.util.find_spec("vllm")
        if found is None or found.origin is None:  # a folder of that name is not a package
            raise ConfigError(
                "generate.engine=server without generate.server.url or generate.server.command "
                "starts vLLM's own server, and vllm is not installed in this Python. Install it "
                "(pip install vllm), or set generate.server.command to the words that start a "
                "server, {model} and {port} among them (docs/engines/server.md has some)"
            )
        return
    if not config.command or shutil.which(config.command[0]) is None:
        raise ConfigError(
            f"generate.server.command begins with {' '.join(config.command[:1])!r}, which is no "
            "program here: give its path, or put it on the PATH"
        )


class ServerProcess:
    """A server process that runs."""

    def __init__(self, model: ModelConfig, config: ServerConfig) -> None:
        """Start it. It is not yet ready then.

        Raises:
            EngineError: its program cannot be run.

        """
        if sys.platform == "win32":
            raise EngineError(
                "topr starts no server on Windows, where it could not end one with all that it has "
                "started: start it yourself and give generate.server.url, or use WSL"
            )
        port = _free_port()
        self.url = f"http://{HOST}:{port}/v1"
        command = _filled(config.command or _vllm(model, config), model, port)
        descriptor, name = tempfile.mkstemp(prefix="topr-server-", suffix=".log")
        self.log = Path(name)
        """What it writes; removed when it is closed while it runs."""
        with os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own command
                [sys.executable, "-I", supervisor.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        logger.info("started a server for %s on port %d; log: %s", model.path, port, self.log)

    def check_alive(self) -> None:
        """Raise an EngineError, with the end of its log, if it has ended."""
        status = self._process.poll()
        if status is None:
            return
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
        raise EngineError(
            f"the server that topr started has ended with status {status}. Its log, {self.log}, "
            f"ends with:\n{tail}\nRun it again, and what was drawn is kept; if it ends again, "
            "look at the log, or change generate.server"
        )

    def close(self, *, keep_log: bool = False) -> None:
        """End it and what it has started, and wait until that is done.

        Args:
            keep_log: leave its log, which an error has named; so it is where it has ended itself.

        """
        if self._process.poll() is not None:
            keep_log = True
        else:
            self._process.terminate()
            try:
                self._process.wait(supervisor.GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if not keep_log:
            self.log.unlink(missing_ok=True)


def model_word(path: str) -> str:
    """Return what `{model}` stands for: no shell is there to read `~`."""
    directory = Path(path).expanduser()
    return str(directory) if directory.is_dir() else path


def _vllm(model: ModelConfig, config: ServerConfig) -> tuple[str, ...]:
    trusted = ("--trust-remote-code",) if model.trust_remote_code else ()
    return (*VLLM, *trusted, *config.arguments)


def _filled(words: tuple[str, ...], model: ModelConfig, port: int) -> list[str]:
    values = {
        "{model}": model_word(model.path),
        "{revision}": model.revision or "main",
        "{dtype}": model.dtype,
        "{host}": HOST,
        "{port}": str(port),
    }
    filled = []
    for word in words:
        # Not str.format: a word may be JSON.
        for name, value in values.items():
            word = word.replace(name, value)
        filled.append(word)
    return filled


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
