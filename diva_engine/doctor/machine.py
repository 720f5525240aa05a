"""The machine: Python, driver, memory, disks, shared memory, ports and limits."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from diva_engine.doctor.finding import Finding, Verdict, guarded

GIB = 2**30
PYTHON = ((3, 11), (3, 14))  # from, below
SCARCE_DISK = {"runs": 20.0, "Hugging Face cache": 20.0, "temporary files": 2.0}  # GiB below which to warn
FULL_DISK_GIB = 0.5
SCARCE_SHARED_GIB = 1.0  # NCCL and data workers; Docker's default is 0.06
MIN_OPEN_FILES = 1024
DEFAULT_PORT = 29500  # torchrun's


def check_machine(run_dir: Path) -> list[Finding]:
    checks: dict[str, Callable[[], Finding]] = {
        "Python": check_python,
        "NVIDIA driver": check_driver,
        "memory": check_memory,
        "runs": lambda: check_disk("runs", run_dir),
        "Hugging Face cache": lambda: check_disk("Hugging Face cache", hugging_face_cache()),
        "temporary files": lambda: check_disk("temporary files", Path(tempfile.gettempdir())),
        "shared memory": lambda: check_shared_memory(Path("/dev/shm")),
        "loopback": check_loopback,
        "MASTER_PORT": check_port,
        "limits": check_limits,
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def check_python() -> Finding:
    version = platform.python_version()
    if not PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        wanted = "3.11 to 3.13"
        return Finding("Python", "broken", f"{version} at {sys.executable}", f"take Python {wanted}")
    return Finding("Python", "ok", f"{version} at {sys.executable}")


def check_driver() -> Finding:
    """What nvidia-smi says, independent of torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("NVIDIA driver", "ok", "none (no nvidia-smi): runs on the CPU")
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        mend = "nvidia-smi must work before torch can see a GPU: reinstall the driver, or reboot after an update of it"
        return Finding("NVIDIA driver", "broken", f"nvidia-smi fails ({type(error).__name__})", mend)
    versions = done.stdout.split()
    return Finding("NVIDIA driver", "ok", f"{versions[0]}, {len(versions)} GPUs" if versions else "no GPU")


def check_memory() -> Finding:
    """Memory and cores that this process may use; a container's limit counts."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_limit()
    usable = min(total, limit) if limit else total
    value = f"{usable / GIB:.0f} GiB, {len(os.sched_getaffinity(0))} cores"
    return Finding("memory", "warn" if usable < 4 * GIB else "ok", value,
                   "small models only: transformers alone takes 1 GiB" if usable < 4 * GIB else "")  # fmt: skip


def check_disk(name: str, folder: Path) -> Finding:
    """Room on the folder's disk, and whether a file can be written there."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / GIB
    value = f"{folder}: {free:.1f} GiB free"
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(name, "broken", f"{folder}: no file can be written ({error.strerror})", _another(name))
    verdict: Verdict = "broken" if free < FULL_DISK_GIB else "warn" if free < SCARCE_DISK[name] else "ok"
    return Finding(name, verdict, value, "" if verdict == "ok" else f"make room, or {_another(name)}")


def check_shared_memory(folder: Path) -> Finding:
    mend = "start the container with --shm-size=8g, or --ipc=host"
    if not folder.is_dir():
        return Finding("shared memory", "warn", f"there is no {folder}", mend)
    free = shutil.disk_usage(folder).free / GIB
    verdict: Verdict = "warn" if free < SCARCE_SHARED_GIB or not os.access(folder, os.W_OK) else "ok"
    return Finding("shared memory", verdict, f"{folder}: {free:.2f} GiB free", mend if verdict != "ok" else "")


def check_loopback() -> Finding:
    """Ranks meet over TCP; gloo also looks the machine's own name up."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return Finding("loopback", "broken", f"no connection to 127.0.0.1 ({error})", "allow it in the firewall")
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        mend = f"add `127.0.0.1 {name}` to /etc/hosts, or set GLOO_SOCKET_IFNAME=lo for ranks on one machine"
        return Finding("loopback", "warn", f"works, but the host name {name} has no address", mend)
    return Finding("loopback", "ok", f"works; host name {name}")


def check_port() -> Finding:
    """Where the first rank listens; only several ranks need it."""
    text = os.environ.get("MASTER_PORT", str(DEFAULT_PORT))
    mend = "torchrun --standalone takes a free one"
    if not (text.isdigit() and int(text) < 65536):
        return Finding("MASTER_PORT", "broken", f"{text!r} is no port", f"unset MASTER_PORT; {mend}")
    try:
        with socket.create_server(("127.0.0.1", int(text))):
            return Finding("MASTER_PORT", "ok", f"{text} is free")
    except OSError as error:
        return Finding(
            "MASTER_PORT", "warn", f"{text}: {error.strerror or error}; several ranks cannot meet there", mend
        )


def check_limits() -> Finding:
    """Files, processes and address space that this shell allows."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    words = f"{_amount(open_files)} open files, {_amount(processes)} processes"
    if address_space != resource.RLIM_INFINITY:
        mend = "ulimit -v unlimited: torch and CUDA map far more addresses than they use"
        return Finding("limits", "warn", f"{words}, {address_space / GIB:.0f} GiB of addresses", mend)
    if open_files != resource.RLIM_INFINITY and open_files < MIN_OPEN_FILES:
        return Finding("limits", "warn", words, f"ulimit -n {MIN_OPEN_FILES} or more")
    if processes != resource.RLIM_INFINITY and processes < 256:
        return Finding("limits", "warn", words, "ulimit -u 4096: reward workers and data workers are processes")
    return Finding("limits", "ok", words)


def hugging_face_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _another(name: str) -> str:
    return {
        "runs": "give trainer.save_checkpoint_path a folder on another disk",
        "Hugging Face cache": "set HF_HOME to a folder on another disk",
        "temporary files": "set TMPDIR to a folder on another disk",
    }[name]


def _amount(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
